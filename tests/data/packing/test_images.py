from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from choral.core.errors import DataError
from choral.data.packing.image_files import ImageEncoding, verify_image
from small_sources import image_bytes


def saved(image: Image.Image, fmt: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(("fmt", "ext"), [
    ("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp"), ("GIF", "gif"), ("BMP", "bmp"), ("TIFF", "tif"),
])  # fmt: skip
def test_formats(fmt: str, ext: str) -> None:
    data = image_bytes("red", fmt=fmt)
    assert verify_image(data) == ext


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
    (b"hello, I am text\n", r"not an image \(it begins with b'hello, I am '\)"),
    (b"", "the file is empty"),
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
def test_rejected_images(data: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        verify_image(data)


def test_flipped_bits_of_a_png_are_detected() -> None:
    data = bytearray(image_bytes("red", (16, 16)))
    for position in range(8, len(data) - 12):  # the end marker has no data
        data[position] ^= 1
        with pytest.raises(DataError):
            verify_image(bytes(data))
        data[position] ^= 1


def test_images_are_stored_byte_for_byte_by_default() -> None:
    data = image_bytes("red", (40, 30))
    assert ImageEncoding().apply(data, "png") == (data, "png")
    assert ImageEncoding(max_size=40).apply(data, "png") == (data, "png")


@pytest.mark.parametrize(("mode", "fmt", "encoding", "ext", "kept"), [
    ("RGB", "JPEG", ImageEncoding(max_size=20), "jpg", "RGB"),
    ("CMYK", "JPEG", ImageEncoding(max_size=20), "jpg", "CMYK"),
    ("L", "PNG", ImageEncoding(max_size=20), "png", "L"),
    ("RGBA", "PNG", ImageEncoding(max_size=20), "png", "RGBA"),
    ("I;16", "PNG", ImageEncoding(max_size=20), "png", "I;16"),
    ("P", "PNG", ImageEncoding(max_size=20), "png", "RGB"),
    ("1", "PNG", ImageEncoding(max_size=20), "png", "L"),
    ("RGB", "PNG", ImageEncoding(max_size=20, quality=80), "jpg", "RGB"),
    ("RGBA", "PNG", ImageEncoding(max_size=20, quality=80), "png", "RGBA"),
    ("RGB", "WEBP", ImageEncoding(max_size=20), "jpg", "RGB"),
    ("CMYK", "TIFF", ImageEncoding(max_size=20), "png", "RGB"),
])  # fmt: skip
def test_scaling_keeps_the_mode(mode: str, fmt: str, encoding: ImageEncoding, ext: str, kept: str) -> None:
    data = saved(Image.new(mode, (40, 30)), fmt)
    small, stored = encoding.apply(data, verify_image(data))
    with Image.open(io.BytesIO(small)) as image:
        assert (stored, image.size, image.mode) == (ext, (20, 15), kept)
    assert verify_image(small) == ext


def test_exif_orientation_is_applied() -> None:
    image = Image.fromarray(np.repeat(np.arange(0, 256, 8, dtype=np.uint8)[None], 64, 0))  # 32 wide, 64 high, dark left
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate clockwise
    small, _ = ImageEncoding(max_size=32).apply(saved(image, "JPEG", exif=exif), "jpg")
    with Image.open(io.BytesIO(small)) as turned:
        assert turned.size == (32, 16)
        assert turned.getexif().get(0x0112, 1) == 1
        pixels = np.asarray(turned, dtype=int)
        assert pixels[0].mean() < 40 < 200 < pixels[-1].mean()
