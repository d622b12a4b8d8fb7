"""Geometric changes: exact flips and quarter turns; all others combined into one homography and one resampling.

A homography maps positions in the result to positions in the image, in pixels; (0, 0) is the centre of the first pixel.
Positions outside the image are reflected at the centres of the edge pixels, or filled with one colour.
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

_STREAM = 41  # random stream of this augmentation
_DRAWS = 15
_CORNERS = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float64)


def transpose_and_flip(images: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
    """Transpose, then flip each image by its own parameters.

    Args:
        images: (B, C, H, H), any dtype and device.
        parameters: as `Augment.parameters`, as tensors on the device of `images`.

    Returns:
        (B, C, H, H), with exactly the values of `images`.
    """
    # Flip all images, then select: six kernels, none of which synchronizes with the host as indexing would.
    for name, axes in (("transpose", None), ("hflip", 3), ("vflip", 2)):
        selected = parameters[name].bool()[:, None, None, None]
        images = torch.where(selected, images.transpose(2, 3) if axes is None else images.flip(axes), images)
    return images


def changes_geometry(config: AugmentConfig) -> bool:
    """Return whether a config resamples images."""
    angles = config.rotate > 0 or config.shear > 0
    return config.geometry_prob > 0 and (
        angles or config.translate > 0 or config.zoom != (1.0, 1.0) or config.perspective > 0
    )


def draw_homographies(
    config: AugmentConfig, seed: int, epoch: int, rows: NDArray[np.int64], size: int
) -> dict[str, NDArray[np.float64] | NDArray[np.bool_]]:
    """Return random parameters of samples: "warped", (b,) bool; "homography", (b, 3, 3) float64, see
    `compute_homographies`."""
    draws = np.ascontiguousarray(uniform(seed, epoch, rows, _DRAWS, _STREAM).T)
    symmetric = 2 * draws - 1  # in [-1, 1)
    low, high = config.zoom
    homography = compute_homographies(
        size,
        angle=config.rotate * symmetric[1],
        zoom=low * (high / low) ** draws[2],  # half the size is as likely as twice the size
        shear=config.shear * symmetric[3:5],
        translation=config.translate * size * symmetric[5:7],
        corners=config.perspective * size * symmetric[7:15].T.reshape(-1, 4, 2) if config.perspective > 0 else None,
    )
    return {"warped": draws[0] < config.geometry_prob, "homography": homography}


def compute_homographies(
    size: int, angle: Floats, zoom: Floats, shear: Floats, translation: Floats, corners: Floats | None = None
) -> Floats:
    """Return (b, 3, 3) homographies that zoom, shear, rotate about the centre and translate an image, then move its
    corners.

    Args:
        size: side of the images in pixels.
        angle: (b,) degrees.
        zoom: (b,) factor.
        shear: (2, b) degrees, horizontal and vertical.
        translation: (2, b) pixels, right and down.
        corners: (b, 4, 2) shifts in pixels of the top left, top right, bottom right and bottom left corner; None: no
            shift.
    """
    radians, centre = np.radians(angle), (size - 1) / 2
    shear_x, shear_y = np.tan(np.radians(shear))
    forward = (
        _shift(centre + translation[0], centre + translation[1])
        @ _linear(np.cos(radians), -np.sin(radians), np.sin(radians), np.cos(radians))
        @ _linear(np.ones_like(radians), shear_x, shear_y, np.ones_like(radians))
        @ _linear(zoom, np.zeros_like(zoom), np.zeros_like(zoom), zoom)
        @ _shift(np.full(len(zoom), -centre), np.full(len(zoom), -centre))
    )
    if corners is not None:
        forward = _corner_homographies(corners, size) @ forward
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


def _corner_homographies(shifts: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Return (b, 3, 3) homographies that move the corners of an image by (b, 4, 2) pixels."""
    source = _CORNERS * (size - 1)
    target = source + shifts
    equations = np.zeros((len(shifts), 8, 8))
    for number, (x, y) in enumerate(source):
        u, v = target[:, number].T
        for row, target_value, column in ((2 * number, u, 0), (2 * number + 1, v, 3)):
            equations[:, row, column : column + 3] = x, y, 1
            equations[:, row, 6], equations[:, row, 7] = -x * target_value, -y * target_value
    solution = np.linalg.solve(equations, target.reshape(-1, 8, 1))[..., 0]
    return np.concatenate([solution, np.ones((len(shifts), 1))], 1).reshape(-1, 3, 3)


def warp_image(
    image: NDArray[np.uint8], homography: NDArray[np.float64], fill: tuple[int, int, int] | None
) -> NDArray[np.uint8]:
    """Return a (S, S, 3) uint8 image resampled with linear interpolation. Outside, it is reflected, or `fill` if given.

    OpenCV before version 5 rounds positions to 1/32 of a pixel.
    """
    size = image.shape[0]
    border = cv2.BORDER_REFLECT_101 if fill is None else cv2.BORDER_CONSTANT
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    warped: NDArray[np.uint8] = cv2.warpPerspective(
        image, homography, (size, size), flags=flags, borderMode=border, borderValue=fill or (0, 0, 0)
    )
    return warped


def warp_batch(images: Tensor, homographies: Tensor, fill: Tensor | None) -> Tensor:
    """Resample a batch; equal to `warp_image` within one level of 255.

    Args:
        images: (B, 3, S, S) uint8.
        homographies: (B, 3, 3) float, on the same device.
        fill: (3, 1, 1) float on the same device, the colour outside the image; None: reflect the image.

    Returns:
        (B, 3, S, S) uint8.
    """
    size = images.shape[-1]
    matrix = homographies.to(torch.float32)[..., None, None]
    positions = torch.arange(size, dtype=torch.float32, device=images.device)
    x, y = positions[None, None, :], positions[None, :, None]
    u, v, w = (matrix[:, row, 0] * x + matrix[:, row, 1] * y + matrix[:, row, 2] for row in range(3))
    grid = torch.stack([u / w, v / w], -1) * (2 / (size - 1)) - 1
    values = images.float()
    if fill is None:
        warped = F.grid_sample(values, grid, padding_mode="reflection", align_corners=True)
    else:
        warped = F.grid_sample(values - fill, grid, padding_mode="zeros", align_corners=True) + fill
    return warped.round_().clamp_(0, 255).to(torch.uint8)
