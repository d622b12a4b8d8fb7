"""Colour changes of single pixels: brightness, contrast, saturation, hue and grey are combined into one 3 x 3 matrix
and one offset per sample, and the result is clipped once.

Saturation, hue and grey keep the grey value: they blend with it, or rotate the plane of colours with equal grey value
(I and Q of NTSC's YIQ). Pillow rotates the hue in HSV, which is not linear; for the small angles that help in training,
both look alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from choral.config import AugmentConfig
from choral.core.counter_rng import uniform

GREY_WEIGHTS = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the grey value (ITU-R BT.601, as in Pillow and torchvision)."""

_STREAM = 42  # random stream of this augmentation
_DRAWS = 3
_YIQ = np.array([GREY_WEIGHTS, (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135)])
_RGB = np.linalg.inv(_YIQ)


def mixes_channels(config: AugmentConfig) -> bool:
    """Return whether saturation, hue or grey change, so that a lookup table per channel is not enough."""
    return config.saturation > 0 or config.hue > 0 or config.grey > 0


def draw_colour_matrices(config: AugmentConfig, seed: int, epoch: int, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return random (b, 3, 3) float32 colour matrices of samples; exactly the identity where nothing changes."""
    draws = np.ascontiguousarray(uniform(seed, epoch, rows, _DRAWS, _STREAM).T)
    saturation = 1 + config.saturation * (2 * draws[0] - 1)
    saturation = np.where(draws[2] < config.grey, 0.0, saturation)
    return compute_colour_matrices(saturation, config.hue * (2 * draws[1] - 1))


def compute_colour_matrices(saturation: NDArray[np.float64], hue: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return (b, 3, 3) float32 matrices that scale saturation by (b,) factors, then rotate hue by (b,) turns."""
    angle = 2 * np.pi * hue
    rotation = np.zeros((len(angle), 3, 3))
    rotation[:, 0, 0] = 1
    rotation[:, 1, 1] = rotation[:, 2, 2] = saturation * np.cos(angle)
    rotation[:, 1, 2], rotation[:, 2, 1] = -saturation * np.sin(angle), saturation * np.sin(angle)
    unchanged = (saturation == 1) & (angle == 0)
    matrices = np.where(unchanged[:, None, None], np.eye(3), _RGB @ rotation @ _YIQ)
    return matrices.astype(np.float32)


def brightness_contrast_map(parameters: Mapping[str, Any], grey: Any) -> tuple[Any, Any]:
    """Return the (b,) factor and offset of brightness and contrast, for values in [0, 1].

    Args:
        parameters: as `Augment.parameters`, arrays or tensors.
        grey: (b,) mean grey values of the unchanged images, in [0, 1], array or tensor.
    """
    brightness, contrast = parameters["brightness"], parameters["contrast"]
    return brightness * contrast, brightness * grey * (1 - contrast)


def mean_grey(images: Tensor) -> Tensor:
    """Return the (B,) mean grey value of (B, 3, H, W) float images."""
    red, green, blue = images.mean((2, 3)).unbind(1)
    return GREY_WEIGHTS[0] * red + GREY_WEIGHTS[1] * green + GREY_WEIGHTS[2] * blue


def apply_colour_matrices(images: Tensor, matrices: Tensor, offset: Tensor) -> Tensor:
    """Multiply each pixel by the matrix of its image, and add the offset of its image.

    Args:
        images: (B, 3, H, W) float.
        matrices: (B, 3, 3)
        offset: (B,)
    """
    # Term by term: a matrix product may use TF32, and may round differently in batches of another size.
    weights = matrices[..., None, None]
    terms = (weights[:, :, channel] * images[:, None, channel] for channel in range(3))
    return sum(terms, offset[:, None, None, None])


def adjust_colours(images: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
    """Apply brightness, contrast and the colour matrices to a batch.

    Args:
        images: (B, 3, H, H) float, RGB, in [0, 1], not normalized.
        parameters: as `Augment.parameters`, as tensors on the device of `images`.

    Returns:
        (B, 3, H, H), clipped to [0, 1].
    """
    factor, offset = brightness_contrast_map(parameters, mean_grey(images))
    if "colour" in parameters:
        changed = apply_colour_matrices(images, parameters["colour"] * factor[:, None, None], offset)
    else:
        changed = images * factor[:, None, None, None] + offset[:, None, None, None]
    return torch.clamp_(changed, 0, 1)
