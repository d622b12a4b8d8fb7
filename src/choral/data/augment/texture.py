"""Blur, noise and random erasing (Zhong et al. 2020).

Noise is computed in integers from the sample and the position of each value, so that it has the same bits on every
device: the sum of the 8 bytes of a hash (SplitMix64, as in `choral.core.counter_rng`) is close to normal (excess
kurtosis -0.15, at most 4.9 standard deviations).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from choral.config import AugmentConfig
from choral.core.counter_rng import make_key, mix, uniform

_BLUR, _NOISE, _NOISE_KEY, _ERASING = 43, 44, 45, 46  # random streams of these augmentations
REFERENCE_SIDE = 224  # side in pixels that configured sigmas refer to
_ERASED_RATIO = 0.3  # height / width is between this and its inverse (Zhong et al. 2020)
_GOLDEN, _MIX_1, _MIX_2 = (
    np.uint64(value).astype(np.int64).item() for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
_BYTES, _SUM = 0x00FF00FF00FF00FF, 0x0001000100010001
_BYTES_MEAN, _BYTES_STD = 8 * 127.5, math.sqrt(8 * (256**2 - 1) / 12)


def draw_textures(
    config: AugmentConfig, seed: int, epoch: int, rows: NDArray[np.int64], size: int
) -> dict[str, NDArray[Any]]:
    """Return random parameters of samples, for the changes that are switched on.

    Returns:
        "blur": (b, 2 r + 1) float32 kernels, the same for rows and columns, and "blurred": (b,) bool;
        "noise": (b,) float32 standard deviations, 0: no noise, and "noise_key": (b,) int64;
        "erased": (b, 4) int64 top, left, bottom, right; all 0: nothing is erased.
    """
    parameters: dict[str, NDArray[Any]] = {}
    if config.blur > 0:
        draws = np.ascontiguousarray(uniform(seed, epoch, rows, 2, _BLUR).T)
        low, high = (sigma * size / REFERENCE_SIDE for sigma in config.blur_sigma)
        parameters["blurred"] = draws[0] < config.blur
        parameters["blur"] = compute_gaussian_kernels(low + (high - low) * draws[1], high, size)
    if config.noise > 0:
        draws = np.ascontiguousarray(uniform(seed, epoch, rows, 2, _NOISE).T)
        low, high = config.noise_std
        parameters["noise"] = np.where(draws[0] < config.noise, low + (high - low) * draws[1], 0).astype(np.float32)
        parameters["noise_key"] = compute_noise_keys(seed, epoch, rows)
    if config.erasing > 0:
        parameters["erased"] = _rectangles(
            config, np.ascontiguousarray(uniform(seed, epoch, rows, 5, _ERASING).T), size
        )
    return parameters


def compute_gaussian_kernels(sigma: NDArray[np.float64], largest: float, size: int) -> NDArray[np.float32]:
    """Return (b, 2 r + 1) Gaussian kernels, cut off at three standard deviations; r is the radius for `largest`.

    Args:
        sigma: (b,) pixels.
        largest: the largest sigma that may be drawn, in pixels.
        size: side of the images in pixels.
    """
    radius = min(math.ceil(3 * largest), size - 1)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma[:, None]) ** 2) * (abs(offsets) <= np.ceil(3 * sigma[:, None]))
    kernels: NDArray[np.float32] = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return kernels


def compute_noise_keys(seed: int, epoch: int, rows: NDArray[np.int64] | NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the (b,) noise keys of samples; see `normal_noise`."""
    with np.errstate(over="ignore"):
        keys = mix(rows.astype(np.uint64) * np.uint64(_GOLDEN & (2**64 - 1)) + make_key(seed, epoch, _NOISE_KEY))
    return keys.view(np.int64)


def _rectangles(config: AugmentConfig, draws: NDArray[np.float64], size: int) -> NDArray[np.int64]:
    low, high = config.erasing_area
    boxes = compute_rectangles(low + (high - low) * draws[1], draws[2:], size)
    return np.where((draws[0] < config.erasing)[:, None], boxes, 0)


