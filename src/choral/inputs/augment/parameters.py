"""Random changes to a batch, with parameters per sample that depend on (seed, epoch, row) only.

Flips and quarter turns move pixels and never interpolate, so they are exact. Brightness and contrast are one affine map
a sample, which the device stage fuses with normalisation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from choral.errors import ConfigError
from choral.shards.counter import uniform

GREY_WEIGHTS = (0.299, 0.587, 0.114)
"""Of red, green and blue in a grey value (ITU-R BT.601, as Pillow and torchvision)."""

_STREAM = 12  # tells these random numbers from those of other purposes
_DRAWS = 5  # always all of them: switching one change on does not alter the others


@dataclass(frozen=True)
class Augment:
    """Which changes are made, and how strong.

    Raises:
        ConfigError: values that make no sense.
    """

    hflip: float = 0.0
    """Probability of a mirror image."""
    vflip: float = 0.0
    """Probability of turning upside down."""
    rot90: bool = False
    """Turn by 0, 90, 180 or 270 degrees, each as likely. With hflip and vflip of 0.5: all of D4, evenly."""
    brightness: float = 0.0
    """Multiply by a number from [1 - x, 1 + x]."""
    contrast: float = 0.0
    """Multiply the distance from the image's mean grey value by a number from [1 - x, 1 + x]."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("hflip", "vflip", "brightness", "contrast"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"augment {name} {getattr(self, name)}: expected 0 to 1")

    @property
    def turns(self) -> bool:
        """Whether pixels move."""
        return self.rot90 or self.hflip > 0 or self.vflip > 0

    @property
    def colours(self) -> bool:
        """Whether values change."""
        return self.brightness > 0 or self.contrast > 0

    def parameters(self, epoch: int, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Return what is done to each sample.

        Args:
            epoch: from 0.
            rows: (b,) int64 rows of the index.

        Returns:
            "transpose", "hflip", "vflip": (b,) int64, 0 or 1, to be applied in this order; "brightness", "contrast":
            (b,) float32 factors.
        """
        hflip, vflip, turn, brightness, contrast = uniform(self.seed, epoch, rows, _DRAWS, _STREAM).T
        across, down = hflip < self.hflip, vflip < self.vflip
        quarters = np.floor(turn * 4).astype(np.int64) if self.rot90 else np.zeros(len(rows), np.int64)
        # A quarter turn is a transposition and a flip, and a transposition swaps the flips made before it.
        odd = quarters % 2 == 1
        return {
            "transpose": odd.astype(np.int64),
            "hflip": (np.where(odd, down, across) ^ (quarters >= 2)).astype(np.int64),
            "vflip": (np.where(odd, across, down) ^ ((quarters == 1) | (quarters == 2))).astype(np.int64),
            "brightness": (1 + self.brightness * (2 * brightness - 1)).astype(np.float32),
            "contrast": (1 + self.contrast * (2 * contrast - 1)).astype(np.float32),
        }


def turn(images: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
    """Transpose and flip each image by its own parameters.

    Args:
        images: (B, C, H, H), any type and device.
        parameters: as `Augment.parameters`, as tensors on the device of `images`.

    Returns:
        (B, C, H, H), exactly the values of `images`.
    """
    # All images are turned and the right ones chosen: six kernels, none of which waits for the host as indices would.
    for name, axes in (("transpose", None), ("hflip", 3), ("vflip", 2)):
        chosen = parameters[name].bool()[:, None, None, None]
        images = torch.where(chosen, images.transpose(2, 3) if axes is None else images.flip(axes), images)
    return images


def colour_map(parameters: Mapping[str, Any], grey: Any) -> tuple[Any, Any]:
    """Return the (b,) factor and summand of brightness and contrast, for values from 0 to 1.

    Args:
        parameters: as `Augment.parameters`, arrays or tensors.
        grey: (b,) mean grey values of the images as they are, 0 to 1, array or tensor.
    """
    brightness, contrast = parameters["brightness"], parameters["contrast"]
    return brightness * contrast, brightness * grey * (1 - contrast)


def apply(images: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
    """Change each image by its own parameters; what the device stage does before it normalises.

    Args:
        images: (B, 3, H, H) float, RGB, 0 to 1, not normalised.
        parameters: as `Augment.parameters`, as tensors on the device of `images`.

    Returns:
        (B, 3, H, H), 0 to 1.
    """
    images = turn(images, parameters)
    red, green, blue = images.mean((2, 3)).unbind(1)
    grey = GREY_WEIGHTS[0] * red + GREY_WEIGHTS[1] * green + GREY_WEIGHTS[2] * blue
    factor, summand = colour_map(parameters, grey)
    changed: Tensor = images * factor[:, None, None, None] + summand[:, None, None, None]
    return changed.clamp_(0, 1)
