"""What an image file really is, whether it opens, and making it smaller on request.

Pillow is told which format to expect: see `formats`.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

from PIL import Image, ImageOps

from choral.core.errors import DataError
from choral.data.shards.image_formats import Format, sniff

MAX_PIXELS = 178_956_970  # Pillow's own limit for an error: a third of a GiB of RGB
_PILLOW_FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP", "tif": "TIFF"}
_RANGES = {"F": (0, 1), "I": (0, 65535)}  # of modes that are decoded only where the values lie in there
_EXTENSIONS: dict[Format, str] = {"jpeg": "jpg", "tiff": "tif"}  # where they differ from the format's name


def verify(data: bytes) -> str:
    """Return the format of a whole, single image; PNG by its checksums, the others by decoding them.

    Raises:
        DataError: not an image of a known format, animated, larger than `MAX_PIXELS`, or damaged. The message is a
            reason without a file name, which the caller knows.
    """
    kind = sniff(data)
    ext = _EXTENSIONS.get(kind, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd but readable metadata is not our business, and size is checked below
        try:
            with Image.open(io.BytesIO(data), formats=[_PILLOW_FORMATS[ext]]) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise DataError(f"{image.width} x {image.height} pixels are more than the limit of {MAX_PIXELS}")
                frames = 1 if ext == "jpg" else getattr(image, "n_frames", 1)  # a JPEG's others are previews and depth
                if frames > 1:
                    raise DataError(f"{frames} frames in one {ext} file (animated, or pages): store each as an image")
                if ext == "png":
                    image.verify()
                else:
                    image.draft("L", (1, 1))  # JPEG: every bit is read, but few pixels computed
                    image.load()
                    _check_range(image)
        except DataError:
            raise
        except (
            Exception
        ) as error:  # decoders of damaged files raise nearly anything: OSError, SyntaxError, struct.error ...
            raise DataError(f"damaged {ext} image ({error})") from error
    return ext


def _check_range(image: Image.Image) -> None:
    if image.mode in _RANGES:
        low, high = _RANGES[image.mode]
        least, most = (float(value) for value in image.getextrema())  # type: ignore[arg-type]
        if not (low <= least and most <= high):  # also where they are NaN
            raise DataError(f"values from {least} to {most}, expected {low} to {high}: convert it to 8 or 16 bits")


@dataclass(frozen=True)
class Encoding:
    """How images are stored: byte for byte, unless one of these is set.

    max_size: the longest side in pixels; larger images are scaled down, JPEG and WebP to JPEG, others to PNG.
    quality: of JPEG, 1 to 95; where given, every image becomes JPEG, except those with transparency or 16 bits (PNG).
    """

    max_size: int | None = None
    quality: int | None = None

    def apply(self, data: bytes, ext: str) -> tuple[bytes, str]:
        """Return bytes and format to be stored for a verified image; encoded again, it is turned upright (EXIF)."""
        if self.max_size is None and self.quality is None:
            return data, ext
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=[_PILLOW_FORMATS[ext]]) as image:
                too_large = self.max_size is not None and max(image.size) > self.max_size
                if image.mode in ("I", "F") or not (too_large or self.quality is not None):
                    return data, ext  # 32-bit values fit neither JPEG nor PNG
                small = _common_mode(image)
                if self.max_size is not None and too_large:
                    small.thumbnail((self.max_size, self.max_size), Image.Resampling.LANCZOS, reducing_gap=3.0)
                small = ImageOps.exif_transpose(small)
                lossy = self.quality is not None or ext in ("jpg", "webp")
                return _encode(small, self.quality or 90, lossy)


def _common_mode(image: Image.Image) -> Image.Image:
    """Return the image in a mode that can be scaled and stored; depth, grey and transparency stay what they are."""
    if "transparency" in image.info:  # a transparent colour would not survive scaling
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
