"""The images that command-line arguments name: files, directories, globs, tars and lists, iterated lazily.

    photo.jpg              a file of any suffix; its format is detected by its first bytes
    photos/                a directory, recursively, in order of names; hidden files and other suffixes are skipped
    'photos/*/*.png'       a glob that the shell did not expand; ** matches directories
    photos.tar             the images in a tar, also one of WebDataset, named photos.tar:MEMBER
    -, @list.txt           files, folders and tars, one a line, from standard input or from a file

An unreadable path becomes an image with a problem: it is reported in its place, and the others are predicted. A URL is
refused: download tools handle proxies, retries and passwords better.
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
from choral.core.files import check_local_path
from choral.data.packing.sources.base import IMAGE_SUFFIXES
from choral.data.shards.tar import TarMember, read_headers

STDIN = "-"
_LIST = "@"
_TARS = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")  # a compressed one is refused with its reason
_WHOLE = -1
_COUNTED = 200_000  # images whose names are kept, 50 MB of them


@dataclass(frozen=True, slots=True)
class ImageSource:
    """One image to predict.

    Attributes:
        name: its name in predictions, valid Unicode.
        path: the file that holds it.
        offset, size: of its bytes there; size -1: the whole file.
        problem: why it cannot be read, if that is known without opening it.
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
                return _read_bytes(file, self.offset, self.size, limit)
        except OSError as error:
            raise DataError(error.strerror or str(error)) from error
        except ValueError as error:  # a name with a zero byte
            raise DataError(str(error)) from error


def check_image_arguments(words: Sequence[str]) -> None:
    """Check image arguments of a command line before anything is loaded.

    Raises:
        ConfigError: there are none, one is a URL, standard input is named twice, or a list file does not exist.
    """
    if not words:
        raise ConfigError("expected images: files, folders, globs, tars, - for a list on standard input, or @LIST")
    for word in words:
        _check_address(word)
        if word.startswith(_LIST) and not os.path.lexists(word) and not Path(word[1:]).is_file():
            raise ConfigError(f"{word}: no file {word[1:]} with a list of images")
    if list(words).count(STDIN) > 1:
        raise ConfigError("-: standard input can be read once")


def find_images(words: Iterable[str], stdin: BinaryIO | None = None) -> Iterator[ImageSource]:
    """Yield the images that command-line arguments name, in order; see the module docstring.

    Args:
        words: as `check_image_arguments` takes them.
        stdin: that `-` reads; None: that of the process.
    """
    for word in words:
        if word == STDIN:
            yield from _images_in_list(sys.stdin.buffer if stdin is None else stdin)
        elif os.path.lexists(word):
            yield from _images_at_path(word)
        elif word.startswith(_LIST):
            with Path(word[1:]).open("rb") as file:
                yield from _images_in_list(file)
        elif glob.has_magic(word):
            yield from _images_of_glob(word)
        else:
            yield from _images_at_path(word)


def batch_images(images: Iterable[ImageSource], size: int) -> Iterator[list[ImageSource]]:
    """Yield lists of `size` images, the last one perhaps shorter."""
    batch: list[ImageSource] = []
    for image in images:
        batch.append(image)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def count_images(images: Iterator[ImageSource], words: Sequence[str]) -> tuple[int | None, Iterator[ImageSource]]:
    """Return the number of images and the same images; None if there are too many to list before work begins.

    A list on standard input is not read ahead: its writer may still be searching.
    """
    if STDIN in words:
        return None, images
    first = list(islice(images, _COUNTED + 1))
    return (None if len(first) > _COUNTED else len(first)), chain(first, images)


def _check_address(word: str) -> None:
    try:
        check_local_path(word)
    except ConfigError as error:
        raise ConfigError(f"{error}; download it first, and give the file or its directory") from error


def _images_of_glob(pattern: str) -> Iterator[ImageSource]:
    found = sorted(glob.iglob(os.path.expanduser(pattern), recursive=True))  # noqa: PTH111, PTH207 - names as written
    if not found:
        yield ImageSource(_to_unicode(pattern), pattern, problem="no file matches")
    for path in found:
        yield from _images_at_path(path)


