"""Data sets of torchvision by name: `torchvision:CIFAR10`, or with arguments `torchvision:EMNIST?split=letters`."""

from __future__ import annotations

import functools
import inspect
import io
import os
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from choral.core.errors import ConfigError, DataError, did_you_mean
from choral.data.packing.options import PackOptions
from choral.data.packing.sources.base import ImageSource, resolve_labels

TORCHVISION_PREFIX = "torchvision:"
_SPLIT_ARGUMENTS = {  # our split: torchvision's names for it; the first that exists is used
    "train": ("train", "trainval"),
    "val": ("val", "valid"),
    "test": ("test",),
}

Arguments = tuple[tuple[str, Any], ...]


def open_torchvision(spec: str, options: PackOptions) -> ImageSource:
    """Return a torchvision data set, read from `options.root` or the cache directory and downloaded if missing.

    Images are stored as PNG, without loss. The training, validation and test splits of the data set are kept.

    Raises:
        ConfigError: torchvision is not installed, no such data set, or invalid arguments.
        DataError: neither on disk nor downloadable, or not a data set of images with one class each.
    """
    name, _, query = spec.removeprefix(TORCHVISION_PREFIX).partition("?")
    module = _datasets()
    if name not in module.__all__:
        raise ConfigError(f"{spec}: torchvision has no data set {name!r}.{did_you_mean(name, module.__all__, 3)}")
    given = tuple((key, _parse_value(text)) for key, text in urllib.parse.parse_qsl(query, keep_blank_values=True))
    root = str(Path(options.root).expanduser().absolute() if options.root else _cache_dir())
    parts, locations, labels, splits = {}, [], [], []
    classes: Sequence[Any] | None = None
    for split, (arguments, data) in _open_splits(name, root, given).items():
        parts[split] = arguments
        classes = classes or getattr(data, "classes", None)
        targets = _read_targets(data, spec)
        locations += [f"{split}/{number:07d}" for number in range(len(targets))]
        labels += targets
        splits += [split] * len(targets)
    names = tuple(", ".join(c) if isinstance(c, tuple) else str(c) for c in classes) if classes else None
    classes, ids = resolve_labels(labels, names, lambda i: f"{spec}: sample {locations[i]}", numbers_are_ids=True)
    columns = {
        "key": pa.array([location.replace("/", "-") for location in locations], pa.string()),
        "location": pa.array(locations, pa.string()),
        "size": pa.array([0] * len(locations), pa.int64()),
        "label": pa.array(ids),
    }
    if "all" not in parts:
        columns["split"] = pa.array(splits, pa.string())
    return ImageSource(
        name=name,
        classes=tuple(classes),
        samples=pa.table(columns),
        reader=TorchvisionReader(name, tuple(parts.items())),
        provenance={"kind": "torchvision", "path": spec, "package": "torchvision", "version": _version()},
    )


@dataclass(frozen=True)
class TorchvisionReader:
    """Reads the images of a torchvision data set as PNG; locations are SPLIT/NUMBER."""

    name: str
    splits: tuple[tuple[str, Arguments], ...]

    def read(self, location: str) -> bytes:
        """Return the image as PNG."""
        split, _, number = location.partition("/")
        image = _dataset(self.name, dict(self.splits)[split])[int(number)][0]
        if not hasattr(image, "save"):
            raise OSError(f"torchvision returns {type(image).__name__}, expected an image")
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return buffer.getvalue()

    def describe(self, location: str) -> str:
        """Return the data set and the location."""
        return f"{TORCHVISION_PREFIX}{self.name}: {location}"


def _open_splits(name: str, root: str, given: Arguments) -> dict[str, tuple[Arguments, Any]]:
    """Return the splits of the data set, opened with train= or split=; {"all": ...} if it has none."""
    signature = inspect.signature(getattr(_datasets(), name).__init__).parameters
    for key, _ in given:
        if key not in signature:
            raise ConfigError(
                f"{TORCHVISION_PREFIX}{name}: no argument {key!r}; available: "
                f"{', '.join(list(signature)[1:])}.{did_you_mean(key, signature)}"
            )
    fixed = (*((("root", root),) if "root" in signature else ()), *given)
    if "train" in signature and "train" not in dict(given):
        return {split: _load(name, (*fixed, ("train", split == "train"))) for split in ("train", "test")}
    if "split" not in signature or "split" in dict(given):
        return {"all": _load(name, fixed)}
    splits: dict[str, tuple[Arguments, Any]] = {}
    for split, arguments in _SPLIT_ARGUMENTS.items():
        for argument in arguments:
            try:
                splits[split] = _load(name, (*fixed, ("split", argument)))
                break
            except ValueError:  # torchvision's error for a split that does not exist
                continue
    if not splits:
        raise ConfigError(
            f"{TORCHVISION_PREFIX}{name}: has none of the splits train, val and test: choose one with "
            f"{TORCHVISION_PREFIX}{name}?split=..."
        )
    return splits


def _load(name: str, arguments: Arguments) -> tuple[Arguments, Any]:
    try:
        return arguments, _dataset(name, arguments)
    except (RuntimeError, FileNotFoundError) as missing:  # "Dataset not found or corrupted"
        signature = inspect.signature(getattr(_datasets(), name).__init__).parameters
        root = dict(arguments).get("root")
        if "download" not in signature:
            raise DataError(
                f"{TORCHVISION_PREFIX}{name}: not in {root} ({missing}), and torchvision cannot download it: copy its "
                "files there"
            ) from missing
    except TypeError as error:
        raise ConfigError(
            f"{TORCHVISION_PREFIX}{name}: {error}; write arguments as {TORCHVISION_PREFIX}{name}?NAME=VALUE"
        ) from error
    try:
        _dataset.__wrapped__(name, (*arguments, ("download", True)))
        return arguments, _dataset(name, arguments)
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{TORCHVISION_PREFIX}{name}: not in {root}, and the download failed ({reason}); without internet, copy its "
            "files there (option root)"
        ) from error


@functools.lru_cache(maxsize=4)  # worker processes read many samples of few splits
def _dataset(name: str, arguments: Arguments) -> Any:
    return getattr(_datasets(), name)(**dict(arguments))


def _read_targets(data: Any, spec: str) -> list[str]:
    """Return the class number of each sample as text, from an attribute of the data set or else sample by sample.

    Raises:
        ConfigError: torchvision cannot create the samples, for example with arguments of the wrong type.
    """
    for attribute in ("targets", "labels", "_labels"):
        values = getattr(data, attribute, None)
        if values is not None and len(values) == len(data):
            return [str(value) for value in (values.tolist() if hasattr(values, "tolist") else values)]
    try:
        return [str(data[number][1]) for number in range(len(data))]
    except (TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"{spec}: torchvision cannot create the samples ({reason}): check the arguments; write several numbers as "
            "NAME=3,64,64"
        ) from error


def _parse_value(text: str) -> Any:
    """Return an argument as an int, as a tuple of ints (separated by commas), or as text."""
    bare = text[1:-1] if text[:1] + text[-1:] in ("()", "[]") else text  # Python syntax for several numbers
    numbers = [number.strip() for number in bare.split(",")]
    if not all(number.lstrip("-").isdigit() for number in numbers):
        return text
    return int(bare) if len(numbers) == 1 else tuple(int(number) for number in numbers)


def _datasets() -> Any:
    try:
        import torchvision.datasets
    except ImportError as error:
        raise ConfigError("torchvision is not installed: run `pip install torchvision`") from error
    return torchvision.datasets


def _version() -> str:
    import torchvision

    return str(torchvision.__version__)


def _cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "choral" / "torchvision"
