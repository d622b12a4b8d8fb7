"""Reads the headers of a tar and groups its members into samples.

webdataset silently stops at damage in a shard. This module verifies the checksum of every header, every size and the
end-of-archive marker: a tar that was truncated, overwritten or zeroed is an error with a byte offset. Basic headers are
read with `pread`, about five times as fast as `tarfile`; tars with PAX, GNU long-name or base-256 headers go through
`tarfile`.
"""

from __future__ import annotations

import os
import re
import tarfile
import zlib
from pathlib import Path
from typing import NamedTuple

from choral.core.errors import DataError

IMAGE_EXTENSIONS = {
    "jpg": "jpg",
    "jpeg": "jpg",
    "png": "png",
    "webp": "webp",
    "gif": "gif",
    "bmp": "bmp",
    "tif": "tif",
    "tiff": "tif",
}
_BLOCK = 512
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
_END_BYTES = 2 * _BLOCK  # two zero blocks end an archive
_EXTENDED_TYPES = b"xgLKSXVMD"  # PAX and GNU header types, which need `tarfile`
_NAME = re.compile(r"(?:\./)*(?P<key>(?:.*/)?[^./][^./]*)\.(?P<ext>[^/]+)")  # the key ends at the base name's first dot


class TarMember(NamedTuple):
    """One regular file of a tar: its name, byte offsets of its header and its contents, its size in bytes."""

    name: str
    header: int
    data: int
    size: int


class TarSample(NamedTuple):
    """The members that share a key, by extension (lower case)."""

    key: str
    members: dict[str, TarMember]

    @property
    def offset(self) -> int:
        """Byte offset of the sample's first header."""
        return min(member.header for member in self.members.values())

    def image(self, path: Path) -> tuple[str, TarMember]:
        """Return format and member of the only image; DataError if there is none, or more than one."""
        found = [(IMAGE_EXTENSIONS[ext], member) for ext, member in self.members.items() if ext in IMAGE_EXTENSIONS]
        if len(found) == 1:
            return found[0]
        files = ", ".join("." + ext for ext in self.members)
        problem = "no image" if not found else "more than one image"
        raise DataError(
            f"{path}: sample {self.key!r} at byte {self.offset} has {problem} (its files: {files}); expected one of "
            ".jpg .png .gif .webp .bmp .tif"
        )


