"""A split decoded once: all its images, full size, in one memory-mapped file that everybody on the machine shares.

Ranks, workers, epochs and ensemble members map the same pages. Reading from it costs a crop and a resize, about a
quarter of the best stream from JPEGs. The images are those of `decode`, so a sample is the same bits with and without.

File: magic, pixels of the images one after the other, a table of (offset, height, width, channels) a row, a description
(JSON), its length, magic again. What was cut short therefore lacks its end. Images that cannot be decoded are listed
with their reason, and reported whenever they are asked for.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import struct
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from choral.core.errors import DataError
from choral.data.loading.decode import MAX_PIXELS, Pixels, decode
from choral.data.shards.index import Index
from choral.data.shards.store import LocalStore

_log = logging.getLogger(__name__)

_MAGIC = b"choral-decoded-1"  # another number when the pixels of any image change
_ENTRY = np.dtype([("offset", "<i8"), ("height", "<i4"), ("width", "<i4"), ("channels", "<i8")])
_LENGTH = struct.Struct("<Q")
_GIB = 1 << 30
_PROBED = 64  # images decoded to estimate the size of all

Progress = Callable[[int, int], None]


class _OverBudgetError(Exception):
    """The estimate was too low."""


class DecodedCache:
    """The decoded images of one split, from `DecodedCache.open_or_build`. May be shared by threads, and be pickled."""

    def __init__(self, path: Path, wanted: dict[str, Any]) -> None:
        self._path, self._wanted = path, wanted
        data = np.memmap(path, np.uint8, "r")
        description = _description(data, path)
        if {name: description.get(name) for name in wanted} != wanted:
            raise DataError(f"{path}: made from other data")
        self._data: Pixels = data.view(np.ndarray)
        start = description["table"]
        table = self._data[start : start + wanted["samples"] * _ENTRY.itemsize].view(_ENTRY)
        self._offsets, self._heights, self._widths, self._channels = (table[name] for name in _ENTRY.names or ())
        self._bad: dict[str, str] = description["bad"]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the path: another process maps the file again."""
        return (DecodedCache, (self._path, self._wanted))

    @classmethod
    def open_or_build(
        cls,
        index: Index,
        store: LocalStore,
        folder: Path,
        budget_gib: float,
        workers: int,
        max_pixels: int = MAX_PIXELS,
        progress: Progress | None = None,
    ) -> DecodedCache | None:
        """Open the cache of a split; build it where it is missing, damaged or of other data.

        One process builds, others that ask meanwhile wait for it. A file appears complete or not at all.

        Args:
            index, store: the split.
            folder: for the file, named by split and the data set's fingerprint; made where it is missing.
            budget_gib: no cache is used if it would be larger.
            workers: threads that decode while it is built.
            max_pixels: as in `decode`.
            progress: called with (samples done, samples).

        Returns:
            the cache, or None where it does not fit the budget or the disk or cannot be written: the reason is logged.

        Raises:
            DataError: a shard cannot be read. (An image that cannot be decoded is found when it is asked for.)
        """
        fingerprint = index.dataset.fingerprint
        wanted = {"fingerprint": fingerprint, "split": index.split, "samples": len(index), "max_pixels": max_pixels}
        path = folder / f"{index.split}-{fingerprint[:16]}.decoded"
        try:
            found = _usable(path, wanted, budget_gib)
            if found is None:
                folder.mkdir(parents=True, exist_ok=True)
                with _locked(path):
                    found = _usable(path, wanted, budget_gib)
                    builder = _Builder(index, store, max_pixels, budget_gib)
                    if found is None and builder.fits(folder):
                        builder.build(path, wanted, max(1, workers), progress)
                        found = cls(path, wanted)
            return found
        except _OverBudgetError:
            _log.warning("split %s is decoded anew each epoch: it needs more than %g GiB", index.split, budget_gib)
        except OSError as error:
            _log.warning("split %s is decoded anew each epoch: no cache in %s (%s)", index.split, folder, error)
        return None

    def get(self, row: int) -> Pixels:
        """Return the image of a row: (H, W, 3) uint8 RGB, or (H, W, 1) where it is grey; read-only.

        Raises:
            DataError: it could not be decoded, and why.
        """
        height, width, channels = int(self._heights[row]), int(self._widths[row]), int(self._channels[row])
        if not height:
            raise DataError(self._bad[str(row)])
        offset = int(self._offsets[row])
        return self._data[offset : offset + height * width * channels].reshape(height, width, channels)


