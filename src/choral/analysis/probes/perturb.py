"""Perturbs batches on their device: the operations of `choral.data.augment` at a fixed strength instead of a random one.

Images are converted back to 256 levels, perturbed as training does, and normalised again. The random choices for a sample
(direction, position, noise) are the same at every strength of a family, so that a curve follows the same image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from choral.analysis.probes.families import IDENTITY, Probe
from choral.analysis.probes.jpeg import compress_jpeg
from choral.analysis.probes.plan import SEED, parse_probe
from choral.core.counter_rng import uniform
from choral.data.augment import colour
from choral.data.augment.geometry import compute_homographies, transpose_and_flip, warp_batch
from choral.data.augment.mixing import box_mask
from choral.data.augment.texture import (
    REFERENCE_SIDE,
    add_noise_to_batch,
    blur_batch,
    compute_gaussian_kernels,
    compute_noise_keys,
    compute_rectangles,
)
from choral.data.loading.input_spec import InputSpec
from choral.data.shards.index import Index
from choral.data.shards.splits import hash_keys

_STREAM = 61  # separates these random numbers from those of other purposes
_DRAWS = 8
_SHARPENED_SIGMA = 2.0  # pixels at a side of 224


@dataclass(frozen=True)
class Perturbation:
    """Applies probes to batches, in place of test-time views.

    Attributes:
        index: of the samples, whose keys determine their random choices.
    """

    index: Index

    def __call__(self, images: Tensor, view: str, input_spec: InputSpec, rows: NDArray[np.int64]) -> Tensor:
        """Return perturbed images, (B, 3, S, S) like the images.

        Args:
            images: (B, 3, S, S), normalised; returned unchanged by the identity.
            view: name of a probe.
            input_spec: with the mean and standard deviation of the normalisation.
            rows: (B,) rows of the index.
        """
        if view == IDENTITY:
            return images
        probe = parse_probe(view)
        return perturb(images, probe, make_draws(probe.family, self.index.keys(rows)), input_spec.mean, input_spec.std)


@dataclass(frozen=True)
class Draws:
    """The random choices for each sample of a batch, for one family.

    Attributes:
        uniform: (8, B) in [0, 1).
        noise: (B,) keys of the noise generator.
    """

    uniform: NDArray[np.float64]
    noise: NDArray[np.int64]

    @property
    def signs(self) -> NDArray[np.float64]:
        """(8, B) of -1 and 1."""
        return np.where(self.uniform < 0.5, -1.0, 1.0)


def make_draws(family: str, keys: Sequence[str]) -> Draws:
    """Return the random choices for samples with these keys."""
    hashes = hash_keys(keys, SEED, f"probe {family}")
    draws = uniform(SEED, 0, hashes.view(np.int64), _DRAWS, _STREAM)
    return Draws(np.ascontiguousarray(draws.T), compute_noise_keys(SEED, 0, hashes))


def perturb(images: Tensor, probe: Probe, draws: Draws, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return images perturbed by a probe.

    Args:
        images: (B, 3, S, S) float, normalised, on any device, from pixels with 256 levels.
        probe: applied to all of them.
        draws: of the family and the samples' keys.
        mean, std: (3,) of the normalisation.

    Returns:
        (B, 3, S, S) of the same type and memory format; an occluding rectangle has the mean colour.
    """
    if probe.family in _FLIPS_AND_ROTATIONS:
        return _FLIPS_AND_ROTATIONS[probe.family](images, draws)
    centre, spread = (images.new_tensor(values).view(3, 1, 1) for values in (mean, std))
    levels = ((images * spread + centre) * 255).round_().clamp_(0, 255).to(torch.uint8)
    changed = _PERTURBATIONS[probe.family](levels, probe.sign * probe.strength, draws)
    pixels = changed.to(images.dtype).div_(255) if changed.dtype == torch.uint8 else changed
    pixels = pixels.sub(centre).div_(spread)
    if probe.family == "occlusion":
        pixels = pixels.masked_fill(_rectangle_mask(levels, probe.strength, draws), 0)
    last = images.is_contiguous(memory_format=torch.channels_last)
    return pixels.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _warp(
    levels: Tensor,
    draws: Draws,
    angle: float = 0.0,
    zoom: float = 1.0,
    shear: float = 0.0,
    shift: float = 0.0,
    corners: float = 0.0,
) -> Tensor:
    """Resample; angle in degrees, shear, shift and corners as shares of the side in a random direction per sample."""
    size, count = levels.shape[-1], len(levels)
    matrices = compute_homographies(
        size,
        np.full(count, angle),
        np.full(count, zoom),
        shear * draws.signs[:2],
        shift * size * draws.signs[:2],
        corners * size * draws.signs.T.reshape(-1, 4, 2) if corners else None,
    )
    return warp_batch(levels, torch.from_numpy(matrices.astype(np.float32)).to(levels.device), None)


