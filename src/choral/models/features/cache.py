"""Features on disk: a folder a key, complete or absent, verified when it is opened.

    SHARDS/.features/KEY/features.npy    (rows, width) float32, in the order of the rows asked for
    SHARDS/.features/KEY/meta.json       what they are features of, the rows that could not be read, SHA-256 of the file
    SHARDS/.features/KEY.parts/          while they are computed: a file for some rows each, so that a stopped or killed
                                         computation goes on where it was, on any number of ranks
    SHARDS/.features/KEY.lock            held by the process that computes them; ends with it

KEY is a hash of everything that decides the values: weights, preprocessing, data, and the augmentation of later passes.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from choral.core.errors import ChoralError
from choral.core.files import sha256_of, sync, write_atomic

FORMAT = "choral-features-1"
_FILE, _META = "features.npy", "meta.json"
_PARTS_WANTED, _PART_ROWS = 64, (16, 4096)  # parts so small that a stop loses little, so large that they stay few
_log = logging.getLogger(__name__)


class _DamagedError(Exception):
    """What is on disk cannot be used."""


@dataclass(frozen=True)
class Features:
    """The features of some samples."""

    rows: NDArray[np.int64]
    """(n,) rows of the index that could be read."""
    values: NDArray[np.float32]
    """(n, width), read-only; mapped into memory where every sample could be read."""
    unread: NDArray[np.int64]
    """(m,) rows that could not be read."""


class FeatureCache:
    """One folder of features.

    Args:
        root: `.features` of a packed folder.
        description: everything that decides the values; JSON.
        rows: (n,) int64 rows of the index, whose features it holds.
        width: numbers a sample.
    """

    def __init__(self, root: Path, description: Mapping[str, Any], rows: NDArray[np.int64], width: int) -> None:
        digest = hashlib.sha256(np.ascontiguousarray(rows).tobytes()).hexdigest()
        whole = {**description, "format": FORMAT, "rows": digest, "samples": len(rows), "width": width}
        text = json.dumps(whole, sort_keys=True)
        self._description = json.loads(text)  # as it will be read back: a tuple is a list
        key = hashlib.sha256(text.encode()).hexdigest()[:32]
        self.path = root / key
        self._rows, self._width = rows, width
        self._parts = root / f"{key}.parts"
        low, high = _PART_ROWS
        self.part_rows = min(high, max(low, -(-len(rows) // _PARTS_WANTED)))
        """Rows a part; the same on any number of ranks, so that others can go on with them."""

    @property
    def parts(self) -> int:
        """How many parts there are."""
        return -(-len(self._rows) // self.part_rows)

    def rows_of(self, part: int) -> NDArray[np.int64]:
        """Return the rows of the index that a part holds."""
        return self._rows[part * self.part_rows : (part + 1) * self.part_rows]

    def open(self) -> Features | None:
        """Return the features if they are there and intact; what is damaged or other than wanted is named in the log."""
        if not self.path.is_dir():
            return None
        try:
            return self._read()
        except (_DamagedError, OSError, ValueError, KeyError, TypeError) as error:  # damage takes many shapes
            _log.warning("%s: features are computed again: %s", self.path, error)
            return None

    def _read(self) -> Features:
        values, bad = self._whole()
        if not len(bad):
            return Features(self._rows, values, bad)
        good = ~np.isin(self._rows, bad)
        return Features(self._rows[good], values[good], bad)

    def _whole(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return (rows, width) features, of unread samples as well, and the unread rows."""
        meta = json.loads((self.path / _META).read_bytes())
        if meta["description"] != self._description:
            raise _DamagedError("they are of something else")
        file = self.path / _FILE
        if sha256_of(file) != meta["sha256"]:
            raise _DamagedError(f"{_FILE} has changed")
        values = np.load(file, mmap_mode="r", allow_pickle=False)
        if values.shape != (len(self._rows), self._width) or values.dtype != np.float32:
            raise _DamagedError(f"{_FILE} has shape {values.shape}")
        return values, np.asarray(meta["unread"], dtype=np.int64)

    def lock(self) -> TextIO | None:
        """Return the open lock file, to be closed when done; None: another process computes these features now.

        Raises:
            ChoralError: nothing can be written there.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.with_suffix(".lock").open("a", encoding="utf-8")
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        return file

    def missing(self) -> NDArray[np.int64]:
        """Return the numbers of the parts that are not there, damaged, or without some sample; the caller holds the lock.

        What an earlier start could not read, this one may: a disk can fail for a moment.
        """
        earlier = self._earlier()
        parts = ((number, self._part(number, earlier)) for number in range(self.parts))
        return np.array([number for number, part in parts if part is None or not part[1].all()], dtype=np.int64)

    def write_part(self, part: int, values: NDArray[np.float32], valid: NDArray[np.bool_]) -> None:
        """Keep a part: (n, width) features of its rows, and (n,) which of them could be read.

        Raises:
            ChoralError: it cannot be written.
        """
        try:
            self._parts.mkdir(parents=True, exist_ok=True)
            content = {"values": np.ascontiguousarray(values, np.float32), "valid": valid.astype(np.uint8)}
            write_atomic(self._part_path(part), save(content))
        except OSError as error:
            raise self._unwritable(error) from error

    def merge(self) -> Features:
        """Make the parts one file, in the order of the rows, and return the features; the caller holds the lock.

        Raises:
            ChoralError: a part is missing or damaged, or nothing can be written.
        """
        aside = self.path.with_name(f"{self.path.name}.new")
        earlier = self._earlier()
        try:
            shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
            aside.mkdir()
            shape = (len(self._rows), self._width)
            values = np.lib.format.open_memmap(aside / _FILE, mode="w+", dtype=np.float32, shape=shape)
            valid = np.zeros(len(self._rows), dtype=np.bool_)
            for number in range(self.parts):
                part = self._part(number, earlier)
                if part is None:
                    raise ChoralError(f"{self._part_path(number)}: missing or damaged; run the same command again")
                start = number * self.part_rows
                values[start : start + len(part[1])], valid[start : start + len(part[1])] = part
            values.flush()
            del values
            sync(aside / _FILE)
            meta = {
                "description": self._description,
                "unread": self._rows[~valid].tolist(),
                "sha256": sha256_of(aside / _FILE),
            }
            write_atomic(aside / _META, json.dumps(meta, indent=1).encode())
            shutil.rmtree(self.path, ignore_errors=True)  # damaged, or with samples unread, or we would not be here
            aside.rename(self.path)
            sync(self.path.parent)
        except OSError as error:
            raise self._unwritable(error) from error
        shutil.rmtree(self._parts, ignore_errors=True)
        return self._read()

    def _earlier(self) -> tuple[NDArray[np.float32], NDArray[np.bool_]] | None:
        """Return the features on disk, (rows, width), and (rows,) which of the samples could be read then."""
        if self.open() is None:
            return None
        values, bad = self._whole()
        return values, ~np.isin(self._rows, bad)

    def _part(
        self, part: int, earlier: tuple[NDArray[np.float32], NDArray[np.bool_]] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]] | None:
        """Return a part's values and which are valid: its file, else what is there from earlier if all were read."""
        count = len(self.rows_of(part))
        try:
            content = load(self._part_path(part).read_bytes())
        except (OSError, SafetensorError):
            content = {}
        values, valid = content.get("values"), content.get("valid")
        if values is not None and valid is not None and values.shape == (count, self._width) and len(valid) == count:
            return values, valid.astype(np.bool_)
        own = slice(part * self.part_rows, part * self.part_rows + count)
        if earlier is not None and earlier[1][own].all():
            return earlier[0][own], earlier[1][own]
        return None

    def _part_path(self, part: int) -> Path:
        return self._parts / f"part-{part:05d}.safetensors"

    def _unwritable(self, error: OSError) -> ChoralError:
        reason = error.strerror or os.strerror(error.errno or 0)
        return ChoralError(
            f"{self.path}: features cannot be written ({reason}); free space or make the folder writable"
        )
