"""Decoding of images to RGB pixels, by the same rules everywhere.

| stored                              | becomes                                                              |
|-------------------------------------|----------------------------------------------------------------------|
| RGB, 8 bits                         | itself                                                               |
| grey, 1-bit, palette                | three equal channels; black and white; the palette's colours         |
| alpha, or a transparent colour      | composited on white                                                  |
| CMYK, YCbCr, HSV                    | converted by Pillow, colour profiles ignored                         |
| 16 bits                             | the high byte (the full range of the type, not of the image)         |
| 32-bit integers                     | as 16 bits where all values are 0 to 65535, refused otherwise        |
| floats                              | times 255 where all values are 0 to 1, refused otherwise             |
| EXIF orientation                    | applied, in every format                                             |
| several frames or pages             | refused (extra images that phones add to a JPEG are ignored)         |

JPEGs are decoded with simplejpeg if it is installed, otherwise with OpenCV (both use libjpeg-turbo, give the same
pixels and release the GIL), and with Pillow if these refuse them. All other formats are decoded with the matching
Pillow plugin, so that Pillow's own format detection never runs. Pillow 13 raised exceptions on all of 60 damaged PNGs,
where torchvision crashed the process on 59.
"""

from __future__ import annotations

import importlib
import io
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin
from PIL.Image import Image

from choral.core.errors import DataError
from choral.data.loading.image_headers import JpegHeader, read_exif_orientation, read_jpeg_header, read_webp_header
from choral.data.shards.image_formats import ImageFormat, detect_format

Pixels = NDArray[np.uint8]

MAX_PIXELS = 178_956_970
"""Pillow's limit for a decompression bomb, too."""

_PLUGINS: dict[ImageFormat, Any] = {
    "jpeg": JpegImagePlugin.JpegImageFile,
    "png": PngImagePlugin.PngImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
    "gif": GifImagePlugin.GifImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
    "tiff": TiffImagePlugin.TiffImageFile,
}
_ORIENTATION = 0x0112
_STRIPE = 1 << 18  # pixels


class TooManyPixels(DataError):
    """An image has more pixels than the limit; it was not decoded."""


def _import_optional(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


_simplejpeg = _import_optional("simplejpeg")


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS, min_size: tuple[int, int] | None = None) -> Pixels:
    """Decode one image.

    Args:
        data: the encoded image.
        max_pixels: height x width above which nothing is decoded.
        min_size: (height, width) after orientation. A JPEG may then be decoded smaller by 2, 4 or 8, as long as both
            sides stay at least this large; its pixels differ from those of a full decode that is resized. None: full
            size.

    Returns:
        (H, W, 3) uint8, RGB, C-contiguous; the memory may be read-only.

    Raises:
        DataError: unknown or refused format, too many pixels (`TooManyPixels`), several frames, damaged or truncated
            data, values out of range. The message does not name the sample.
    """
    kind = detect_format(data)
    if kind != "jpeg":
        return _decode_with_pillow(data, kind, max_pixels)
    header = read_jpeg_header(data)
    _check_size(header.height, header.width, max_pixels)
    image = None
    if header.precision == 8 and header.channels in (1, 3):
        image = _decode_jpeg(data, header, _shrink_factor(header, min_size))
    if image is None:
        return _decode_with_pillow(data, kind, max_pixels)
    return _orient(image, header.orientation)


