"""Pixels that move: flips and quarter turns, which are exact, and everything else as one homography and one resampling.

A homography maps places of the result to places of the image, in pixels, (0, 0) being the centre of the first pixel.
What lies outside is mirrored about the centres of the pixels at the edge, or one colour.
"""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from choral.config import AugmentConfig
from choral.core.counter_rng import uniform

Floats = NDArray[np.float64]

_STREAM = 41  # tells these random numbers from those of other purposes
_DRAWS = 15
_CORNERS = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float64)


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


def moves(config: AugmentConfig) -> bool:
    """Return whether images are resampled."""
    angles = config.rotate > 0 or config.shear > 0
    return config.geometry_prob > 0 and (
        angles or config.translate > 0 or config.zoom != (1.0, 1.0) or config.perspective > 0
    )


def homographies(
    config: AugmentConfig, seed: int, epoch: int, rows: NDArray[np.int64], size: int
) -> dict[str, NDArray[np.float64] | NDArray[np.bool_]]:
    """Return "warped": (b,) bool, and "homography": (b, 3, 3) float64, see `homography_of`."""
    draws = np.ascontiguousarray(uniform(seed, epoch, rows, _DRAWS, _STREAM).T)
    either = 2 * draws - 1  # from [-1, 1)
    low, high = config.zoom
    homography = homography_of(
        size,
        angle=config.rotate * either[1],
        zoom=low * (high / low) ** draws[2],  # half as large is as likely as twice as large
        shear=config.shear * either[3:5],
        move=config.translate * size * either[5:7],
        corners=config.perspective * size * either[7:15].T.reshape(-1, 4, 2) if config.perspective > 0 else None,
    )
    return {"warped": draws[0] < config.geometry_prob, "homography": homography}


def homography_of(
    size: int, angle: Floats, zoom: Floats, shear: Floats, move: Floats, corners: Floats | None = None
) -> Floats:
    """Return (b, 3, 3): an image is zoomed, sheared, turned about its centre and moved, then its corners are moved.

    Args:
        size: side of the images in pixels.
        angle: (b,) degrees.
        zoom: (b,) factor.
        shear: (2, b) degrees, across and down.
        move: (2, b) pixels, across and down.
        corners: (b, 4, 2) pixels, of top left, top right, bottom right and bottom left; None: they stay.
    """
    radians, centre = np.radians(angle), (size - 1) / 2
    shear_x, shear_y = np.tan(np.radians(shear))
    forward = (
        _shift(centre + move[0], centre + move[1])
        @ _linear(np.cos(radians), -np.sin(radians), np.sin(radians), np.cos(radians))
        @ _linear(np.ones_like(radians), shear_x, shear_y, np.ones_like(radians))
        @ _linear(zoom, np.zeros_like(zoom), np.zeros_like(zoom), zoom)
        @ _shift(np.full(len(zoom), -centre), np.full(len(zoom), -centre))
    )
    if corners is not None:
        forward = _corners_moved(corners, size) @ forward
    return np.linalg.inv(forward).astype(np.float64, copy=False)


def _linear(
    a: NDArray[np.float64], b: NDArray[np.float64], c: NDArray[np.float64], d: NDArray[np.float64]
) -> NDArray[np.float64]:
    matrices = np.zeros((len(a), 3, 3))
    matrices[:, 0, 0], matrices[:, 0, 1], matrices[:, 1, 0], matrices[:, 1, 1] = a, b, c, d
    matrices[:, 2, 2] = 1
    return matrices


def _shift(right: NDArray[np.float64], down: NDArray[np.float64]) -> NDArray[np.float64]:
    matrices = np.tile(np.eye(3), (len(right), 1, 1))
    matrices[:, 0, 2], matrices[:, 1, 2] = right, down
    return matrices


def _corners_moved(by: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Return (b, 3, 3) homographies that move the corners of an image by (b, 4, 2) pixels."""
    source = _CORNERS * (size - 1)
    target = source + by
    equations = np.zeros((len(by), 8, 8))
    for number, (x, y) in enumerate(source):
        u, v = target[:, number].T
        for row, moved, at in ((2 * number, u, 0), (2 * number + 1, v, 3)):
            equations[:, row, at : at + 3] = x, y, 1
            equations[:, row, 6], equations[:, row, 7] = -x * moved, -y * moved
    solved = np.linalg.solve(equations, target.reshape(-1, 8, 1))[..., 0]
    return np.concatenate([solved, np.ones((len(by), 1))], 1).reshape(-1, 3, 3)


def warp_image(
    image: NDArray[np.uint8], homography: NDArray[np.float64], fill: tuple[int, int, int] | None
) -> NDArray[np.uint8]:
    """Return a resampled (S, S, 3) uint8 image, linear; what lies outside is mirrored, or `fill`.

    OpenCV before version 5 rounds places to 32nds of a pixel.
    """
    size = image.shape[0]
    border = cv2.BORDER_REFLECT_101 if fill is None else cv2.BORDER_CONSTANT
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    warped: NDArray[np.uint8] = cv2.warpPerspective(
        image, homography, (size, size), flags=flags, borderMode=border, borderValue=fill or (0, 0, 0)
    )
    return warped


def warp(images: Tensor, homographies: Tensor, fill: Tensor | None) -> Tensor:
    """Resample a batch; equal to `warp_image` within a level.

    Args:
        images: (B, 3, S, S) uint8.
        homographies: (B, 3, 3) float, on the same device.
        fill: (3, 1, 1) float, on the same device, what lies outside; None: the image, mirrored.

    Returns:
        (B, 3, S, S) uint8.
    """
    size = images.shape[-1]
    matrix = homographies.to(torch.float32)[..., None, None]
    at = torch.arange(size, dtype=torch.float32, device=images.device)
    x, y = at[None, None, :], at[None, :, None]
    u, v, w = (matrix[:, row, 0] * x + matrix[:, row, 1] * y + matrix[:, row, 2] for row in range(3))
    grid = torch.stack([u / w, v / w], -1) * (2 / (size - 1)) - 1
    values = images.float()
    if fill is None:
        warped = F.grid_sample(values, grid, padding_mode="reflection", align_corners=True)
    else:
        warped = F.grid_sample(values - fill, grid, padding_mode="zeros", align_corners=True) + fill
    return warped.round_().clamp_(0, 255).to(torch.uint8)
