"""Images that a user names: files, folders, globs, tars and lists, one after the other and never all at once.

    photo.jpg              a file, whatever its suffix: what it is, its first bytes say
    photos/                a folder and those below, in the order of names; hidden files and other suffixes are left out
    'photos/*/*.png'       a glob, where the shell leaves it to us; ** goes through folders
    photos.tar             the images in a tar, also one of WebDataset, named photos.tar:MEMBER
    -, @list.txt           files, folders and tars, one a line, from standard input or from a file

What cannot be read is an image with a problem: it is reported in its place, and the others are answered for. An address
(scheme://) is refused: fetching is for tools that know proxies, retries and passwords.
"""

from __future__ import annotations

import glob
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO

from choral.core.errors import ConfigError, DataError
from choral.core.files import local_only
from choral.data.packing.sources.base import IMAGE_SUFFIXES
from choral.data.shards.tar import Member, scan

STDIN = "-"
_LIST = "@"
_TARS = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")  # a compressed one is refused with its reason
_WHOLE = -1
_COUNTED = 200_000  # images whose names are kept, 50 MB of them


@dataclass(frozen=True, slots=True)
class Picture:
    """One image that is asked about.

    Attributes:
        name: as answers call it, valid Unicode.
        path: the file that holds it.
        offset, size: of its bytes there; size -1: the whole file.
        problem: why it cannot be read, where that is known already.
    """

    name: str
    path: str
    offset: int = 0
    size: int = _WHOLE
    problem: str = ""

    def read(self, limit: int) -> bytes:
        """Return the encoded image.

        Args:
            limit: bytes above which nothing is read.

        Raises:
            DataError: it cannot be read, without naming it.
        """
        if self.problem:
            raise DataError(self.problem)
        try:
            with open(self.path, "rb") as file:  # noqa: PTH123 - names need not be valid paths, and Path costs
                return _bytes_of(file, self.offset, self.size, limit)
        except OSError as error:
            raise DataError(error.strerror or str(error)) from error
        except ValueError as error:  # a name with a zero byte
            raise DataError(str(error)) from error


def check_words(words: Sequence[str]) -> None:
    """Check what can be checked of the words of a command line before anything is loaded.

    Raises:
        ConfigError: none, an address, standard input twice, or a list that is not there.
    """
    if not words:
        raise ConfigError("expected images: files, folders, globs, tars, - for a list on standard input, or @LIST")
    for word in words:
        _check_address(word)
        if word.startswith(_LIST) and not os.path.lexists(word) and not Path(word[1:]).is_file():
            raise ConfigError(f"{word}: no file {word[1:]} with a list of images")
    if list(words).count(STDIN) > 1:
        raise ConfigError("-: standard input can be read once")


def pictures(words: Iterable[str], stdin: BinaryIO | None = None) -> Iterator[Picture]:
    """Yield the images that the words of a command line name, in their order; see the top of this file.

    Args:
        words: as `check_words` takes them.
        stdin: that `-` reads; None: that of the process.
    """
    for word in words:
        if word == STDIN:
            yield from _listed(sys.stdin.buffer if stdin is None else stdin)
        elif os.path.lexists(word):
            yield from _named(word)
        elif word.startswith(_LIST):
            with Path(word[1:]).open("rb") as file:
                yield from _listed(file)
        elif glob.has_magic(word):
            yield from _matching(word)
        else:
            yield from _named(word)


def in_batches(images: Iterable[Picture], size: int) -> Iterator[list[Picture]]:
    """Yield lists of `size` images, the last one perhaps shorter."""
    batch: list[Picture] = []
    for image in images:
        batch.append(image)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def counted(images: Iterator[Picture], words: Sequence[str]) -> tuple[int | None, Iterator[Picture]]:
    """Return how many images there are, and the same images; None: too many to be listed before work begins.

    A list on standard input is not waited for: whoever writes it may still be searching.
    """
    if STDIN in words:
        return None, images
    first = list(islice(images, _COUNTED + 1))
    return (None if len(first) > _COUNTED else len(first)), chain(first, images)


def _check_address(word: str) -> None:
    try:
        local_only(word)
    except ConfigError as error:
        raise ConfigError(f"{error}; download it first, and name the file or its folder") from error


def _matching(pattern: str) -> Iterator[Picture]:
    found = sorted(glob.iglob(os.path.expanduser(pattern), recursive=True))  # noqa: PTH111, PTH207 - names as written
    if not found:
        yield Picture(_text(pattern), pattern, problem="no file has such a name")
    for path in found:
        yield from _named(path)


