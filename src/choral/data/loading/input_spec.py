"""What networks are shown of an image: how the host prepares it, and how the device normalises that. Needs no torch.

Several looks at a sample share its decode, and those that differ in mean and standard deviation alone share its pixels, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from choral.data.loading.crop import Crop

if TYPE_CHECKING:
    from choral.data.loading.resize import Resize


@dataclass(frozen=True)
class ImageSpec:
    """How a decoded image becomes a square of pixels."""

    size: int
    """Side in pixels."""
    crop: Crop
    resize: Resize


@dataclass(frozen=True)
class InputSpec:
    """What a network is shown."""

    form: ImageSpec
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Of the three channels, for values from 0 to 1."""
    channels_last: bool = True
    """Memory format of the batches."""


def image_specs_of(input_specs: Sequence[InputSpec]) -> tuple[ImageSpec, ...]:
    """Return the different forms that looks need, in the order in which they come."""
    return tuple(dict.fromkeys(input_spec.form for input_spec in input_specs))
