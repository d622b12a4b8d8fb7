"""Batches changed by a probe, on their device: the operations of `choral.data.augment`, at a strength instead of a draw.

Images are taken back to the 256 levels that they were normalised from, changed as training changes them, and normalised
again. What is chosen for a sample (a direction, a place, noise) is the same at every strength of a family, so that a curve
follows one and the same image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from choral.analysis.probes.families import IDENTITY, Probe
from choral.analysis.probes.jpeg import compressed
from choral.analysis.probes.plan import SEED, probe_of
from choral.core.counter_rng import uniform
from choral.data.augment import colour
from choral.data.augment.geometry import homography_of, turn, warp
from choral.data.augment.mixing import inside
from choral.data.augment.texture import REFERENCE_SIDE, add_noise, blur, gaussian_kernels, noise_keys, rectangles
from choral.data.loading.input_spec import InputSpec
from choral.data.shards.index import Index
from choral.data.shards.splits import key_hashes

_STREAM = 61  # tells these random numbers from those of other purposes
_DRAWS = 8
_SHARPENED_SIGMA = 2.0  # pixels of a side of 224


@dataclass(frozen=True)
class Perturbed:
    """Shows batches as probes change them, in place of test-time views.

    Attributes:
        index: whose keys decide what is chosen for a sample.
    """

    index: Index

    def __call__(self, images: Tensor, view: str, input_spec: InputSpec, rows: NDArray[np.int64]) -> Tensor:
        """Return (B, 3, S, S) of the same type as (B, 3, S, S) normalised images, of (B,) rows of the index.

        Args:
            images: of the look; returned as they are by the identity.
            view: the name of a probe.
            look: whose mean and standard deviation they are normalised by.
            rows: of the samples.
        """
        if view == IDENTITY:
            return images
        probe = probe_of(view)
        return perturb(images, probe, draws_of(probe.family, self.index.keys(rows)), input_spec.mean, input_spec.std)


@dataclass(frozen=True)
class Draws:
    """What is chosen for each sample of a batch under a family.

    Attributes:
        uniform: (8, b) from [0, 1).
        noise: (b,) keys of noise.
    """

    uniform: NDArray[np.float64]
    noise: NDArray[np.int64]

    @property
    def signs(self) -> NDArray[np.float64]:
        """(8, b) of -1 and 1."""
        return np.where(self.uniform < 0.5, -1.0, 1.0)


def draws_of(family: str, keys: Sequence[str]) -> Draws:
    """Return what is chosen for samples of these keys."""
    hashes = key_hashes(keys, SEED, f"probe {family}")
    chosen = uniform(SEED, 0, hashes.view(np.int64), _DRAWS, _STREAM)
    return Draws(np.ascontiguousarray(chosen.T), noise_keys(SEED, 0, hashes))


def perturb(images: Tensor, probe: Probe, draws: Draws, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return images changed by a probe.

    Args:
        images: (B, 3, S, S) float, normalised, of any device; of pixels that had 256 levels.
        probe: what is done to all of them.
        draws: of the family and the samples' keys.
        mean, std: (3,) by which they are normalised.

    Returns:
        (B, 3, S, S) of the same type and memory format, the mean colour where a rectangle is replaced.
    """
    if probe.family in _TURNS:
        return _TURNS[probe.family](images, draws)
    centre, spread = (images.new_tensor(values).view(3, 1, 1) for values in (mean, std))
    levels = ((images * spread + centre) * 255).round_().clamp_(0, 255).to(torch.uint8)
    changed = _CHANGES[probe.family](levels, probe.sign * probe.strength, draws)
    pixels = changed.to(images.dtype).div_(255) if changed.dtype == torch.uint8 else changed
    pixels = pixels.sub(centre).div_(spread)
    if probe.family == "occlusion":
        pixels = pixels.masked_fill(_rectangles(levels, probe.strength, draws), 0)
    last = images.is_contiguous(memory_format=torch.channels_last)
    return pixels.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _warped(
    levels: Tensor,
    draws: Draws,
    angle: float = 0.0,
    zoom: float = 1.0,
    shear: float = 0.0,
    move: float = 0.0,
    corners: float = 0.0,
) -> Tensor:
    """Resample: angle in degrees; shear, move and corners in a direction of each sample's own, shares of the side."""
    size, count = levels.shape[-1], len(levels)
    matrices = homography_of(
        size,
        np.full(count, angle),
        np.full(count, zoom),
        shear * draws.signs[:2],
        move * size * draws.signs[:2],
        corners * size * draws.signs.T.reshape(-1, 4, 2) if corners else None,
    )
    return warp(levels, torch.from_numpy(matrices.astype(np.float32)).to(levels.device), None)