def _listed(lines: Iterable[bytes]) -> Iterator[Picture]:
    """Yield what the lines of a list name; a glob there is a name, for names may hold brackets."""
    for number, line in enumerate(lines):
        name = os.fsdecode(line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line).rstrip("\r\n")
        if not name:
            continue
        try:
            _check_address(name)
        except ConfigError as error:
            yield Picture(_text(name), name, problem=str(error))
            continue
        yield from _named(name)


def _named(path: str) -> Iterator[Picture]:
    """Yield the image at a path, or those in the folder or tar there."""
    if os.path.isdir(path):  # noqa: PTH112 - a name with a zero byte is no folder, where Path would raise
        empty = True
        for image in _in_folder(path, ()):
            empty = False
            yield image
        if empty:
            yield Picture(_text(path), path, problem=_nothing_in(path))
    elif path.lower().endswith(_TARS):
        yield from _in_tar(path)
    else:
        yield Picture(_text(path), path)


def _in_folder(folder: str, above: tuple[tuple[int, int], ...]) -> Iterator[Picture]:
    try:
        status = os.stat(folder)  # noqa: PTH116
        here = (status.st_dev, status.st_ino)
        with os.scandir(folder) as found:
            entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        yield Picture(_text(folder), folder, problem=error.strerror or str(error))
        return
    if here in above:
        yield Picture(_text(folder), folder, problem="a link that leads back to a folder above it")
        return
    for entry in entries:
        if _is_folder(entry):
            yield from _in_folder(entry.path, (*above, here))
        elif entry.name.lower().endswith(IMAGE_SUFFIXES):
            yield _in_place(entry)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # such as a link to itself
        return False


def _in_place(entry: os.DirEntry[str]) -> Picture:
    """Return a file of a folder; a pipe or socket of such a name would be waited for without end."""
    try:
        problem = "" if stat.S_ISREG(entry.stat().st_mode) else "not a regular file"
    except OSError as error:  # such as a link to nothing
        problem = error.strerror or str(error)
    return Picture(_text(entry.path), entry.path, problem=problem)


def _nothing_in(folder: str) -> str:
    kinds = " ".join(IMAGE_SUFFIXES)
    tars = any(name.lower().endswith(_TARS) for name in os.listdir(folder))  # noqa: PTH208
    hint = f"; for the images in its tars, name them: '{os.path.join(folder, '*.tar')}'" if tars else ""  # noqa: PTH118
    return f"a folder without images ({kinds}){hint}"


def _in_tar(path: str) -> Iterator[Picture]:
    try:
        members = scan(Path(path))
    except (DataError, ValueError) as error:
        yield Picture(_text(path), path, problem=str(error).removeprefix(f"{Path(path)}: "))
        return
    images = [member for member in members if _is_image(member)]
    if not images:
        yield Picture(_text(path), path, problem=f"a tar without images ({' '.join(IMAGE_SUFFIXES)})")
    for member in images:
        yield Picture(f"{_text(path)}:{_text(member.name)}", path, member.data, member.size)


def _is_image(member: Member) -> bool:
    """Whether a file of a tar is an image that a folder would give, too; ._photo.jpg, which macOS adds, is hidden."""
    parts = member.name.split("/")
    hidden = any(part.startswith(".") and part not in (".", "..") for part in parts)
    return not hidden and parts[-1].lower().endswith(IMAGE_SUFFIXES)


def _bytes_of(file: BinaryIO, offset: int, size: int, limit: int) -> bytes:
    status = os.fstat(file.fileno())
    known = stat.S_ISREG(status.st_mode)
    length = status.st_size if size == _WHOLE else size
    if known and length > limit:
        raise DataError(f"{length:,} bytes, more than the {limit:,} that an image of data.max_pixels may have")
    if not known:  # such as a shell's <(command)
        data = file.read(limit + 1)
        if len(data) > limit:
            raise DataError(f"more than the {limit:,} bytes that an image of data.max_pixels may have")
        return data
    file.seek(offset)
    data = file.read(length)
    if len(data) < length:
        raise DataError(f"ends after {len(data)} of {length} bytes: it was changed meanwhile")
    return data


def _text(name: str) -> str:
    """Return a file name as valid Unicode: bytes that are not UTF-8 as \\xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
