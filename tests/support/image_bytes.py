"""Test images and their encoded bytes."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def photo(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return (height, width, 3) uint8: smooth colours with noise, different in every corner."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(float)
    return np.clip(smooth + random.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)


def encoded(pixels: NDArray[Any] | Image.Image, name: str, orientation: int | None = None, **options: Any) -> bytes:
    """Return the bytes of an image file."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()
