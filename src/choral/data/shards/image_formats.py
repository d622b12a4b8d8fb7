"""Detects the format of an encoded image from its first bytes, never from a file name.

Pillow is always given the detected format. Otherwise EPS bytes in a file named .jpg would reach Ghostscript.
"""

from __future__ import annotations

from typing import Literal

from choral.core.errors import DataError

ImageFormat = Literal["jpeg", "png", "webp", "gif", "bmp", "tiff"]

_MAGIC: tuple[tuple[bytes, ImageFormat], ...] = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"II*\x00", "tiff"),
    (b"MM\x00*", "tiff"),
)
_UNSUPPORTED: tuple[tuple[bytes, str], ...] = (
    (b"%!PS", "a PostScript drawing (EPS)"),
    (b"\xc5\xd0\xd3\xc6", "a PostScript drawing (EPS)"),
    (b"%PDF", "a PDF document"),
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 image"),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL image"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
)
_SUPPORTED = "supported formats are JPEG, PNG, WebP, GIF, BMP and TIFF"


def detect_format(data: bytes) -> ImageFormat:
    """Return the format of an encoded image, detected from its first bytes.

    Raises:
        DataError: no data, not an image, or an unsupported format (vector drawings, HEIC, documents, archives).
    """
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[:2] == b"BM" and data[6:10] == b"\0\0\0\0":  # two bytes are a weak signature: check the reserved fields too
        return "bmp"
    if not data:
        raise DataError("the file is empty")
    for magic, description in _UNSUPPORTED:
        if data.startswith(magic):
            raise DataError(f"{description}; {_SUPPORTED}")
    if data[4:8] == b"ftyp":
        raise DataError(f"a HEIC, AVIF or video file; {_SUPPORTED}")
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith(b"<"):
        description = "a vector drawing (SVG)" if b"<svg" in head else "an HTML or XML document"
        raise DataError(f"{description}; {_SUPPORTED}")
    raise DataError(f"not an image (it begins with {data[:12]!r}); {_SUPPORTED}")