def _scale_levels(levels: Tensor, brightness: float = 1.0, contrast: float = 1.0) -> Tensor:
    factors = {"brightness": brightness, "contrast": contrast}
    parameters = {name: torch.full((len(levels),), value, device=levels.device) for name, value in factors.items()}
    return colour.adjust_colours(levels.float().div_(255), parameters)


def _transform_colour(levels: Tensor, saturation: float, hue: NDArray[np.float64]) -> Tensor:
    matrices = torch.from_numpy(colour.compute_colour_matrices(np.full(len(levels), saturation), hue)).to(levels.device)
    summand = torch.zeros(len(levels), device=levels.device)
    return colour.apply_colour_matrices(levels.float().div_(255), matrices, summand).clamp_(0, 1)


def _saturate(levels: Tensor, saturation: float) -> Tensor:
    return _transform_colour(levels, saturation, np.zeros(len(levels)))


def _blur(levels: Tensor, sigma: float) -> Tensor:
    """Blur by a standard deviation in pixels at a side of 224."""
    size = levels.shape[-1]
    scaled = sigma * size / REFERENCE_SIDE
    kernels = torch.from_numpy(compute_gaussian_kernels(np.full(len(levels), scaled), scaled, size))
    return blur_batch(levels.float().div_(255), kernels.to(levels.device))


def _sharpen(levels: Tensor, strength: float) -> Tensor:
    pixels = levels.float().div_(255)
    return torch.lerp(_blur(levels, _SHARPENED_SIGMA), pixels, 1 + strength).clamp_(0, 1)


def _add_noise(levels: Tensor, std: float, draws: Draws) -> Tensor:
    device = levels.device
    parameters = {
        "noise": torch.full((len(levels),), std, device=device),
        "noise_key": torch.from_numpy(draws.noise).to(device),
    }
    return add_noise_to_batch(levels.float().div_(255), parameters)


def _rectangle_mask(levels: Tensor, area: float, draws: Draws) -> Tensor:
    """Return the (B, 1, S, S) bool mask of occluded pixels."""
    size = levels.shape[-1]
    boxes = compute_rectangles(np.full(len(levels), area), draws.uniform[:3], size)
    return box_mask(torch.from_numpy(boxes).to(levels.device), size)


def _rotate_quarters(images: Tensor, draws: Draws) -> Tensor:
    """Rotate by one, two or three quarter turns, each equally likely."""
    quarters = 1 + np.floor(3 * draws.uniform[0]).astype(np.int64)
    flips = {"transpose": quarters % 2 == 1, "hflip": quarters >= 2, "vflip": quarters <= 2}
    masks = {name: torch.from_numpy(values).to(images.device) for name, values in flips.items()}
    return transpose_and_flip(images, masks)


_FLIPS_AND_ROTATIONS: dict[str, Callable[[Tensor, Draws], Tensor]] = {
    "hflip": lambda images, draws: images.flip(3),
    "vflip": lambda images, draws: images.flip(2),
    "rot90": _rotate_quarters,
}
_PERTURBATIONS: dict[str, Callable[[Tensor, float, Draws], Tensor]] = {
    "smaller": lambda levels, x, draws: _warp(levels, draws, zoom=1 - x),
    "larger": lambda levels, x, draws: _warp(levels, draws, zoom=1 + x),
    "rotation": lambda levels, x, draws: _warp(levels, draws, angle=x),
    "translation": lambda levels, x, draws: _warp(levels, draws, shift=x),
    "shear": lambda levels, x, draws: _warp(levels, draws, shear=x),
    "perspective": lambda levels, x, draws: _warp(levels, draws, corners=x),
    "darker": lambda levels, x, draws: _scale_levels(levels, brightness=1 - x),
    "lighter": lambda levels, x, draws: _scale_levels(levels, brightness=1 + x),
    "low_contrast": lambda levels, x, draws: _scale_levels(levels, contrast=1 - x),
    "high_contrast": lambda levels, x, draws: _scale_levels(levels, contrast=1 + x),
    "pale": lambda levels, x, draws: _saturate(levels, 1 - x),
    "vivid": lambda levels, x, draws: _saturate(levels, 1 + x),
    "hue": lambda levels, x, draws: _transform_colour(levels, 1.0, x * draws.signs[0]),
    "blur": lambda levels, x, draws: _blur(levels, x),
    "sharpening": lambda levels, x, draws: _sharpen(levels, x),
    "noise": _add_noise,
    "compression": lambda levels, x, draws: compress_jpeg(levels, round(100 - x)),
    "occlusion": lambda levels, x, draws: levels,
}
