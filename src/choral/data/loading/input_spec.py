"""What a model expects as input: how the host prepares an image, and how the device normalizes it. Needs no torch.

Models with different specs can share work on a sample. All share its decoded image; specs that differ only in mean and
standard deviation share the resized pixels, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from choral.data.loading.crop import Crop

if TYPE_CHECKING:
    from choral.data.loading.resize import Resize


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of each channel (RGB) that a model's weights expect, for pixel values in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class ImageSpec:
    """How a decoded image becomes a square uint8 image."""

    size: int
    """Side in pixels."""
    crop: Crop
    resize: Resize


@dataclass(frozen=True)
class InputSpec:
    """How a decoded image becomes the input of a model."""

    image_spec: ImageSpec
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Of each channel, for pixel values in [0, 1]."""
    channels_last: bool = True
    """Memory format of the batches."""


def distinct_image_specs(input_specs: Sequence[InputSpec]) -> tuple[ImageSpec, ...]:
    """Return the image specs of some input specs without duplicates, in order of first occurrence."""
    return tuple(dict.fromkeys(input_spec.image_spec for input_spec in input_specs))
