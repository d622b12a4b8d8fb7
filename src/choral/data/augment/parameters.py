"""The augmentation parameters of samples: NumPy arrays, computed on the host from (seed, epoch, row)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from choral.config import AugmentConfig
from choral.core.counter_rng import uniform
from choral.data.augment.colour import draw_colour_matrices, mixes_channels
from choral.data.augment.geometry import changes_geometry, draw_homographies
from choral.data.augment.rand_augment import draw_policy, operation_positions
from choral.data.augment.texture import draw_textures

_STREAM = 12  # random stream of this augmentation
_DRAWS = 5  # always all of them, so that switching one change on does not alter the others


@dataclass(frozen=True)
class Augment:
    """The augmentations of a config that the device stage applies, except mixing."""

    config: AugmentConfig
    seed: int = 0

    @property
    def flips(self) -> bool:
        """Whether images are flipped or rotated by quarter turns."""
        return self.config.rot90 or self.config.hflip > 0 or self.config.vflip > 0

    @property
    def changes_colours(self) -> bool:
        """Whether brightness, contrast, saturation, hue or grey change."""
        return self.config.brightness > 0 or self.config.contrast > 0 or mixes_channels(self.config)

    @property
    def active(self) -> bool:
        """Whether the config augments at all."""
        config = self.config
        textured = config.blur > 0 or config.noise > 0 or config.erasing > 0
        return self.flips or self.changes_colours or textured or changes_geometry(config) or config.policy != "none"

    def parameters(self, epoch: int, rows: NDArray[np.int64], size: int) -> dict[str, NDArray[Any]]:
        """Return the augmentation parameters of samples.

        Args:
            epoch: from 0.
            rows: (b,) int64 rows of the index.
            size: side of the images in pixels.

        Returns:
            "transpose", "hflip", "vflip": (b,) int64, 0 or 1, to be applied in this order; "brightness", "contrast":
            (b,) float32 factors. For changes that are switched on, also what `draw_policy`, `draw_homographies` and
            `draw_textures` return, and "colour": (b, 3, 3) float32, see `draw_colour_matrices`.
        """
        config, seed = self.config, self.seed
        hflip, vflip, quarter, brightness, contrast = uniform(seed, epoch, rows, _DRAWS, _STREAM).T
        horizontal, vertical = hflip < config.hflip, vflip < config.vflip
        quarters = np.floor(quarter * 4).astype(np.int64) if config.rot90 else np.zeros(len(rows), np.int64)
        # A quarter turn is a transposition and a flip. A transposition swaps the flips that come before it.
        odd = quarters % 2 == 1
        parameters: dict[str, NDArray[Any]] = {
            "transpose": odd.astype(np.int64),
            "hflip": (np.where(odd, vertical, horizontal) ^ (quarters >= 2)).astype(np.int64),
            "vflip": (np.where(odd, horizontal, vertical) ^ ((quarters == 1) | (quarters == 2))).astype(np.int64),
            "brightness": (1 + config.brightness * (2 * brightness - 1)).astype(np.float32),
            "contrast": (1 + config.contrast * (2 * contrast - 1)).astype(np.float32),
        }
        if config.policy != "none":
            parameters |= draw_policy(config, seed, epoch, rows, size)
        if changes_geometry(config):
            parameters |= draw_homographies(config, seed, epoch, rows, size)
        if mixes_channels(config):
            parameters["colour"] = draw_colour_matrices(config, seed, epoch, rows)
        return parameters | draw_textures(config, seed, epoch, rows, size)


def add_positions(parameters: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Add the positions of the samples that each of the rarer changes applies to, for a batch on a device.

    Computing them on the host avoids a synchronization: their number is known without reading it from the device.
    """
    positions: dict[str, NDArray[Any]] = {}
    if "policy" in parameters:
        positions |= operation_positions(parameters["policy"])
    for name in ("warped", "blurred", "noise"):
        if name in parameters:
            positions[f"at_{name}"] = np.flatnonzero(parameters[name])
    return parameters | positions
