"""Transforms of Albumentations on decoded images, in the workers, seeded by (seed, epoch, row).

Albumentations takes five seconds to import, torch included, so it is imported only where a config names transforms.
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

_STREAM = 48  # tells these random numbers from those of other purposes
_TRIALS = 3  # images that each transform is tried on


class HostTransforms:
    """The host transforms of a config, one after the other; may be used by several threads, and be pickled.

    Args:
        transforms: checked by `check_host_transforms`.
        seed: of the run.
    """

    def __init__(self, transforms: Sequence[HostTransform], seed: int) -> None:
        self._transforms, self._seed = tuple(transforms), seed
        self._own = threading.local()  # a transform holds its random state: each thread has its own

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what it was made of."""
        return (HostTransforms, (self._transforms, self._seed))

    def seeds(self, epoch: int, rows: NDArray[np.int64]) -> list[list[int]]:
        """Return a seed for each transform, for each of (b,) rows."""
        draws = uniform(self._seed, epoch, rows, len(self._transforms), _STREAM)
        numbers: list[list[int]] = (draws * 2**53).astype(np.int64).tolist()
        return numbers

    def apply(self, image: NDArray[np.uint8], seeds: Sequence[int]) -> None:
        """Change an image in place.

        Args:
            image: (S, S, 3) uint8 RGB.
            seeds: one row of `seeds`.

        Raises:
            ChoralError: a transform failed, or returned something else than such an image.
        """
        if not hasattr(self._own, "built"):
            self._own.built = [_built(transform, f"augment.host[{n}]") for n, transform in enumerate(self._transforms)]
        changed = image
        for number, (transform, seed) in enumerate(zip(self._own.built, seeds, strict=True)):
            transform.set_random_seed(seed)
            changed = _called(transform, changed, f"augment.host[{number}] ({self._transforms[number].name})")
        np.copyto(image, changed)


def check_host_transforms(transforms: Sequence[HostTransform], size: int) -> None:
    """Find what would fail in the workers: build each transform and try it on images of random pixels.

    Args:
        transforms: of the config.
        size: side of the images in pixels.

    Raises:
        ConfigError: an unknown transform or argument, with the nearest; a wrong value; a transform that wants masks, boxes
            or other images, or that changes an image's size or type.
    """
    for number, transform in enumerate(transforms):
        where = f"augment.host[{number}]"
        _check_arguments(transform, where)
        built = _built(transform, where)
        built.p = 1.0
        for trial in range(_TRIALS):
            image = np.random.default_rng(trial).integers(0, 256, (size, size, 3), dtype=np.uint8)
            built.set_random_seed(trial)
            try:
                _called(built, image, f"{where} ({transform.name})")
            except ChoralError as error:
                raise ConfigError(
                    f"{error}. Expected a transform that needs the image alone, and keeps its size"
                ) from None


def _albumentations() -> Any:
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # or importing it asks a server for its newest version
    import albumentations

    return albumentations


def _class_of(name: str, where: str) -> Any:
    library = _albumentations()
    kinds = {
        key: kind
        for key, kind in vars(library).items()
        if inspect.isclass(kind) and issubclass(kind, library.BasicTransform) and hasattr(kind, "InitSchema")
    }
    abstract = ("BasicTransform", "DualTransform", "ImageOnlyTransform", "NoOp", "Transform3D")
    known = {key: kind for key, kind in kinds.items() if key not in abstract}
    if name not in known:
        hint = did_you_mean(name, known, count=3) or " They are listed on https://albumentations.ai"
        raise ConfigError(f"{where}.name: Albumentations has no transform '{name}'.{hint}")
    return known[name]


def _check_arguments(transform: HostTransform, where: str) -> None:
    known = list(inspect.signature(_class_of(transform.name, where)).parameters)
    for name in transform.arguments:
        if name not in known:
            hint = did_you_mean(name, known) or f" It takes {', '.join(known)}."
            raise ConfigError(f"{where}.arguments.{name}: {transform.name} has no such argument.{hint}")


def _built(transform: HostTransform, where: str) -> Any:
    kind = _class_of(transform.name, where)
    try:
        return kind(**transform.arguments)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where}.arguments: {transform.name}: {_short(str(error))}") from None


def _short(message: str) -> str:
    """Return the fields and reasons of a message of pydantic, without its addresses and types."""
    lines = [line for line in message.splitlines() if "errors.pydantic.dev" not in line]
    if not lines or "validation error" not in lines[0]:
        return message
    told = (f": {line.split(' [type=')[0].strip()}" if line[0] == " " else f"; {line}" for line in lines[1:])
    return "".join(told).removeprefix("; ")


def _called(transform: Any, image: NDArray[np.uint8], what: str) -> NDArray[np.uint8]:
    try:
        changed = transform(image=image)["image"]
    except Exception as error:
        raise ChoralError(f"{what}: {type(error).__name__}: {error}") from error
    if not isinstance(changed, np.ndarray) or changed.dtype != np.uint8 or changed.shape != image.shape:
        found = f"{tuple(changed.shape)}, {changed.dtype}"
        raise ChoralError(f"{what} made of an image of {image.shape}, uint8, one of {found}")
    return changed
