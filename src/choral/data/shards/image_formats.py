"""Which image format some bytes are: told by the first of them, never by a file name.

EPS bytes named .jpg would otherwise reach Ghostscript through Pillow, which is always told which format to expect.
"""

from __future__ import annotations

from typing import Literal

from choral.core.errors import DataError

Format = Literal["jpeg", "png", "webp", "gif", "bmp", "tiff"]

_MAGIC: tuple[tuple[bytes, Format], ...] = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"II*\x00", "tiff"),
    (b"MM\x00*", "tiff"),
)
_REFUSED: tuple[tuple[bytes, str], ...] = (
    (b"%!PS", "a PostScript drawing (EPS)"),
    (b"\xc5\xd0\xd3\xc6", "a PostScript drawing (EPS)"),
    (b"%PDF", "a PDF document"),
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 image"),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL image"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
)
_READABLE = "only JPEG, PNG, WebP, GIF, BMP and TIFF images are read"


def sniff(data: bytes) -> Format:
    """Return the format of an encoded image by its first bytes.

    Raises:
        DataError: empty, not an image, or of a kind that is refused (vector drawings, HEIC, documents, archives).
    """
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[:2] == b"BM" and data[6:10] == b"\0\0\0\0":  # two letters are little: the reserved fields count too
        return "bmp"
    if not data:
        raise DataError("no bytes at all")
    for magic, description in _REFUSED:
        if data.startswith(magic):
            raise DataError(f"{description}; {_READABLE}")
    if data[4:8] == b"ftyp":
        raise DataError(f"a HEIC, AVIF or video file; {_READABLE}")
    opening = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if opening.startswith(b"<"):
        description = "a vector drawing (SVG)" if b"<svg" in opening else "an HTML or XML document"
        raise DataError(f"{description}; {_READABLE}")
    raise DataError(f"not an image, it begins with {data[:12]!r}; {_READABLE}")