def _description(data: NDArray[np.uint8], path: Path) -> dict[str, Any]:
    """Read the end of a cache file.

    Raises:
        DataError: it is cut short or damaged.
    """
    tail = len(_MAGIC) + _LENGTH.size
    whole = len(data) > len(_MAGIC) + tail
    if whole and data[: len(_MAGIC)].tobytes() == _MAGIC and data[-len(_MAGIC) :].tobytes() == _MAGIC:
        (length,) = _LENGTH.unpack(data[-tail : -len(_MAGIC)].tobytes())
        try:
            content = json.loads(data[-tail - length : -tail].tobytes())
        except ValueError:
            content = None
        if isinstance(content, dict) and content.get("bytes") == len(data):
            return content
    raise DataError(f"{path}: damaged or cut short")


def _usable(path: Path, wanted: dict[str, Any], budget_gib: float) -> DecodedCache | None:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return None
    if size > budget_gib * _GIB:
        raise _OverBudgetError
    try:
        return DecodedCache(path, wanted)
    except (DataError, ValueError, KeyError, TypeError) as error:  # damage takes many shapes: none is worth failing for
        _log.warning("decoded cache is built again: %s", error)
        return None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a cache file. The lock ends with its holder, so a crash leaves none; the empty file stays."""
    with path.with_suffix(".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.info("waiting for another process that builds %s", path)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


class _Builder:
    """Decodes a split and writes the file."""

    def __init__(self, index: Index, store: LocalStore, max_pixels: int, budget_gib: float) -> None:
        self._index, self._store, self._max_pixels = index, store, max_pixels
        self._budget = int(budget_gib * _GIB)

    def fits(self, folder: Path) -> bool:
        """Estimate the size from some of the images, spread evenly.

        Raises:
            _OverBudgetError: it is more than the budget.
        """
        samples = len(self._index)
        rows = sorted(set(np.linspace(0, samples - 1, _PROBED).astype(int).tolist())) if samples else []
        images = [image for image in map(self._stored, rows) if not isinstance(image, str)]
        needed = samples * (_ENTRY.itemsize + float(np.mean([image.nbytes for image in images] or [0])))
        room = shutil.disk_usage(folder).free
        if needed > self._budget:
            raise _OverBudgetError
        if needed > 0.95 * room:
            text = "split %s is decoded anew each epoch: its cache needs %.1f GiB, there are %.1f GiB free in %s"
            _log.warning(text, self._index.split, needed / _GIB, room / _GIB, folder)
            return False
        return True

    def build(self, path: Path, wanted: dict[str, Any], workers: int, progress: Progress | None) -> None:
        """Write the file aside and rename it; the caller holds the lock."""
        for leftover in path.parent.glob(f"{path.name}.*.part"):
            leftover.unlink(missing_ok=True)  # of a process that was killed, since we hold the lock
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as file:
                self._write(file, wanted, workers, progress)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def _write(self, file: BinaryIO, wanted: dict[str, Any], workers: int, progress: Progress | None) -> None:
        samples = len(self._index)
        table = np.zeros(samples, _ENTRY)
        bad: dict[str, str] = {}
        offset = file.write(_MAGIC)
        for row, image in enumerate(self._all(workers)):
            if isinstance(image, str):
                bad[str(row)] = image
            else:
                table[row] = (offset, *image.shape)
                offset += file.write(image.data)
            if offset + table.nbytes > self._budget:
                raise _OverBudgetError
            if progress is not None:
                progress(row + 1, samples)
        start = offset + file.write(bytes(-offset % 8))  # the table is read as it lies, so it must be aligned
        file.write(table.tobytes())
        # The file's length stands in the description, whose length depends on its digits: filled up with blanks.
        description = {**wanted, "table": start, "bad": bad, "bytes": 0}
        length = len(json.dumps(description)) + 20
        description["bytes"] = start + table.nbytes + length + _LENGTH.size + len(_MAGIC)
        file.write(json.dumps(description).ljust(length).encode())
        file.write(_LENGTH.pack(length))
        file.write(_MAGIC)

    def _all(self, workers: int) -> Iterator[Pixels | str]:
        """Yield what is stored of each image, in the order of rows."""
        with ThreadPoolExecutor(workers, "choral-cache") as pool:
            ahead: deque[Future[Pixels | str]] = deque()
            try:
                for row in range(len(self._index)):
                    ahead.append(pool.submit(self._stored, row))
                    if len(ahead) >= 4 * workers:  # more would only hold more decoded images in memory
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _stored(self, row: int) -> Pixels | str:
        """Return an image, with one channel if it is grey, or the reason why it cannot be decoded."""
        record = self._index.row(row)
        data = self._store.read(record.shard, record.offset, record.length)  # outside: this is no fault of the image
        try:
            image = decode(data, max_pixels=self._max_pixels)
        except DataError as error:
            return str(error)
        red, green, blue = (image[..., channel] for channel in range(3))
        grey = np.array_equal(red, green) and np.array_equal(red, blue)
        return np.ascontiguousarray(image[..., :1] if grey else image)
