"""Decoding: each row of the table in decode.py, and refused files."""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from choral.core.errors import DataError
from choral.data.loading import decode as decode_module
from choral.data.loading.decode import TooManyPixels, decode, full_size, stored_size
from choral.data.loading.image_headers import read_exif_orientation
from image_bytes import encoded, photo

TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 1)[:, ::-1],
    8: lambda a: np.rot90(a, 1),
}


def pillow(data: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


@pytest.fixture(params=["simplejpeg", "opencv"])
def jpeg_library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "opencv":
        monkeypatch.setattr(decode_module, "_simplejpeg", None)
    return str(request.param)


@pytest.mark.usefixtures("jpeg_library")
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((40, 56), {}),
        ((41, 57), {"subsampling": 0}),
        ((41, 57), {"subsampling": 1}),
        ((39, 55), {"progressive": True}),
        ((3, 2), {}),
        ((1, 1), {}),
        ((40, 56), {"restart_marker_rows": 1}),
    ],
)
def test_all_libraries_decode_jpegs_to_the_same_pixels(shape: tuple[int, int], options: dict[str, object]) -> None:
    data = encoded(photo(*shape), "JPEG", **options)
    image = decode(data)
    assert image.dtype == np.uint8 and image.flags.c_contiguous
    np.testing.assert_array_equal(image, pillow(data))


@pytest.mark.usefixtures("jpeg_library")
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_is_applied_in_every_format(name: str, orientation: int) -> None:
    pixels = photo(24, 40)
    options = {"lossless": True} if name == "WEBP" else {}
    plain = decode(encoded(pixels, name, **options))
    data = encoded(pixels, name, orientation=orientation, **options)
    np.testing.assert_array_equal(decode(data), TURNED[orientation](plain))
    np.testing.assert_array_equal(decode(data), pillow(data))
    if name == "JPEG":
        assert full_size(data) == decode(data).shape[:2]


def test_damaged_metadata_is_ignored() -> None:
    data = encoded(photo(24, 40), "JPEG", orientation=6)
    at = data.index(b"Exif\x00\x00") + 6
    for length in range(24):
        broken = data[:at] + b"\xff" * length + data[at + length :]
        assert decode(broken).shape in ((24, 40, 3), (40, 24, 3))
    assert read_exif_orientation(b"II*\x00\x08\x00\x00\x00\xff\xff") == 0
    assert read_exif_orientation(b"") == 0


@pytest.mark.usefixtures("jpeg_library")
def test_a_jpeg_is_shrunk_only_as_far_as_allowed() -> None:
    data = encoded(photo(128, 200), "JPEG", orientation=6)
    assert decode(data).shape == (200, 128, 3)
    for min_size, shape in {
        (200, 128): (200, 128),
        (101, 10): (200, 128),
        (100, 64): (100, 64),
        (100, 65): (200, 128),
        (50, 32): (50, 32),
        (1, 1): (25, 16),
    }.items():
        assert decode(data, min_size=min_size).shape == (*shape, 3)
    small = decode(data, min_size=(100, 64)).astype(float)
    by_area = cv2.resize(decode(data), (64, 100), interpolation=cv2.INTER_AREA)
    assert np.abs(small - by_area).mean() < 2


def ramp(dtype: type, peak: float) -> NDArray[np.generic]:
    return np.linspace(0, peak, 24 * 32).reshape(24, 32).astype(dtype)


def test_grey_becomes_three_equal_channels() -> None:
    values = ramp(np.uint8, 255)
    for name in ("PNG", "BMP", "TIFF"):
        np.testing.assert_array_equal(decode(encoded(values, name)), np.dstack([values] * 3))
    jpeg = decode(encoded(values, "JPEG"))
    assert (jpeg[..., :1] == jpeg).all()


def test_one_bit_becomes_black_and_white() -> None:
    bits = np.arange(24 * 32).reshape(24, 32) % 3 == 0
    image = decode(encoded(Image.fromarray(bits), "PNG"))
    np.testing.assert_array_equal(image, np.dstack([bits * 255] * 3))


def test_a_palette_becomes_its_colours() -> None:
    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3) % 3, "P")
    image.putpalette([10, 20, 30, 200, 100, 0, 0, 0, 255])
    expected = np.array([[[10, 20, 30], [200, 100, 0], [0, 0, 255]]] * 2)
    for name in ("PNG", "GIF", "BMP"):
        np.testing.assert_array_equal(decode(encoded(image, name)), expected)