def _images_in_list(lines: Iterable[bytes]) -> Iterator[ImageSource]:
    """Yield the images that the lines of a list name; globs are not expanded, since names may contain brackets."""
    for number, line in enumerate(lines):
        name = os.fsdecode(line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line).rstrip("\r\n")
        if not name:
            continue
        try:
            _check_address(name)
        except ConfigError as error:
            yield ImageSource(_to_unicode(name), name, problem=str(error))
            continue
        yield from _images_at_path(name)


def _images_at_path(path: str) -> Iterator[ImageSource]:
    """Yield the image at a path, or the images in the directory or tar there."""
    if os.path.isdir(path):  # noqa: PTH112 - a name with a zero byte is no folder, where Path would raise
        empty = True
        for image in _images_in_folder(path, ()):
            empty = False
            yield image
        if empty:
            yield ImageSource(_to_unicode(path), path, problem=_reason_empty(path))
    elif path.lower().endswith(_TARS):
        yield from _images_in_tar(path)
    else:
        yield ImageSource(_to_unicode(path), path)


def _images_in_folder(folder: str, above: tuple[tuple[int, int], ...]) -> Iterator[ImageSource]:
    try:
        status = os.stat(folder)  # noqa: PTH116
        here = (status.st_dev, status.st_ino)
        with os.scandir(folder) as found:
            entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        yield ImageSource(_to_unicode(folder), folder, problem=error.strerror or str(error))
        return
    if here in above:
        yield ImageSource(_to_unicode(folder), folder, problem="a link to one of its parent directories")
        return
    for entry in entries:
        if _is_folder(entry):
            yield from _images_in_folder(entry.path, (*above, here))
        elif entry.name.lower().endswith(IMAGE_SUFFIXES):
            yield _file_in_folder(entry)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # such as a link to itself
        return False


def _file_in_folder(entry: os.DirEntry[str]) -> ImageSource:
    """Return a file of a directory; opening a pipe or socket with an image suffix would block forever."""
    try:
        problem = "" if stat.S_ISREG(entry.stat().st_mode) else "not a regular file"
    except OSError as error:  # such as a link to nothing
        problem = error.strerror or str(error)
    return ImageSource(_to_unicode(entry.path), entry.path, problem=problem)


def _reason_empty(folder: str) -> str:
    kinds = " ".join(IMAGE_SUFFIXES)
    tars = any(name.lower().endswith(_TARS) for name in os.listdir(folder))  # noqa: PTH208
    hint = f"; to predict the images in its tars, give '{os.path.join(folder, '*.tar')}'" if tars else ""  # noqa: PTH118
    return f"a directory without images ({kinds}){hint}"


def _images_in_tar(path: str) -> Iterator[ImageSource]:
    try:
        members = read_headers(Path(path))
    except (DataError, ValueError) as error:
        yield ImageSource(_to_unicode(path), path, problem=str(error).removeprefix(f"{Path(path)}: "))
        return
    images = [member for member in members if _is_image(member)]
    if not images:
        yield ImageSource(_to_unicode(path), path, problem=f"a tar without images ({' '.join(IMAGE_SUFFIXES)})")
    for member in images:
        yield ImageSource(f"{_to_unicode(path)}:{_to_unicode(member.name)}", path, member.data, member.size)


def _is_image(member: TarMember) -> bool:
    """Return whether a tar member counts as an image; ._photo.jpg, which macOS adds, is hidden."""
    parts = member.name.split("/")
    hidden = any(part.startswith(".") and part not in (".", "..") for part in parts)
    return not hidden and parts[-1].lower().endswith(IMAGE_SUFFIXES)


def _read_bytes(file: BinaryIO, offset: int, size: int, limit: int) -> bytes:
    status = os.fstat(file.fileno())
    is_regular = stat.S_ISREG(status.st_mode)
    length = status.st_size if size == _WHOLE else size
    if is_regular and length > limit:
        raise DataError(f"{length:,} bytes, more than the {limit:,} that an image of data.max_pixels may have")
    if not is_regular:  # such as a shell's <(command)
        data = file.read(limit + 1)
        if len(data) > limit:
            raise DataError(f"more than the {limit:,} bytes that an image of data.max_pixels may have")
        return data
    file.seek(offset)
    data = file.read(length)
    if len(data) < length:
        raise DataError(f"ends after {len(data)} of {length} bytes: it was changed meanwhile")
    return data


def _to_unicode(name: str) -> str:
    """Return a file name as valid Unicode: bytes that are not UTF-8 as \\xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
