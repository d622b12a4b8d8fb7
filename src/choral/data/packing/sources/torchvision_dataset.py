"""Data sets of torchvision, by name: `torchvision:CIFAR10`, with arguments `torchvision:EMNIST?split=letters`."""

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

PREFIX = "torchvision:"
_GIVEN = {
    "train": ("train", "trainval"),
    "val": ("val", "valid"),
    "test": ("test",),
}  # our name: theirs, the first that exists

Arguments = tuple[tuple[str, Any], ...]


def open_torchvision(spec: str, options: PackOptions) -> ImageSource:
    """Return a torchvision data set, from `options.root` or else the cache folder, downloaded where it is not there.

    Images are stored as PNG, without loss. Its own training, validation and test parts are kept.

    Raises:
        ConfigError: torchvision is not installed, no such data set, or arguments that it does not take.
        DataError: neither on disk nor downloadable, or not a data set of images with one class each.
    """
    name, _, query = spec.removeprefix(PREFIX).partition("?")
    module = _datasets()
    if name not in module.__all__:
        raise ConfigError(f"{spec}: torchvision has no data set {name!r}.{did_you_mean(name, module.__all__, 3)}")
    given = tuple((key, _value(text)) for key, text in urllib.parse.parse_qsl(query, keep_blank_values=True))
    root = str(Path(options.root).expanduser().absolute() if options.root else _cache_folder())
    opened = _open_parts(name, root, given)
    parts, locations, labels, splits = {}, [], [], []
    classes: Sequence[Any] | None = None
    for split, (arguments, data) in opened.items():
        parts[split] = arguments
        classes = classes or getattr(data, "classes", None)
        targets = _targets(data, spec)
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
    """Images of a torchvision data set as PNG; locations are PART/NUMBER."""

    name: str
    parts: tuple[tuple[str, Arguments], ...]

    def read(self, location: str) -> bytes:
        """Return the image as PNG."""
        part, _, number = location.partition("/")
        image = _dataset(self.name, dict(self.parts)[part])[int(number)][0]
        if not hasattr(image, "save"):
            raise OSError(f"torchvision gives {type(image).__name__}, expected an image")
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return buffer.getvalue()

    def describe(self, location: str) -> str:
        """Return data set and location."""
        return f"{PREFIX}{self.name}: {location}"


def _open_parts(name: str, root: str, given: Arguments) -> dict[str, tuple[Arguments, Any]]:
    """Open the parts that the data set has: by train=, by split=, or "all" where it has none."""
    signature = inspect.signature(getattr(_datasets(), name).__init__).parameters
    for key, _ in given:
        if key not in signature:
            raise ConfigError(
                f"{PREFIX}{name}: takes no argument {key!r}; it takes: "
                f"{', '.join(list(signature)[1:])}.{did_you_mean(key, signature)}"
            )
    fixed = (*((("root", root),) if "root" in signature else ()), *given)
    if "train" in signature and "train" not in dict(given):
        return {split: _load(name, (*fixed, ("train", split == "train"))) for split in ("train", "test")}
    if "split" not in signature or "split" in dict(given):
        return {"all": _load(name, fixed)}
    parts: dict[str, tuple[Arguments, Any]] = {}
    for split, theirs in _GIVEN.items():
        for choice in theirs:
            try:
                parts[split] = _load(name, (*fixed, ("split", choice)))
                break
            except ValueError:  # how torchvision says that there is no such part
                continue
    if not parts:
        raise ConfigError(
            f"{PREFIX}{name}: has none of the parts train, val and test: choose one with {PREFIX}{name}?split=..."
        )
    return parts


def _load(name: str, arguments: Arguments) -> tuple[Arguments, Any]:
    try:
        return arguments, _dataset(name, arguments)
    except (RuntimeError, FileNotFoundError) as missing:  # "Dataset not found or corrupted"
        signature = inspect.signature(getattr(_datasets(), name).__init__).parameters
        root = dict(arguments).get("root")
        if "download" not in signature:
            raise DataError(
                f"{PREFIX}{name}: not in {root} ({missing}), and torchvision cannot download it: put it there"
            ) from missing
    except TypeError as error:
        raise ConfigError(f"{PREFIX}{name}: {error}; arguments are given as {PREFIX}{name}?NAME=VALUE") from error
    try:
        _dataset.__wrapped__(name, (*arguments, ("download", True)))
        return arguments, _dataset(name, arguments)
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{PREFIX}{name}: not in {root}, and the download failed ({reason}); without internet, copy its files "
            "there (option root)"
        ) from error


@functools.lru_cache(maxsize=4)  # worker processes read many samples of few parts
def _dataset(name: str, arguments: Arguments) -> Any:
    return getattr(_datasets(), name)(**dict(arguments))


def _targets(data: Any, spec: str) -> list[str]:
    """Return the class number of each sample as text; from a list where the data set has one, else sample by sample.

    Raises:
        ConfigError: samples cannot be made, as with arguments that the data set takes, but cannot use.
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
            f"{spec}: torchvision cannot make its samples ({reason}): check the arguments; several numbers are written "
            "NAME=3,64,64"
        ) from error


def _value(text: str) -> Any:
    """Read an argument: whole numbers, and several of them separated by commas, are numbers, all else is text."""
    bare = text[1:-1] if text[:1] + text[-1:] in ("()", "[]") else text  # as Python would write several
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


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "choral" / "torchvision"
