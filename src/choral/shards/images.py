"""What an image file really is, whether it opens, and making it smaller on request.

Formats are told by their first bytes, never by the file's name, and Pillow is told which format to expect: left to
itself it would hand PostScript named .jpg to Ghostscript.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

from PIL import Image, ImageOps

from choral.errors import DataError

MAX_PIXELS = 178_956_970  # Pillow's own limit for an error: a third of a GiB of RGB
_PILLOW_FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP", "tif": "TIFF"}
_RANGES = {"F": (0, 1), "I": (0, 65535)}  # of modes that are decoded only where the values lie in there
_REFUSED = (  # (offset, bytes, what it is): files that often bear an image's name
    (0, b"%!PS", "PostScript (EPS): convert it to PNG"),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript (EPS): convert it to PNG"),
    (0, b"%PDF", "a PDF: convert it to PNG"),
    (4, b"ftyphei", "a HEIC photo: convert it to JPEG"),
    (4, b"ftypmif1", "a HEIC photo: convert it to JPEG"),
    (4, b"ftypavif", "an AVIF image: convert it to JPEG"),
    (0, b"PK\x03\x04", "a ZIP archive"),
)


def sniff(data: bytes) -> str | None:
    """Return "jpg", "png", "webp", "gif", "bmp" or "tif" by the first bytes, None for anything else."""
    if data[:3] == b"\xff\xd8\xff":
        return "jpg"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if data[:4] in (b"II*\0", b"MM\0*"):
        return "tif"
    if data[:2] == b"BM" and data[6:10] == b"\0\0\0\0":  # two letters are little: the reserved fields count too
        return "bmp"
    return None


def verify(data: bytes) -> str:
    """Return the format of a whole, single image; PNG by its checksums, the others by decoding them.

    Raises:
        DataError: not an image of a known format, animated, larger than `MAX_PIXELS`, or damaged. The message is a
            reason without a file name, which the caller knows.
    """
    ext = sniff(data)
    if ext is None:
        raise DataError(_what_it_is(data))
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


def _what_it_is(data: bytes) -> str:
    for offset, magic, name in _REFUSED:
        if data[offset : offset + len(magic)] == magic:
            return name
    if not data:
        return "an empty file"
    if b"<svg" in data[:1024]:
        return "an SVG drawing: convert it to PNG"
    return f"not an image (it begins with {data[:16]!r})"


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
