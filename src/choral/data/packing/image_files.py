"""Verifies image files and, on request, scales or re-encodes them.

Pillow is always given the format to expect; see `choral.data.shards.image_formats`.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

from PIL import Image, ImageOps

from choral.core.errors import DataError
from choral.data.shards.image_formats import ImageFormat, detect_format

MAX_PIXELS = 178_956_970  # Pillow's error limit: half a GiB of RGB
_PILLOW_FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP", "tif": "TIFF"}
_VALUE_RANGES = {"F": (0, 1), "I": (0, 65535)}  # accepted values of Pillow's 32-bit modes
_EXTENSIONS: dict[ImageFormat, str] = {"jpeg": "jpg", "tiff": "tif"}  # that differ from the name of the format


def verify_image(data: bytes) -> str:
    """Verify that `data` is one complete image and return its format: "jpg", "png", "webp", "gif", "bmp" or "tif".

    PNG is verified by its checksums, the other formats by decoding.

    Raises:
        DataError: not an image of a supported format, animated, larger than `MAX_PIXELS`, or damaged. The message gives
            the reason only; the caller adds the file name.
    """
    kind = detect_format(data)
    ext = _EXTENSIONS.get(kind, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata is harmless, and the size is checked below
        try:
            with Image.open(io.BytesIO(data), formats=[_PILLOW_FORMATS[ext]]) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise DataError(f"{image.width} x {image.height} pixels are more than the limit of {MAX_PIXELS}")
                frames = 1 if ext == "jpg" else getattr(image, "n_frames", 1)  # further JPEG frames: previews, depth
                if frames > 1:
                    raise DataError(
                        f"{frames} frames in one {ext} file (animation or pages): store each frame as an image"
                    )
                if ext == "png":
                    image.verify()
                else:
                    image.draft("L", (1, 1))  # JPEG: reads every byte but computes few pixels
                    image.load()
                    _check_range(image)
        except DataError:
            raise
        except (
            Exception
        ) as error:  # decoders raise many types for damaged files: OSError, SyntaxError, struct.error ...
            raise DataError(f"damaged {ext} image ({error})") from error
    return ext


def _check_range(image: Image.Image) -> None:
    if image.mode in _VALUE_RANGES:
        low, high = _VALUE_RANGES[image.mode]
        smallest, largest = (float(value) for value in image.getextrema())  # type: ignore[arg-type]
        if not (low <= smallest and largest <= high):  # also true for NaN
            raise DataError(
                f"values from {smallest} to {largest}, expected {low} to {high}: convert it to 8 or 16 bits"
            )


@dataclass(frozen=True)
class ImageEncoding:
    """How images are stored: byte for byte, unless one of these options is set.

    max_size: longest side in pixels; larger images are scaled down, JPEG and WebP to JPEG, other formats to PNG.
    quality: JPEG quality, 1 to 95; if set, every image is re-encoded as JPEG, or as PNG if it has transparency or
        16 bits per channel.
    """

    max_size: int | None = None
    quality: int | None = None

    def apply(self, data: bytes, ext: str) -> tuple[bytes, str]:
        """Return the bytes and format to store for a verified image; re-encoding applies the EXIF orientation."""
        if self.max_size is None and self.quality is None:
            return data, ext
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=[_PILLOW_FORMATS[ext]]) as image:
                too_large = self.max_size is not None and max(image.size) > self.max_size
                if image.mode in ("I", "F") or not (too_large or self.quality is not None):
                    return data, ext  # 32-bit values fit neither JPEG nor PNG
                converted = _storable_mode(image)
                if self.max_size is not None and too_large:
                    converted.thumbnail((self.max_size, self.max_size), Image.Resampling.LANCZOS, reducing_gap=3.0)
                converted = ImageOps.exif_transpose(converted)
                lossy = self.quality is not None or ext in ("jpg", "webp")
                return _encode(converted, self.quality or 90, lossy)


def _storable_mode(image: Image.Image) -> Image.Image:
    """Return the image in a mode that can be scaled and stored; bit depth, greyscale and transparency are kept."""
    if "transparency" in image.info:  # scaling would lose a transparent colour key
        return image.convert("RGBA")
    if image.mode == "P":
        return image.convert("RGB")
    if image.mode == "1":
        return image.convert("L")
    if image.mode in ("L", "LA", "RGB", "RGBA", "CMYK") or image.mode.startswith("I;16"):
        return image
    return image.convert("RGB")


def _encode(image: Image.Image, quality: int, lossy: bool) -> tuple[bytes, str]:
    buffer = io.BytesIO()
    if lossy and image.mode in ("L", "RGB", "CMYK"):
        image.save(buffer, "JPEG", quality=quality, optimize=True)
        return buffer.getvalue(), "jpg"
    if image.mode == "CMYK":  # PNG cannot hold it
        image = image.convert("RGB")
    image.save(buffer, "PNG")
    return buffer.getvalue(), "png"