def read_headers(path: Path) -> list[TarMember]:
    """Return the regular files of a tar in their order; contents are not read.

    Raises:
        DataError: missing, empty, not a tar, truncated, or a damaged header; the message has file and byte offset.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise DataError(f"{path}: shard cannot be opened ({error.strerror})") from error
    try:
        size = os.fstat(descriptor).st_size
        _check_start(path, os.pread(descriptor, _BLOCK, 0), size)
        basic = _read_basic_headers(path, descriptor, size)
        members, end = _read_extended_headers(path) if basic is None else basic
        for member in members:
            if member.data + member.size > size:
                raise DataError(
                    f"{path}: truncated: {member.name!r} at byte {member.header} extends to byte "
                    f"{member.data + member.size}, the file ends at {size}"
                )
        _check_end(path, descriptor, end, size)
    finally:
        os.close(descriptor)
    if not members:
        raise DataError(f"{path}: contains no files")
    return members


def group_by_key(path: Path, members: list[TarMember]) -> list[TarSample]:
    """Group members by key; members without an extension, hidden files and `__meta__` files are skipped.

    Raises:
        DataError: a key or a member occurs twice, or the members of a sample are not adjacent.
    """
    samples: dict[str, TarSample] = {}
    last = ""
    for member in members:
        match = _NAME.fullmatch(member.name)
        if match is None or (match["key"].startswith("__") and member.name.endswith("__")):
            continue
        key, ext = match["key"], match["ext"].lower()
        sample = samples.get(key)
        if sample is None:
            samples[key] = TarSample(key, {ext: member})
        elif ext in sample.members:
            raise DataError(
                f"{path}: {key + '.' + ext!r} occurs twice, at byte {sample.members[ext].header} and at byte "
                f"{member.header}"
            )
        elif key != last:
            raise DataError(
                f"{path}: the files of sample {key!r} are not adjacent: at byte {sample.offset} and at byte "
                f"{member.header}"
            )
        else:
            sample.members[ext] = member
        last = key
    if not samples:
        raise DataError(f"{path}: contains no samples (no file named KEY.EXT)")
    return list(samples.values())


def _check_start(path: Path, block: bytes, size: int) -> None:
    if size == 0:
        raise DataError(f"{path}: empty file, expected a tar")
    if block.startswith(_COMPRESSED):
        raise DataError(f"{path}: a compressed tar does not allow random access: decompress it first")
    if not block.strip(b"\0"):
        raise DataError(f"{path}: begins with zeros, expected a tar")
    if len(block) < _BLOCK or not _is_header(block):
        raise DataError(f"{path}: not a tar (it begins with {block[:24]!r})")


def _read_basic_headers(path: Path, descriptor: int, size: int) -> tuple[list[TarMember], int] | None:
    """Return members and the offset of the first zero block; None if a header uses an extended format."""
    members: list[TarMember] = []
    position = 0
    while True:
        block = os.pread(descriptor, _BLOCK, position)
        if len(block) < _BLOCK:
            raise DataError(f"{path}: truncated: ends at byte {size} without an end-of-archive marker")
        if block[0] == 0 and not block.strip(b"\0"):
            return members, position
        if not _is_header(block):
            raise DataError(f"{path}: damaged header at byte {position} (its checksum does not match)")
        kind = block[156:157]
        if kind in _EXTENDED_TYPES or block[124] & 0x80:
            return None
        try:
            length = int(block[124:136].strip(b" \0") or b"0", 8)
            name = block[:100].partition(b"\0")[0].decode()
            if block[257:263] == b"ustar\0" and block[345]:
                name = block[345:500].partition(b"\0")[0].decode() + "/" + name
        except ValueError as error:
            raise DataError(f"{path}: damaged header at byte {position} ({error})") from error
        data = position + _BLOCK
        if kind not in b"0\0007":  # a directory or a link: no contents follow
            position = data
            continue
        if not name.endswith("/"):
            members.append(TarMember(name, position, data, length))
        position = data + (length + _BLOCK - 1) // _BLOCK * _BLOCK
        if position > size:
            raise DataError(
                f"{path}: truncated: {name!r} at byte {data - _BLOCK} extends to byte {data + length}, the file "
                f"ends at {size}"
            )


def _read_extended_headers(path: Path) -> tuple[list[TarMember], int]:
    """Return members and the end offset, for every header format that `tarfile` supports."""
    members: list[TarMember] = []
    try:
        with tarfile.open(path, "r:") as archive:
            for info in archive:
                if info.issparse():
                    raise DataError(
                        f"{path}: {info.name!r} at byte {info.offset} is stored as a sparse file: write the tar "
                        "without --sparse"
                    )
                if info.isreg():
                    members.append(TarMember(info.name, info.offset, info.offset_data, info.size))
            return members, int(archive.offset)
    except (tarfile.TarError, UnicodeError, ValueError) as error:
        raise DataError(f"{path}: damaged after {len(members)} files ({error})") from error


def _check_end(path: Path, descriptor: int, position: int, size: int) -> None:
    """Raise DataError unless at least two zero blocks, and nothing else, follow the last member."""
    if size - position < _END_BYTES:
        raise DataError(f"{path}: truncated: ends at byte {size} without an end-of-archive marker")
    start = position
    while chunk := os.pread(descriptor, 1 << 20, position):
        if rest := chunk.lstrip(b"\0"):
            found = position + len(chunk) - len(rest)
            raise DataError(
                f"{path}: damaged header at byte {start}: zeros instead of a header (more data at byte {found})"
            )
        position += len(chunk)


def _is_header(block: bytes) -> bool:
    """Return whether a header's checksum field matches the sum of its bytes, with that field counted as spaces.

    The low half of Adler-32 is 1 + the sum of the bytes modulo 65521. It takes 0.3 microseconds, a sum in Python 6.
    """
    try:
        stored = int(block[148:156].strip(b" \0"), 8)
    except ValueError:
        return False
    total = (zlib.adler32(block) & 0xFFFF) - 1 - sum(block[148:156]) + 8 * 32
    return (stored - total) % 65521 == 0
