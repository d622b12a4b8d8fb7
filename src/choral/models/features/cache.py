"""The feature cache: one directory per key, written atomically and verified when it is loaded.

    SHARDS/.features/KEY/features.npy    (rows, width) float32, in the order of the requested rows
    SHARDS/.features/KEY/meta.json       description of the features, unreadable rows, SHA-256 of features.npy
    SHARDS/.features/KEY.parts/          during computation: one file per part, so that an interrupted computation
                                         continues, on any number of ranks
    SHARDS/.features/KEY.lock            locked by the process that computes the features, until that process ends

KEY is a hash of everything that the values depend on: weights, preprocessing, data, and the augmentation of later passes.
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
from choral.core.files import compute_sha256, fsync_path, write_atomic

FORMAT = "choral-features-1"
_FILE, _META = "features.npy", "meta.json"
_TARGET_PARTS = 64
_MIN_PART_ROWS, _MAX_PART_ROWS = 16, 4096  # small parts lose little work in a stop, large ones keep their number low
_log = logging.getLogger(__name__)


class _DamagedError(Exception):
    """The features on disk cannot be used."""


@dataclass(frozen=True)
class Features:
    """The features of some samples."""

    rows: NDArray[np.int64]
    """(n,) index rows of the readable samples."""
    values: NDArray[np.float32]
    """(n, width), read-only; memory-mapped if all samples are readable."""
    unreadable: NDArray[np.int64]
    """(m,) index rows of the unreadable samples."""


class FeatureCache:
    """The cached features of one description.

    Args:
        root: the directory `.features` of a packed directory.
        description: everything that the values depend on; JSON.
        rows: (n,) int64 index rows.
        width: features per sample.
    """

    def __init__(self, root: Path, description: Mapping[str, Any], rows: NDArray[np.int64], width: int) -> None:
        digest = hashlib.sha256(np.ascontiguousarray(rows).tobytes()).hexdigest()
        complete = {**description, "format": FORMAT, "rows": digest, "samples": len(rows), "width": width}
        text = json.dumps(complete, sort_keys=True)
        self._description = json.loads(text)  # as it is read back: JSON turns tuples into lists
        key = hashlib.sha256(text.encode()).hexdigest()[:32]
        self.path = root / key
        self._rows, self._width = rows, width
        self._parts = root / f"{key}.parts"
        self.rows_per_part = min(_MAX_PART_ROWS, max(_MIN_PART_ROWS, -(-len(rows) // _TARGET_PARTS)))
        """Independent of the number of ranks, so that any number of them can continue."""

    @property
    def num_parts(self) -> int:
        """Number of parts."""
        return -(-len(self._rows) // self.rows_per_part)

    def rows_in_part(self, part: int) -> NDArray[np.int64]:
        """Return the index rows of a part."""
        return self._rows[part * self.rows_per_part : (part + 1) * self.rows_per_part]

    def load(self) -> Features | None:
        """Return the features if they exist and are intact; damage is logged."""
        if not self.path.is_dir():
            return None
        try:
            return self._read()
        except (_DamagedError, OSError, ValueError, KeyError, TypeError) as error:  # damage has many symptoms
            _log.warning("%s: features are computed again: %s", self.path, error)
            return None

    def _read(self) -> Features:
        values, unreadable = self._read_all_rows()
        if not len(unreadable):
            return Features(self._rows, values, unreadable)
        readable = ~np.isin(self._rows, unreadable)
        return Features(self._rows[readable], values[readable], unreadable)

    def _read_all_rows(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return (rows, width) features, including those of unreadable samples, and the unreadable rows."""
        meta = json.loads((self.path / _META).read_bytes())
        if meta["description"] != self._description:
            raise _DamagedError("their description does not match")
        file = self.path / _FILE
        if compute_sha256(file) != meta["sha256"]:
            raise _DamagedError(f"{_FILE} was modified")
        values = np.load(file, mmap_mode="r", allow_pickle=False)
        if values.shape != (len(self._rows), self._width) or values.dtype != np.float32:
            raise _DamagedError(f"{_FILE} has shape {values.shape}")
        return values, np.asarray(meta["unread"], dtype=np.int64)

    def try_lock(self) -> TextIO | None:
        """Return the locked file, which the caller closes; None: another process is computing these features.

        Raises:
            ChoralError: the directory is not writable.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.with_suffix(".lock").open("a", encoding="utf-8")
        except OSError as error:
            raise self._write_error(error) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        return file

    def find_missing_parts(self) -> NDArray[np.int64]:
        """Return the numbers of the parts that are absent, damaged or incomplete; the caller holds the lock.

        Parts with unreadable samples count as missing: a read error may be temporary.
        """
        cached = self._read_cached()
        parts = ((number, self._read_part(number, cached)) for number in range(self.num_parts))
        return np.array([number for number, part in parts if part is None or not part[1].all()], dtype=np.int64)

    def write_part(self, part: int, values: NDArray[np.float32], valid: NDArray[np.bool_]) -> None:
        """Write a part: (n, width) features of its rows, and (n,) whether each sample was readable.

        Raises:
            ChoralError: it cannot be written.
        """
        try:
            self._parts.mkdir(parents=True, exist_ok=True)
            content = {"values": np.ascontiguousarray(values, np.float32), "valid": valid.astype(np.uint8)}
            write_atomic(self._part_path(part), save(content))
        except OSError as error:
            raise self._write_error(error) from error

    def merge_parts(self) -> Features:
        """Merge the parts into one file, in the order of the rows, and return the features; the caller holds the lock.

        Raises:
            ChoralError: a part is missing or damaged, or the directory is not writable.
        """
        aside = self.path.with_name(f"{self.path.name}.new")
        cached = self._read_cached()
        try:
            shutil.rmtree(aside, ignore_errors=True)  # left by a killed process
            aside.mkdir()
            shape = (len(self._rows), self._width)
            values = np.lib.format.open_memmap(aside / _FILE, mode="w+", dtype=np.float32, shape=shape)
            valid = np.zeros(len(self._rows), dtype=np.bool_)
            for number in range(self.num_parts):
                part = self._read_part(number, cached)
                if part is None:
                    raise ChoralError(f"{self._part_path(number)}: missing or damaged; run the same command again")
                start = number * self.rows_per_part
                values[start : start + len(part[1])], valid[start : start + len(part[1])] = part
            values.flush()
            del values
            fsync_path(aside / _FILE)
            meta = {
                "description": self._description,
                "unread": self._rows[~valid].tolist(),
                "sha256": compute_sha256(aside / _FILE),
            }
            write_atomic(aside / _META, json.dumps(meta, indent=1).encode())
            shutil.rmtree(self.path, ignore_errors=True)  # damaged or with unreadable samples
            aside.rename(self.path)
            fsync_path(self.path.parent)
        except OSError as error:
            raise self._write_error(error) from error
        shutil.rmtree(self._parts, ignore_errors=True)
        return self._read()

    def _read_cached(self) -> tuple[NDArray[np.float32], NDArray[np.bool_]] | None:
        """Return the (rows, width) features of an earlier computation, and (rows,) which samples it could read."""
        if self.load() is None:
            return None
        values, unreadable = self._read_all_rows()
        return values, ~np.isin(self._rows, unreadable)

    def _read_part(
        self, part: int, cached: tuple[NDArray[np.float32], NDArray[np.bool_]] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]] | None:
        """Return the values of a part and which are valid, from its file or, if all are valid there, from `cached`."""
        count = len(self.rows_in_part(part))
        try:
            content = load(self._part_path(part).read_bytes())
        except (OSError, SafetensorError):
            content = {}
        values, valid = content.get("values"), content.get("valid")
        if values is not None and valid is not None and values.shape == (count, self._width) and len(valid) == count:
            return values, valid.astype(np.bool_)
        rows = slice(part * self.rows_per_part, part * self.rows_per_part + count)
        if cached is not None and cached[1][rows].all():
            return cached[0][rows], cached[1][rows]
        return None

    def _part_path(self, part: int) -> Path:
        return self._parts / f"part-{part:05d}.safetensors"

    def _write_error(self, error: OSError) -> ChoralError:
        reason = error.strerror or os.strerror(error.errno or 0)
        return ChoralError(
            f"{self.path}: features cannot be written ({reason}); free space or make the directory writable"
        )
