"""Values that change, each pixel by itself: brightness, contrast, saturation, hue and grey are one 3 x 3 matrix and one
summand a sample, and the result is clipped once.

Saturation, hue and grey keep the grey value: they blend with it, or turn the plane of colours of equal grey value (I and Q
of NTSC's YIQ). HSV, in which Pillow turns, is not linear; for the small turns that help, the two look alike.
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
"""Of red, green and blue in a grey value (ITU-R BT.601, as Pillow and torchvision)."""

_STREAM = 42  # tells these random numbers from those of other purposes
_DRAWS = 3
_YIQ = np.array([GREY_WEIGHTS, (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135)])
_RGB = np.linalg.inv(_YIQ)


def mixes_channels(config: AugmentConfig) -> bool:
    """Return whether saturation, hue or grey change, so that one table a channel does not suffice."""
    return config.saturation > 0 or config.hue > 0 or config.grey > 0


def colour_matrices(config: AugmentConfig, seed: int, epoch: int, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return (b, 3, 3) float32: saturation, then hue, then grey; exactly the identity where nothing is changed."""
    draws = np.ascontiguousarray(uniform(seed, epoch, rows, _DRAWS, _STREAM).T)
    saturation = 1 + config.saturation * (2 * draws[0] - 1)
    saturation = np.where(draws[2] < config.grey, 0.0, saturation)
    return colour_matrix(saturation, config.hue * (2 * draws[1] - 1))


def colour_matrix(saturation: NDArray[np.float64], hue: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return (b, 3, 3) float32 that multiply saturation by (b,) factors, then turn hue by (b,) shares of the circle."""
    angle = 2 * np.pi * hue
    turned = np.zeros((len(angle), 3, 3))
    turned[:, 0, 0] = 1
    turned[:, 1, 1] = turned[:, 2, 2] = saturation * np.cos(angle)
    turned[:, 1, 2], turned[:, 2, 1] = -saturation * np.sin(angle), saturation * np.sin(angle)
    unchanged = (saturation == 1) & (angle == 0)
    matrices = np.where(unchanged[:, None, None], np.eye(3), _RGB @ turned @ _YIQ)
    return matrices.astype(np.float32)


def colour_map(parameters: Mapping[str, Any], grey: Any) -> tuple[Any, Any]:
    """Return the (b,) factor and summand of brightness and contrast, for values from 0 to 1.

    Args:
        parameters: as `Augment.parameters`, arrays or tensors.
        grey: (b,) mean grey values of the images as they are, 0 to 1, array or tensor.
    """
    brightness, contrast = parameters["brightness"], parameters["contrast"]
    return brightness * contrast, brightness * grey * (1 - contrast)


def mean_grey(images: Tensor) -> Tensor:
    """Return the (B,) mean grey value of (B, 3, H, W) float images."""
    red, green, blue = images.mean((2, 3)).unbind(1)
    return GREY_WEIGHTS[0] * red + GREY_WEIGHTS[1] * green + GREY_WEIGHTS[2] * blue


def transform(images: Tensor, matrices: Tensor, summand: Tensor) -> Tensor:
    """Multiply each pixel by its image's matrix and add its image's summand.

    Args:
        images: (B, 3, H, W) float.
        matrices: (B, 3, 3)
        summand: (B,)
    """
    # Term by term: a matrix product may be rounded to TF32, and differently in batches of other sizes.
    weights = matrices[..., None, None]
    terms = (weights[:, :, channel] * images[:, None, channel] for channel in range(3))
    return sum(terms, summand[:, None, None, None])


def apply(images: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
    """Change the colours of each image by its own parameters.

    Args:
        images: (B, 3, H, H) float, RGB, 0 to 1, not normalised.
        parameters: as `Augment.parameters`, as tensors on the device of `images`.

    Returns:
        (B, 3, H, H), 0 to 1.
    """
    factor, summand = colour_map(parameters, mean_grey(images))
    if "colour" in parameters:
        changed = transform(images, parameters["colour"] * factor[:, None, None], summand)
    else:
        changed = images * factor[:, None, None, None] + summand[:, None, None, None]
    return torch.clamp_(changed, 0, 1)