def _coloured(levels: Tensor, brightness: float = 1.0, contrast: float = 1.0) -> Tensor:
    factors = {"brightness": brightness, "contrast": contrast}
    parameters = {name: torch.full((len(levels),), value, device=levels.device) for name, value in factors.items()}
    return colour.apply(levels.float().div_(255), parameters)


def _recoloured(levels: Tensor, saturation: float, hue: NDArray[np.float64]) -> Tensor:
    matrices = torch.from_numpy(colour.colour_matrix(np.full(len(levels), saturation), hue)).to(levels.device)
    summand = torch.zeros(len(levels), device=levels.device)
    return colour.transform(levels.float().div_(255), matrices, summand).clamp_(0, 1)


def _saturated(levels: Tensor, saturation: float) -> Tensor:
    return _recoloured(levels, saturation, np.zeros(len(levels)))


def _blurred(levels: Tensor, sigma: float) -> Tensor:
    """Blur by a standard deviation in pixels of a side of 224."""
    size = levels.shape[-1]
    own = sigma * size / REFERENCE_SIDE
    kernels = torch.from_numpy(gaussian_kernels(np.full(len(levels), own), own, size))
    return blur(levels.float().div_(255), kernels.to(levels.device))


def _sharpened(levels: Tensor, strength: float) -> Tensor:
    pixels = levels.float().div_(255)
    return torch.lerp(_blurred(levels, _SHARPENED_SIGMA), pixels, 1 + strength).clamp_(0, 1)


def _noisy(levels: Tensor, std: float, draws: Draws) -> Tensor:
    device = levels.device
    parameters = {
        "noise": torch.full((len(levels),), std, device=device),
        "noise_key": torch.from_numpy(draws.noise).to(device),
    }
    return add_noise(levels.float().div_(255), parameters)


def _rectangles(levels: Tensor, area: float, draws: Draws) -> Tensor:
    """Return (B, 1, S, S) bool, which pixels are replaced."""
    size = levels.shape[-1]
    boxes = rectangles(np.full(len(levels), area), draws.uniform[:3], size)
    return inside(torch.from_numpy(boxes).to(levels.device), size)


def _turned(images: Tensor, draws: Draws) -> Tensor:
    """Turn by one, two or three quarters, each as likely."""
    quarters = 1 + np.floor(3 * draws.uniform[0]).astype(np.int64)
    flips = {"transpose": quarters % 2 == 1, "hflip": quarters >= 2, "vflip": quarters <= 2}
    chosen = {name: torch.from_numpy(values).to(images.device) for name, values in flips.items()}
    return turn(images, chosen)


_TURNS: dict[str, Callable[[Tensor, Draws], Tensor]] = {
    "hflip": lambda images, draws: images.flip(3),
    "vflip": lambda images, draws: images.flip(2),
    "rot90": _turned,
}
_CHANGES: dict[str, Callable[[Tensor, float, Draws], Tensor]] = {
    "smaller": lambda levels, x, draws: _warped(levels, draws, zoom=1 - x),
    "larger": lambda levels, x, draws: _warped(levels, draws, zoom=1 + x),
    "rotation": lambda levels, x, draws: _warped(levels, draws, angle=x),
    "translation": lambda levels, x, draws: _warped(levels, draws, move=x),
    "shear": lambda levels, x, draws: _warped(levels, draws, shear=x),
    "perspective": lambda levels, x, draws: _warped(levels, draws, corners=x),
    "darker": lambda levels, x, draws: _coloured(levels, brightness=1 - x),
    "lighter": lambda levels, x, draws: _coloured(levels, brightness=1 + x),
    "low_contrast": lambda levels, x, draws: _coloured(levels, contrast=1 - x),
    "high_contrast": lambda levels, x, draws: _coloured(levels, contrast=1 + x),
    "pale": lambda levels, x, draws: _saturated(levels, 1 - x),
    "vivid": lambda levels, x, draws: _saturated(levels, 1 + x),
    "hue": lambda levels, x, draws: _recoloured(levels, 1.0, x * draws.signs[0]),
    "blur": lambda levels, x, draws: _blurred(levels, x),
    "sharpening": lambda levels, x, draws: _sharpened(levels, x),
    "noise": _noisy,
    "compression": lambda levels, x, draws: compressed(levels, round(100 - x)),
    "occlusion": lambda levels, x, draws: levels,
}