@pytest.mark.parametrize("name", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_high_byte(name: str) -> None:
    values = ramp(np.uint16, 65535)
    np.testing.assert_array_equal(decode(encoded(values, name)), np.dstack([values >> 8] * 3))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_colour_keeps_its_high_byte(suffix: str) -> None:
    values = np.dstack([ramp(np.uint16, peak) for peak in (65535, 40000, 300)])
    data = cv2.imencode(suffix, values)[1].tobytes()
    np.testing.assert_array_equal(decode(data), values[..., ::-1] >> 8)


def test_32_bit_integers_must_fit_into_16() -> None:
    values = ramp(np.int32, 65535)
    np.testing.assert_array_equal(decode(encoded(values, "TIFF")), np.dstack([values >> 8] * 3))
    with pytest.raises(DataError, match="integers from -1 to 7; expected 0 to 65535"):
        decode(encoded(np.array([[-1, 7]], np.int32), "TIFF"))


def test_floats_must_lie_between_0_and_1() -> None:
    values = ramp(np.float32, 1)
    np.testing.assert_array_equal(decode(encoded(values, "TIFF")), np.dstack([np.rint(values * 255)] * 3))
    for wrong in ([[0, 1.5]], [[-0.1, 1]], [[np.nan, 0.5]]):
        with pytest.raises(DataError, match=r"floats from .* expected 0 to 1"):
            decode(encoded(np.array(wrong, np.float32), "TIFF"))


def test_transparency_is_composited_on_white() -> None:
    rgba = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [200, 100, 0, 51], [0, 0, 0, 128]]], np.uint8)
    expected = [[[200, 100, 0], [255, 255, 255], [244, 224, 204], [127, 127, 127]]]
    for name, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})):
        np.testing.assert_array_equal(decode(encoded(rgba, name, **options)), expected)
    grey_alpha = Image.fromarray(rgba[..., 2:], "LA")
    np.testing.assert_array_equal(decode(encoded(grey_alpha, "PNG"))[0, :, 0], [0, 255, 204, 127])
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([10, 20, 30, 200, 100, 0])
    np.testing.assert_array_equal(decode(encoded(image, "PNG", transparency=0)), [[[255, 255, 255], [200, 100, 0]]])
    one_colour = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    np.testing.assert_array_equal(decode(encoded(one_colour, "PNG", transparency=(1, 2, 3)))[0], [[255] * 3, [4, 5, 6]])


