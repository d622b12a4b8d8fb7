"""Size and EXIF orientation of an encoded image, read from its header without decoding it."""

from __future__ import annotations

import struct
from typing import NamedTuple

from choral.core.errors import DataError

_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_WITHOUT_LENGTH = frozenset(range(0xD0, 0xD9)) | {0x01}


class JpegHeader(NamedTuple):
    """Size as stored, before `orientation` (EXIF, 1 to 8) is applied; bits per channel; number of channels."""

    height: int
    width: int
    precision: int
    channels: int
    orientation: int


def read_jpeg_header(data: bytes) -> JpegHeader:
    """Return the header of a JPEG, reading its markers up to the frame header.

    Raises:
        DataError: it has no frame header, or a size of 0.
    """
    position, orientation = 2, 0
    while True:
        position = data.find(b"\xff", position)
        if position < 0 or position + 4 > len(data):
            break
        marker = data[position + 1]
        if marker in (0x00, 0xFF):  # garbage or padding, which decoders skip
            position += 1
            continue
        if marker in _WITHOUT_LENGTH:
            position += 2
            continue
        if marker in (0xD9, 0xDA):
            break
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        if marker in _FRAME_HEADERS and position + 10 <= len(data):
            precision, height, width, channels = struct.unpack_from(">BHHB", data, position + 4)
            if height == 0 or width == 0:
                raise DataError(f"a JPEG of {height} x {width} pixels")
            return JpegHeader(height, width, precision, channels, orientation or 1)
        if marker == 0xE1 and not orientation:
            orientation = read_exif_orientation(data[position + 4 : position + 2 + length])
        position += 2 + length
    raise DataError("a JPEG without a frame header: cut short or damaged")


def read_exif_orientation(block: bytes) -> int:
    """Return the orientation (1 to 8) in a block of EXIF data, with or without its "Exif" prefix.

    Returns 0 if there is none or the block is damaged: bad metadata must not make an image unreadable.
    """
    block = block.removeprefix(b"Exif\x00\x00")
    byte_order = {b"II*\x00": "<", b"MM\x00*": ">"}.get(block[:4])
    if byte_order is None:
        return 0
    try:
        (start,) = struct.unpack_from(byte_order + "I", block, 4)
        (entries,) = struct.unpack_from(byte_order + "H", block, start)
        for entry in range(start + 2, start + 2 + 12 * entries, 12):
            tag, kind, _, value = struct.unpack_from(byte_order + "HHIH", block, entry)
            if tag == 0x0112 and kind == 3:
                return value if 1 <= value <= 8 else 0
    except struct.error:
        pass
    return 0


def read_webp_header(data: bytes) -> tuple[int, int, bool]:
    """Return (height, width, whether it is animated) of a WebP.

    Pillow's plugin allocates the whole canvas when it opens a file, too early for a limit on pixels to be checked.

    Raises:
        DataError: the header is cut short or damaged.
    """
    try:
        chunk = data[12:16]
        if chunk == b"VP8X":
            width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
            return height, width, bool(data[20] & 0x02)
        if chunk == b"VP8L":
            (bits,) = struct.unpack_from("<I", data, 21)
            return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF), False
        if chunk == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
            width, height = struct.unpack_from("<HH", data, 26)
            return height & 0x3FFF, width & 0x3FFF, False
    except (struct.error, IndexError):
        pass
    raise DataError("a WebP without a usable header: cut short or damaged")
