"""The crop of an image, as a function of (seed, epoch, row) and the size of the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from choral.core.counter_rng import uniform
from choral.core.errors import ConfigError

_ATTEMPTS = 10  # as in torchvision; then the largest centred part with an allowed ratio is taken
_STREAM = 11  # random stream of the crops
_KINDS = ("resized", "center", "random")


class Box(NamedTuple):
    """A part of an image, in whole pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Crop:
    """How an image is cropped to a square.

    Raises:
        ConfigError: a value is out of range.
    """

    kind: Literal["resized", "center", "random"] = "resized"
    """resized: the whole image, without keeping its aspect ratio. center: the short side is resized to size / crop_pct,
    then the central square is cut out, as in timm's evaluation. random: a random part, as in torchvision's
    RandomResizedCrop."""
    crop_pct: float = 0.875
    """center only."""
    scale: tuple[float, float] = (0.08, 1.0)
    """random only: fraction of the image area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """random only: width / height."""
    shrink: bool = False
    """Let the decoder shrink a JPEG by 2, 4 or 8 as long as the crop stays larger than the result. It is 1.5 x as fast
    on photos of 1600 x 1200, but the pixels differ from those of a full decode. Meant for training; refused with a
    decoded cache, so that a cache never changes a sample."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.kind not in _KINDS:
            raise ConfigError(f"crop kind '{self.kind}': expected one of {', '.join(_KINDS)}")
        if not 0 < self.crop_pct <= 1:
            raise ConfigError(f"crop_pct {self.crop_pct}: expected more than 0 and at most 1")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ConfigError(f"crop scale {self.scale}: expected 0 < low <= high <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ConfigError(f"crop ratio {self.ratio}: expected 0 < low <= high")

    def draws(self, epoch: int, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the random numbers that `box` takes: (b, 40) in [0, 1) for random crops, (b, 0) for the others."""
        return uniform(self.seed, epoch, rows, 4 * _ATTEMPTS if self.kind == "random" else 0, _STREAM)

    def box(self, height: int, width: int, draws: Sequence[float]) -> Box:
        """Return the part of a height x width image to resize: the whole image unless the crop is random.

        Args:
            height, width: size of the image, at least 1.
            draws: one row of `draws`, as Python floats, which are faster here than NumPy scalars.
        """
        if self.kind != "random":
            return Box(0, 0, height, width)
        log_low, log_high = math.log(self.ratio[0]), math.log(self.ratio[1])
        low, high = self.scale
        for at in range(0, 4 * _ATTEMPTS, 4):
            area = height * width * (low + (high - low) * draws[at])
            ratio = math.exp(log_low + (log_high - log_low) * draws[at + 1])
            part_width, part_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < part_width <= width and 0 < part_height <= height:
                top = int(draws[at + 2] * (height - part_height + 1))
                left = int(draws[at + 3] * (width - part_width + 1))
                return Box(top, left, part_height, part_width)
        return self._largest_box(height, width)

    def _largest_box(self, height: int, width: int) -> Box:
        part_width = max(1, min(width, round(height * self.ratio[1])))
        part_height = max(1, min(height, round(width / self.ratio[0])))
        return Box((height - part_height) // 2, (width - part_width) // 2, part_height, part_width)

    def resized_shape(self, box: Box, size: int) -> tuple[int, int]:
        """Return the (height, width) to which the box is resized before the central size x size pixels are cut out."""
        if self.kind != "center":
            return size, size
        short = math.floor(size / self.crop_pct)
        if box.height <= box.width:
            return short, int(short * box.width / box.height)
        return int(short * box.height / box.width), short
