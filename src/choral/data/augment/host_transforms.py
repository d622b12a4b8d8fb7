"""Albumentations transforms of decoded images, in the workers, seeded by (seed, epoch, row).

Albumentations takes five seconds to import, torch included, so it is imported only if a config names transforms.
"""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from choral.config.augment import HostTransform
from choral.core.counter_rng import uniform
from choral.core.errors import ChoralError, ConfigError, did_you_mean

_STREAM = 48  # random stream of these transforms
_TRIALS = 3  # images that each transform is tested on


class HostTransforms:
    """The host transforms of a config, applied one after the other. Thread-safe and picklable.

    Args:
        transforms: checked by `check_host_transforms`.
        seed: of the run.
    """

    def __init__(self, transforms: Sequence[HostTransform], seed: int) -> None:
        self._transforms, self._seed = tuple(transforms), seed
        self._thread = threading.local()  # transforms hold random state: each thread builds its own

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the arguments."""
        return (HostTransforms, (self._transforms, self._seed))

    def seeds(self, epoch: int, rows: NDArray[np.int64]) -> list[list[int]]:
        """Return a seed per transform for each of (b,) rows."""
        draws = uniform(self._seed, epoch, rows, len(self._transforms), _STREAM)
        seeds: list[list[int]] = (draws * 2**53).astype(np.int64).tolist()
        return seeds

    def apply(self, image: NDArray[np.uint8], seeds: Sequence[int]) -> None:
        """Change an image in place.

        Args:
            image: (S, S, 3) uint8 RGB.
            seeds: one row of `seeds`.

        Raises:
            ChoralError: a transform failed, or changed the shape or dtype of the image.
        """
        if not hasattr(self._thread, "transforms"):
            self._thread.transforms = [
                _build(transform, f"augment.host[{n}]") for n, transform in enumerate(self._transforms)
            ]
        changed = image
        for number, (transform, seed) in enumerate(zip(self._thread.transforms, seeds, strict=True)):
            transform.set_random_seed(seed)
            changed = _call(transform, changed, f"augment.host[{number}] ({self._transforms[number].name})")
        np.copyto(image, changed)


def check_host_transforms(transforms: Sequence[HostTransform], size: int) -> None:
    """Detect errors before the workers start: build each transform and test it on images of random pixels.

    Args:
        transforms: of the config.
        size: side of the images in pixels.

    Raises:
        ConfigError: an unknown transform or argument (suggests the nearest), an invalid value, or a transform that
            needs masks, boxes or other images, or changes the size or dtype of an image.
    """
    for number, transform in enumerate(transforms):
        where = f"augment.host[{number}]"
        _check_arguments(transform, where)
        built = _build(transform, where)
        built.p = 1.0
        for trial in range(_TRIALS):
            image = np.random.default_rng(trial).integers(0, 256, (size, size, 3), dtype=np.uint8)
            built.set_random_seed(trial)
            try:
                _call(built, image, f"{where} ({transform.name})")
            except ChoralError as error:
                raise ConfigError(
                    f"{error}. Expected a transform that needs only the image, and keeps its size"
                ) from None


def _albumentations() -> Any:
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # otherwise, the import asks a server for the newest version
    import albumentations

    return albumentations


def _find_class(name: str, where: str) -> Any:
    library = _albumentations()
    kinds = {
        key: kind
        for key, kind in vars(library).items()
        if inspect.isclass(kind) and issubclass(kind, library.BasicTransform) and hasattr(kind, "InitSchema")
    }
    abstract = ("BasicTransform", "DualTransform", "ImageOnlyTransform", "NoOp", "Transform3D")
    available = {key: kind for key, kind in kinds.items() if key not in abstract}
    if name not in available:
        hint = did_you_mean(name, available, count=3) or " They are listed on https://albumentations.ai"
        raise ConfigError(f"{where}.name: Albumentations has no transform '{name}'.{hint}")
    return available[name]


def _check_arguments(transform: HostTransform, where: str) -> None:
    available = list(inspect.signature(_find_class(transform.name, where)).parameters)
    for name in transform.arguments:
        if name not in available:
            hint = did_you_mean(name, available) or f" It takes {', '.join(available)}."
            raise ConfigError(f"{where}.arguments.{name}: {transform.name} has no such argument.{hint}")


def _build(transform: HostTransform, where: str) -> Any:
    kind = _find_class(transform.name, where)
    try:
        return kind(**transform.arguments)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where}.arguments: {transform.name}: {_short(str(error))}") from None


def _short(message: str) -> str:
    """Return the fields and reasons of a pydantic error, without its URLs and types."""
    lines = [line for line in message.splitlines() if "errors.pydantic.dev" not in line]
    if not lines or "validation error" not in lines[0]:
        return message
    parts = (f": {line.split(' [type=')[0].strip()}" if line[0] == " " else f"; {line}" for line in lines[1:])
    return "".join(parts).removeprefix("; ")


def _call(transform: Any, image: NDArray[np.uint8], where: str) -> NDArray[np.uint8]:
    try:
        changed = transform(image=image)["image"]
    except Exception as error:
        raise ChoralError(f"{where}: {type(error).__name__}: {error}") from error
    if not isinstance(changed, np.ndarray) or changed.dtype != np.uint8 or changed.shape != image.shape:
        result = f"{tuple(changed.shape)}, {changed.dtype}" if hasattr(changed, "dtype") else type(changed).__name__
        raise ChoralError(f"{where} changed an image of {image.shape}, uint8, to {result}")
    return changed
