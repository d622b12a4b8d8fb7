from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from choral.core.errors import DataError
from choral.data.packing.image_files import Encoding, verify
from shard_samples import image_bytes


def saved(image: Image.Image, fmt: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(("fmt", "ext"), [
    ("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp"), ("GIF", "gif"), ("BMP", "bmp"), ("TIFF", "tif"),
])  # fmt: skip
def test_formats(fmt: str, ext: str) -> None:
    data = image_bytes("red", fmt=fmt)
    assert verify(data) == ext


def frames(fmt: str) -> bytes:
    images = [Image.new("RGB", (8, 8), (i * 60, 0, 0)) for i in range(3)]
    return saved(images[0], fmt, save_all=True, append_images=images[1:])


def bomb() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(7501 * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("data", "reason"), [
    (b"hello, I am text\n", "not an image, it begins with b'hello, I am '"),
    (b"", "no bytes at all"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript"),
    (b'<?xml version="1.0"?><svg xmlns="x"></svg>', "SVG"),
    (frames("GIF"), "3 frames in one gif"),
    (saved(Image.new("F", (4, 4), 300.0), "TIFF"), r"values from 300\.0 to 300\.0, expected 0 to 1"),
    (b"BMW is a car", "not an image"),
    (frames("PNG"), "3 frames in one png"),
    (frames("WEBP"), "3 frames in one webp"),
    (frames("TIFF"), "3 frames in one tif"),
    (bomb(), "limit"),
    (image_bytes("red", (64, 64), "JPEG")[:-30], "damaged jpg"),
    (image_bytes("red", (64, 64), "PNG")[:-20], "damaged png"),
    (image_bytes("red", (64, 64), "BMP")[:-20], "damaged bmp"),
    (b"\xff\xd8\xff" + b"rubbish" * 9, "damaged jpg"),
])  # fmt: skip
def test_refused(data: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        verify(data)


def test_flipped_bits_of_a_png_are_found() -> None:
    data = bytearray(image_bytes("red", (16, 16)))
    for position in range(8, len(data) - 12):  # the end marker holds nothing
        data[position] ^= 1
        with pytest.raises(DataError):
            verify(bytes(data))
        data[position] ^= 1


def test_stored_byte_for_byte_unless_asked() -> None:
    data = image_bytes("red", (40, 30))
    assert Encoding().apply(data, "png") == (data, "png")
    assert Encoding(max_size=40).apply(data, "png") == (data, "png")


@pytest.mark.parametrize(("mode", "fmt", "encoding", "ext", "kept"), [
    ("RGB", "JPEG", Encoding(max_size=20), "jpg", "RGB"),
    ("CMYK", "JPEG", Encoding(max_size=20), "jpg", "CMYK"),
    ("L", "PNG", Encoding(max_size=20), "png", "L"),
    ("RGBA", "PNG", Encoding(max_size=20), "png", "RGBA"),
    ("I;16", "PNG", Encoding(max_size=20), "png", "I;16"),
    ("P", "PNG", Encoding(max_size=20), "png", "RGB"),
    ("1", "PNG", Encoding(max_size=20), "png", "L"),
    ("RGB", "PNG", Encoding(max_size=20, quality=80), "jpg", "RGB"),
    ("RGBA", "PNG", Encoding(max_size=20, quality=80), "png", "RGBA"),
    ("RGB", "WEBP", Encoding(max_size=20), "jpg", "RGB"),
    ("CMYK", "TIFF", Encoding(max_size=20), "png", "RGB"),
])  # fmt: skip
def test_smaller(mode: str, fmt: str, encoding: Encoding, ext: str, kept: str) -> None:
    data = saved(Image.new(mode, (40, 30)), fmt)
    small, stored = encoding.apply(data, verify(data))
    with Image.open(io.BytesIO(small)) as image:
        assert (stored, image.size, image.mode) == (ext, (20, 15), kept)
    assert verify(small) == ext


def test_exif_orientation_is_applied() -> None:
    image = Image.fromarray(np.repeat(np.arange(0, 256, 8, dtype=np.uint8)[None], 64, 0))  # 32 wide, 64 high, dark left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    small, _ = Encoding(max_size=32).apply(saved(image, "JPEG", exif=exif), "jpg")
    with Image.open(io.BytesIO(small)) as turned:
        assert turned.size == (32, 16)
        assert turned.getexif().get(0x0112, 1) == 1
        pixels = np.asarray(turned, dtype=int)
        assert pixels[0].mean() < 40 < 200 < pixels[-1].mean()