@pytest.mark.usefixtures("jpeg_library")
def test_transparency_of_an_image_that_is_composited_in_stripes() -> None:
    rng = np.random.default_rng(0)
    rgba = rng.integers(0, 256, (1100, 500, 4), np.uint8)
    assert rgba[..., 0].size > 2 * decode_module._STRIPE and rgba[..., 0].size % decode_module._STRIPE
    alpha = rgba[..., 3:].astype(np.int64)
    expected = (rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255
    np.testing.assert_array_equal(decode(encoded(rgba, "PNG", compress_level=0)), expected)


def test_cmyk_becomes_rgb() -> None:
    image = Image.fromarray(photo(24, 40)).convert("CMYK")
    for name in ("JPEG", "TIFF"):
        data = encoded(image, name)
        np.testing.assert_array_equal(decode(data), pillow(data))
    assert np.abs(decode(encoded(image, "TIFF")).astype(int) - photo(24, 40)).max() <= 1


@pytest.mark.parametrize("name", ["GIF", "WEBP", "PNG", "TIFF"])
def test_several_frames_are_refused(name: str) -> None:
    frames = [Image.fromarray(photo(8, 9, seed=seed)) for seed in (1, 2, 3)]
    with pytest.raises(DataError, match=rf"a {name} of several (frames|pages); only single images are read"):
        decode(encoded(frames[0], name, save_all=True, append_images=frames[1:]))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", r"a PostScript drawing \(EPS\); supported formats are JPEG, PNG"),
        (b"\xc5\xd0\xd3\xc6\x1e\x00", r"a PostScript drawing \(EPS\)"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', r"a vector drawing \(SVG\)"),
        (b'\xef\xbb\xbf <?xml version="1.0"?>\n<!-- x -->\n<svg/>', r"a vector drawing \(SVG\)"),
        (b"<!DOCTYPE html><html>", "an HTML or XML document"),
        (b"%PDF-1.7", "a PDF document"),
        (b"\x00\x00\x00\x18ftypheic", "a HEIC, AVIF or video file"),
        (b"just some text", r"not an image \(it begins with b'just some te'"),
        (b"\x00" * 100, "not an image"),
        (b"\xff\xd8\xff", "a JPEG without a frame header"),
        (b"\xff\xd8\xff\xd9", "a JPEG without a frame header"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8X", "a WebP without a usable header"),
        (b"BM\x40" + bytes(20), "a BMP that is damaged or cut short"),
        (b"GIF89a", "a GIF that is damaged or cut short"),
        (b"II*\x00", "a TIFF that is damaged or cut short"),
        (b"\x89PNG\r\n\x1a\n", "a PNG that is damaged or cut short"),
    ],
)
def test_files_that_are_not_images_are_refused_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        decode(data)


def bomb(name: str, side: int) -> bytes:
    """Return a small file that claims to hold side x side pixels."""
    if name == "PNG":
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
        parts = (struct.pack(">I", len(b)) + n + b + struct.pack(">I", zlib.crc32(n + b)) for n, b in chunks)
        return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
    data = bytearray(encoded(photo(8, 8), name, **({"lossless": True} if name == "WEBP" else {})))
    if name == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", side, side)
    elif name == "GIF":
        data[6:10] = struct.pack("<HH", side, side)
    elif name == "BMP":
        data[18:26] = struct.pack("<ii", side, side)
    else:
        side = min(side, 16384)
        data[21:25] = struct.pack("<I", (side - 1) << 14 | (side - 1))
    return bytes(data)


@pytest.mark.parametrize("name", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
def test_decompression_bombs_are_refused_before_decoding(name: str) -> None:
    with pytest.raises(DataError, match=r"pixels, more than the limit of 178,956,970 \(data.max_pixels\)"):
        decode(bomb(name, 60_000))


@pytest.mark.parametrize("name", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"])
def test_the_limit_counts_pixels(name: str) -> None:
    data = encoded(photo(20, 30), name)
    assert decode(data, max_pixels=600).shape == (20, 30, 3)
    with pytest.raises(DataError, match="30 x 20 pixels, more than the limit of 599"):
        decode(data, max_pixels=599)


@pytest.mark.usefixtures("jpeg_library")
@pytest.mark.parametrize("name", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"])
def test_stored_size_is_read_from_the_header(name: str) -> None:
    data = encoded(photo(20, 31), name)
    assert stored_size(data) == (20, 31)
    with pytest.raises(TooManyPixels):
        decode(data, max_pixels=619)
    with pytest.raises(DataError, match=r"damaged|cut short|header"):
        stored_size(data[:16])


@pytest.mark.parametrize("name", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"])
def test_truncated_images_are_refused(name: str) -> None:
    data = encoded(photo(60, 80), name)
    for length in np.linspace(0, len(data) * 0.97, 25).astype(int):
        with pytest.raises(DataError):
            decode(data[:length])


@pytest.mark.usefixtures("jpeg_library")
def test_a_jpeg_without_its_end_is_refused() -> None:
    data = encoded(photo(60, 80), "JPEG")
    for cut in (1, 2, 10):
        with pytest.raises(DataError, match="JPEG that is damaged or cut short"):
            decode(data[:-cut])
    np.testing.assert_array_equal(decode(data + b"trailing"), decode(data))


@pytest.mark.usefixtures("jpeg_library")
def test_a_repairable_jpeg_decodes_to_the_same_pixels_in_every_library() -> None:
    data = encoded(photo(120, 160), "JPEG", quality=95)
    middle = len(data) // 2
    data = data[:middle] + bytes(40) + data[middle + 40 :]
    np.testing.assert_array_equal(decode(data), pillow(data))


@pytest.mark.parametrize("name", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"])
def test_flipped_bits_give_pixels_or_a_reason(name: str) -> None:
    data = encoded(photo(30, 40), name)
    random = np.random.default_rng(1)
    outcomes = {"decoded": 0, "refused": 0}
    for position, bit in zip(random.integers(0, len(data), 60), random.integers(0, 8, 60), strict=True):
        broken = bytearray(data)
        broken[position] ^= 1 << bit
        try:
            assert decode(bytes(broken), max_pixels=100_000).shape[2] == 3
            outcomes["decoded"] += 1
        except DataError as error:
            assert str(error)
            outcomes["refused"] += 1
    if name == "PNG":
        assert outcomes["decoded"] <= 3  # checksums detect almost all