def from_pillow(image: Image, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Return the pixels of a Pillow image by the rules above; of several frames, the current one.

    Args:
        image: opened from a file or created.
        max_pixels: as in `decode`.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        DataError: as `decode`.
    """
    _check_size(image.height, image.width, max_pixels)
    try:
        image.load()  # first, because Pillow then rotates TIFFs itself and drops the tag
        return _orient(_to_rgb(image), int(image.getexif().get(_ORIENTATION, 1)))
    except DataError:
        raise
    except Exception as error:  # as in `_decode_with_pillow`
        raise DataError(f"an image that is damaged or cut short: {str(error) or type(error).__name__}") from error


def full_size(data: bytes) -> tuple[int, int] | None:
    """Return the (height, width) of a JPEG decoded without `min_size`; None for other formats.

    Raises:
        DataError: as `decode`, for errors in the header.
    """
    if detect_format(data) != "jpeg":
        return None
    header = read_jpeg_header(data)
    return (header.width, header.height) if header.orientation >= 5 else (header.height, header.width)


def stored_size(data: bytes) -> tuple[int, int]:
    """Return the (height, width) of an image as stored, before EXIF orientation, from its header.

    Raises:
        DataError: as `decode`, for errors in the header.
    """
    kind = detect_format(data)
    if kind == "jpeg":
        header = read_jpeg_header(data)
        return header.height, header.width
    if kind == "webp":
        return read_webp_header(data)[:2]
    try:
        image = _PLUGINS[kind](io.BytesIO(data))
    except Exception as error:  # as in `decode`
        raise _damage_error(kind, error) from error
    return image.height, image.width


def _check_size(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise TooManyPixels(f"{width} x {height} pixels, more than the limit of {max_pixels:,} (data.max_pixels)")


def _shrink_factor(header: JpegHeader, min_size: tuple[int, int] | None) -> int:
    """Return the factor that the decoder shrinks by. Only powers of two: other scales decode slower than full size."""
    if min_size is None:
        return 1
    low, other = min_size if header.orientation < 5 else min_size[::-1]
    return next(
        by for by in (8, 4, 2, 1) if by == 1 or (-(-header.height // by) >= low and -(-header.width // by) >= other)
    )


def _decode_jpeg(data: bytes, header: JpegHeader, factor: int) -> Pixels | None:
    """Decode with the fast library; None if it reports any problem, which Pillow may tolerate."""
    if _simplejpeg is not None:
        shrink = {}
        if factor > 1:
            height, width = -(-header.height // factor), -(-header.width // factor)
            shrink = {"min_height": height, "min_width": width, "min_factor": factor}
        try:
            pixels: Pixels = _simplejpeg.decode_jpeg(data, "RGB", **shrink)
        except ValueError:
            return None
        return pixels
    flags = {
        1: cv2.IMREAD_COLOR,
        2: cv2.IMREAD_REDUCED_COLOR_2,
        4: cv2.IMREAD_REDUCED_COLOR_4,
        8: cv2.IMREAD_REDUCED_COLOR_8,
    }
    if data.rfind(b"\xff\xd9") < data.find(b"\xff\xda"):
        return None  # no end marker after the start of the scan: some versions of OpenCV fill the rest with grey
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags[factor] | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return None
    return None if image is None else _uint8(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))


def _decode_with_pillow(data: bytes, kind: ImageFormat, max_pixels: int) -> Pixels:
    try:
        if kind == "webp":
            height, width, animated = read_webp_header(data)
            _check_size(height, width, max_pixels)
            if animated:
                raise DataError("a WEBP of several frames; only single images are read")
        image = _PLUGINS[kind](io.BytesIO(data))  # not Image.open, which applies its own limit and warns
        _check_size(image.height, image.width, max_pixels)
        if kind in ("gif", "png", "tiff") and image.is_animated:
            raise DataError(
                f"a {kind.upper()} of several {'pages' if kind == 'tiff' else 'frames'}; only single images are read"
            )
        image.load()
        if kind == "tiff":  # Pillow rotates TIFFs itself and then drops the tag
            orientation = int(image.getexif().get(_ORIENTATION, 1))
        else:
            orientation = read_exif_orientation(image.info.get("exif", b""))
        return _orient(_to_rgb(image), orientation)
    except DataError:
        raise
    except Exception as error:  # on damaged data, Pillow's plugins raise almost anything: struct.error, SyntaxError ...
        raise _damage_error(kind, error) from error


def _damage_error(kind: ImageFormat, error: Exception) -> DataError:
    return DataError(f"a {kind.upper()} that is damaged or cut short: {str(error) or type(error).__name__}")


def _to_rgb(image: Image) -> Pixels:
    mode = image.mode
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return _composite_on_white(np.asarray(image.convert("RGBA")))
    if mode == "RGB":
        return np.asarray(image)
    if mode == "L":
        return grey_to_rgb(np.asarray(image))
    if mode.startswith("I"):
        values = np.asarray(image)
        if values.dtype.itemsize > 2 and (values.min() < 0 or values.max() > 65535):
            raise DataError(f"integers from {values.min()} to {values.max()}; expected 0 to 65535")
        return grey_to_rgb((values >> 8).astype(np.uint8))
    if mode == "F":
        levels = np.asarray(image)
        if not (levels.min() >= 0 and levels.max() <= 1):  # also false for NaN
            raise DataError(f"floats from {levels.min():g} to {levels.max():g}; expected 0 to 1")
        return grey_to_rgb(np.rint(levels * np.float32(255)).astype(np.uint8))
    return np.asarray(image.convert("RGB"))


def _composite_on_white(rgba: Pixels) -> Pixels:
    result = np.empty((*rgba.shape[:2], 3), np.uint8)
    rows = max(1, _STRIPE // rgba.shape[1])
    # In stripes: 16-bit intermediates of a whole large image would take most of the memory.
    for start in range(0, len(rgba), rows):
        part = rgba[start : start + rows]
        alpha = part[..., 3:].astype(np.uint16)
        # At most 255 * 255, which fits into 16 bits even with rounding.
        blended = part[..., :3] * alpha + 255 * (255 - alpha)
        result[start : start + rows] = (blended + 127) // 255
    return result


def grey_to_rgb(values: Pixels) -> Pixels:
    """Return (H, W, 3) with three equal channels, from (H, W) or (H, W, 1)."""
    return _uint8(cv2.cvtColor(values, cv2.COLOR_GRAY2RGB))


def _orient(image: Pixels, orientation: int) -> Pixels:
    """Apply an EXIF orientation; 0, 1 and unknown values leave the image unchanged."""
    match orientation:
        case 2:
            return _uint8(cv2.flip(image, 1))
        case 3:
            return _uint8(cv2.rotate(image, cv2.ROTATE_180))
        case 4:
            return _uint8(cv2.flip(image, 0))
        case 5:
            return _uint8(cv2.transpose(image))
        case 6:
            return _uint8(cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE))
        case 7:
            return _uint8(cv2.rotate(cv2.transpose(image), cv2.ROTATE_180))
        case 8:
            return _uint8(cv2.rotate(image, cv2.ROTATE_90_COUNTERCLOCKWISE))
    return image


def _uint8(image: Any) -> Pixels:
    """Narrow the type: OpenCV's stubs allow integers or floats, but uint8 input gives uint8 output."""
    pixels: Pixels = image
    return pixels