def compute_rectangles(area: NDArray[np.float64], draws: NDArray[np.float64], size: int) -> NDArray[np.int64]:
    """Return (b, 4) rectangles of the given area: top, left, bottom, right.

    Args:
        area: (b,) share of the image.
        draws: (3, b) in [0, 1), for aspect ratio, vertical and horizontal position.
        size: side of the images in pixels.
    """
    # This bound keeps both sides within the image, instead of drawing again.
    least = np.maximum(_ERASED_RATIO, area)
    ratio = least * (1 / least**2) ** draws[0]
    height, width = (np.rint(size * np.sqrt(area * value)) for value in (ratio, 1 / ratio))
    height, width = np.clip(height, 0, size), np.clip(width, 0, size)
    top, left = np.floor(draws[1] * (size - height + 1)), np.floor(draws[2] * (size - width + 1))
    return np.stack([top, left, top + height, left + width], 1).astype(np.int64)


def blur_image(image: NDArray[np.float32], kernel: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a blurred (S, S, 3) float32 image, reflected at its edges."""
    kernel = kernel[kernel > 0]
    blurred: NDArray[np.float32] = cv2.sepFilter2D(image, -1, kernel, kernel, borderType=cv2.BORDER_REFLECT_101)
    return blurred


def blur_batch(images: Tensor, kernels: Tensor) -> Tensor:
    """Blur each of (B, 3, S, S) float images with its own (B, 2 r + 1) kernel."""
    radius, size = kernels.shape[1] // 2, images.shape[-1]
    for axis, pads in ((3, (radius, radius, 0, 0)), (2, (0, 0, radius, radius))):
        padded = F.pad(images, pads, mode="reflect")
        # Tap by tap: a convolution with one kernel per sample would need a group per plane.
        images = torch.zeros_like(images)
        for tap in range(2 * radius + 1):
            images.addcmul_(padded.narrow(axis, tap, size), kernels[:, tap, None, None, None])
    return images


def normal_noise(positions: Any, key: Any) -> Any:
    """Return noise of mean 0 and standard deviation 1 for each position, from integers alone.

    Args:
        positions: int64, NumPy array or tensor.
        key: of the sample; int64, a number or an array that broadcasts with `positions`.

    Returns:
        float32, of the shape of `positions + key`.
    """
    values = positions * _GOLDEN + key
    values ^= (values >> 30) & ((1 << 34) - 1)  # the masks turn arithmetic shifts into logical ones
    values *= _MIX_1
    values ^= (values >> 27) & ((1 << 37) - 1)
    values *= _MIX_2
    values ^= (values >> 31) & ((1 << 33) - 1)
    pairs = (values >> 8) & _BYTES
    values &= _BYTES
    values += pairs
    values *= _SUM
    values = (values >> 48) & 0xFFFF
    floats = values.float() if isinstance(values, Tensor) else values.astype(np.float32)
    floats -= _BYTES_MEAN
    floats *= 1 / _BYTES_STD
    return floats


@lru_cache(maxsize=4)
def _positions(size: int) -> NDArray[np.int64]:
    return np.arange(size * size * 3).reshape(size, size, 3)


def add_noise_to_image(image: NDArray[np.float32], std: float, key: int) -> None:
    """Add noise to a (S, S, 3) float32 image of values in [0, 1], in place, and clip it."""
    noise = normal_noise(_positions(image.shape[0]), key)
    noise *= np.float32(std)
    image += noise
    np.clip(image, 0, 1, out=image)


def add_noise_to_batch(images: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
    """Add noise to (B, 3, S, S) float images of values in [0, 1]; equal to `add_noise_to_image` within rounding."""
    size = images.shape[-1]
    positions = torch.arange(size * size * 3, device=images.device).view(size, size, 3).permute(2, 0, 1)
    noise: Tensor = normal_noise(positions[None], parameters["noise_key"][:, None, None, None])
    return (images + noise * parameters["noise"][:, None, None, None]).clamp_(0, 1)
