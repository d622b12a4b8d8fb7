"""The loss of baseline JPEG compression, as tensor operations on any device; no bytes are written.

Rec. ITU-T T.81 (JPEG) with the colours of JFIF, the tables of its annex K scaled as libjpeg does, chroma halved in both
directions (4:2:0): what Pillow, OpenCV and cameras write by default. The discrete cosine transform is computed in floats,
and so is the smooth interpolation of chroma that libjpeg decodes with; its integers differ by a level here and there.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

_TIE = 1e-4  # tolerance of rounding halves
# fmt: off
_LUMA = (
    16, 11, 10, 16,  24,  40,  51,  61,
    12, 12, 14, 19,  26,  58,  60,  55,
    14, 13, 16, 24,  40,  57,  69,  56,
    14, 17, 22, 29,  51,  87,  80,  62,
    18, 22, 37, 56,  68, 109, 103,  77,
    24, 35, 55, 64,  81, 104, 113,  92,
    49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103,  99,
)
_CHROMA = (
    17, 18, 24, 47, 99, 99, 99, 99,
    18, 21, 26, 66, 99, 99, 99, 99,
    24, 26, 56, 99, 99, 99, 99, 99,
    47, 66, 99, 99, 99, 99, 99, 99,
    *(99,) * 32,
)
# fmt: on


def compress_jpeg(images: Tensor, quality: int) -> Tensor:
    """Return images as they are after saving and reading as JPEG.

    Args:
        images: (B, 3, H, W) uint8, RGB.
        quality: 1 to 100, as libjpeg and Pillow count.

    Returns:
        (B, 3, H, W) uint8.
    """
    height, width = images.shape[-2:]
    # Incomplete blocks repeat the edge: horizontally before chroma is halved, vertically after it, as libjpeg does.
    whole = F.pad(images.float(), (0, -width % 16, 0, height % 2), mode="replicate")
    red, green, blue = whole.unbind(1)
    luma = _round_half_up(0.299 * red + 0.587 * green + 0.114 * blue)
    # libjpeg rounds halves of these two down.
    cb = _round_half_up(-0.168735892 * red - 0.331264108 * green + 0.5 * blue + 127.99999)
    cr = _round_half_up(0.5 * red - 0.418687589 * green - 0.081312411 * blue + 127.99999)
    luma_table, chroma_table = _tables(quality, images.device)
    luma = _quantize_dct(luma[:, None], luma_table)
    chroma = _quantize_dct(_halve(torch.stack([cb, cr], 1)), chroma_table)[
        :, :, : (height + 1) // 2, : (width + 1) // 2
    ]
    # Weights of 3/4 and 1/4 per direction, edges repeated: libjpeg's "fancy upsampling".
    smooth = F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False)
    y = luma[:, 0, :height, :width]
    cb, cr = (_round_half_up(smooth[:, :, :height, :width]) - 128).unbind(1)
    rgb = torch.stack([y + 1.402 * cr, y - 0.344136286 * cb - 0.714136286 * cr, y + 1.772 * cb], 1)
    return _round_half_up(rgb).clamp_(0, 255).to(torch.uint8)


def _halve(planes: Tensor) -> Tensor:
    """Return the means of 2 x 2 pixels."""
    sums = 4 * F.avg_pool2d(planes, 2)
    # Halves are rounded down in even columns and up in odd ones, so that the mean is preserved.
    bias = torch.arange(sums.shape[-1], device=planes.device) % 2 + 1
    return ((sums + bias) / 4).floor_()


def _quantize_dct(planes: Tensor, table: Tensor) -> Tensor:
    """Return (B, C, H, W) planes of 0 to 255 after the 8 x 8 DCT, quantization and the inverse DCT.

    W is a multiple of 8.
    """
    count, channels, height, width = planes.shape
    padded = F.pad(planes - 128, (0, 0, 0, -height % 8), mode="replicate")
    blocks = padded.reshape(count, channels, padded.shape[2] // 8, 8, width // 8, 8).transpose(3, 4)
    basis = _basis(planes.device)
    waves = basis @ blocks @ basis.T / table
    levels = waves.sign() * _round_half_up(waves.abs())  # halves away from zero
    back = _round_half_up(basis.T @ (levels * table) @ basis + 128).clamp_(0, 255)
    return back.transpose(3, 4).reshape(padded.shape)[:, :, :height]


def _round_half_up(values: Tensor) -> Tensor:
    """Return the nearest integers, halves up: the mean of 8 x 8 pixels is often a half, and every block has one."""
    return (values + (0.5 + _TIE)).floor_()


@lru_cache(maxsize=4)
def _basis(device: torch.device) -> Tensor:
    """Return the (8, 8) orthonormal basis of the discrete cosine transform, one frequency per row."""
    with torch.inference_mode(False):
        at = torch.arange(8, dtype=torch.float64)
        waves = torch.cos(torch.pi * (2 * at[None] + 1) * at[:, None] / 16) / 2
        waves[0] /= 2**0.5
        return waves.float().to(device)


@lru_cache(maxsize=64)
def _tables(quality: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the (8, 8) quantization tables of luma and chroma at a quality."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality

    def scaled(table: tuple[int, ...]) -> Tensor:
        steps = [min(255, max(1, (step * scale + 50) // 100)) for step in table]
        return torch.tensor(steps, dtype=torch.float32).view(8, 8).to(device)

    with torch.inference_mode(False):
        return scaled(_LUMA), scaled(_CHROMA)
