"""What is done to which sample: NumPy arrays, computed on the host from (seed, epoch, row), for either device path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from choral.config import AugmentConfig
from choral.core.counter_rng import uniform
from choral.data.augment.colour import colour_matrices, mixes_channels
from choral.data.augment.geometry import homographies, moves
from choral.data.augment.rand_augment import policy, selections
from choral.data.augment.texture import textures

_STREAM = 12  # tells these random numbers from those of other purposes
_DRAWS = 5  # always all of them: switching one change on does not alter the others


@dataclass(frozen=True)
class Augment:
    """The changes of a config that the device stage makes, all but mixing."""

    config: AugmentConfig
    seed: int = 0

    @property
    def turns(self) -> bool:
        """Whether images are flipped or turned by quarters."""
        return self.config.rot90 or self.config.hflip > 0 or self.config.vflip > 0

    @property
    def colours(self) -> bool:
        """Whether brightness, contrast, saturation, hue or grey change."""
        return self.config.brightness > 0 or self.config.contrast > 0 or mixes_channels(self.config)

    @property
    def active(self) -> bool:
        """Whether anything is done at all."""
        config = self.config
        textured = config.blur > 0 or config.noise > 0 or config.erasing > 0
        return self.turns or self.colours or textured or moves(config) or config.policy != "none"

    def parameters(self, epoch: int, rows: NDArray[np.int64], size: int) -> dict[str, NDArray[Any]]:
        """Return what is done to each sample.

        Args:
            epoch: from 0.
            rows: (b,) int64 rows of the index.
            size: side of the images in pixels.

        Returns:
            "transpose", "hflip", "vflip": (b,) int64, 0 or 1, to be applied in this order; "brightness", "contrast":
            (b,) float32 factors; and of those changes that are switched on what `policy`, `homographies` and `textures`
            return, and "colour": (b, 3, 3) float32, what `colour_matrices` returns.
        """
        config, seed = self.config, self.seed
        hflip, vflip, turn, brightness, contrast = uniform(seed, epoch, rows, _DRAWS, _STREAM).T
        across, down = hflip < config.hflip, vflip < config.vflip
        quarters = np.floor(turn * 4).astype(np.int64) if config.rot90 else np.zeros(len(rows), np.int64)
        # A quarter turn is a transposition and a flip, and a transposition swaps the flips made before it.
        odd = quarters % 2 == 1
        found: dict[str, NDArray[Any]] = {
            "transpose": odd.astype(np.int64),
            "hflip": (np.where(odd, down, across) ^ (quarters >= 2)).astype(np.int64),
            "vflip": (np.where(odd, across, down) ^ ((quarters == 1) | (quarters == 2))).astype(np.int64),
            "brightness": (1 + config.brightness * (2 * brightness - 1)).astype(np.float32),
            "contrast": (1 + config.contrast * (2 * contrast - 1)).astype(np.float32),
        }
        if config.policy != "none":
            found |= policy(config, seed, epoch, rows, size)
        if moves(config):
            found |= homographies(config, seed, epoch, rows, size)
        if mixes_channels(config):
            found["colour"] = colour_matrices(config, seed, epoch, rows)
        return found | textures(config, seed, epoch, rows, size)


def with_selections(parameters: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Add to parameters the positions of those samples that rarer changes are made to, for a batch on a device.

    They are known on the host, so that the device need not be asked how many there are.
    """
    more: dict[str, NDArray[Any]] = {}
    if "policy" in parameters:
        more |= selections(parameters["policy"])
    for name in ("warped", "blurred", "noise"):
        if name in parameters:
            more[f"at_{name}"] = np.flatnonzero(parameters[name])
    return parameters | more
