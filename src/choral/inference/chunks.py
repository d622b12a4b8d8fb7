"""A split in chunks: the rows that are predicted together, distributed over ranks, and stored as soon as they are finished.

A chunk is a fixed number of consecutive rows, whatever the number of ranks, and one batch for every model: so predictions
do not depend on the number of ranks, bit for bit. Later starts, with any number of ranks, find the finished chunks. The
directory's name is a hash of everything that decides their content: weights, views, data, rows, chunk size, software and
type of device.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from choral.core.errors import DataError
from choral.data.shards.epoch_plan import rank_slice
from choral.inference.ledger import LedgerMeta, check_part, write_part
from choral.inference.ledger_parts import open_part, part_path, part_paths

_log = logging.getLogger(__name__)
_MIN_WRITE_INTERVAL_S = 10.0
_WRITE_INTERVAL_SHARE = 0.02  # of the time since the start: a long evaluation leaves hundreds of files, not thousands
_MAX_PENDING_BYTES = 64 << 20  # of a rank's predictions in memory

Columns = dict[tuple[str, str], NDArray[np.float32]]
"""(member, view) to (n, outputs) predictions."""


@dataclass(frozen=True)
class Chunks:
    """The rows of a split to predict, in order, and the number of rows per chunk."""

    rows: NDArray[np.int64]
    size: int

    def __len__(self) -> int:
        """Return the number of chunks."""
        return -(-len(self.rows) // self.size)

    def rows_in(self, chunk: int) -> NDArray[np.int64]:
        """Return the rows of a chunk: `size` of them, fewer in the last chunk."""
        return self.rows[chunk * self.size : (chunk + 1) * self.size]

    def parts_dir(self, predictions: Path, meta: LedgerMeta, computed_by: Sequence[str]) -> Path:
        """Return the directory of a ledger's finished chunks.

        Args:
            predictions: directory of the run's ledgers.
            meta: of the ledger.
            computed_by: software and type of device; results of different ones are never mixed in a ledger.
        """
        content = {name: value for name, value in asdict(meta).items() if name != "skipped"}
        text = json.dumps([content, self.size, hashlib.sha256(self.rows.tobytes()).hexdigest(), *computed_by])
        return split_parts_dir(predictions, meta.split) / hashlib.sha256(text.encode()).hexdigest()[:16]


def split_parts_dir(predictions: Path, split: str) -> Path:
    """Return the directory of all unfinished ledgers of a split."""
    return predictions / f".{split}.parts"


def rank_share(todo: NDArray[np.int64], rank: int, world_size: int) -> list[int]:
    """Return the chunks that a rank has to do: consecutive ones, so that it reads consecutive samples of the shards."""
    share: list[int] = todo[rank_slice(len(todo), rank, world_size)].tolist()
    return share


def find_finished_chunks(directory: Path, chunks: int, meta: LedgerMeta, may_skip: bool = True) -> NDArray[np.bool_]:
    """Return (chunks,) which chunks are finished, and delete files of no use. Only one rank may call it.

    Deletes, with a warning, parts that are damaged or overlap; parts of other predictions of the split (other weights,
    views or data); and, unless samples may be skipped, parts of an earlier start that skipped some.
    """
    for other in directory.parent.iterdir() if directory.parent.is_dir() else ():
        if other != directory:
            shutil.rmtree(other) if other.is_dir() else other.unlink()
    done = np.zeros(chunks, dtype=np.bool_)
    for path in directory.glob(".*"):  # of a process that was killed while writing
        path.unlink()
    for path in part_paths(directory):
        try:
            part = check_part(open_part(path), meta)
            is_named_right = path == part_path(directory, part.first, part.stop)
            if not is_named_right or part.stop > chunks or done[part.first : part.stop].any():
                raise DataError(f"{path}: holds other chunks than its name says")
            if part.skipped and not may_skip:
                raise DataError(f"{path}: lacks samples that could not be read, such as {part.skipped[0]!r}")
        except DataError as error:
            _log.warning("predicting again: %s", error)
            path.unlink()
        else:
            done[part.first : part.stop] = True
    return done


class ChunkWriter:
    """Collects a rank's finished chunks in memory for some seconds, then writes them to one file.

    Args:
        directory: `Chunks.parts_dir`.
        build_table: builds the rows of a ledger from the rows and columns of consecutive chunks.
    """

    def __init__(self, directory: Path, build_table: Callable[[NDArray[np.int64], Columns], pa.Table]) -> None:
        self._directory, self._build_table = directory, build_table
        self._started = self._written = time.monotonic()
        self._pending: list[tuple[int, NDArray[np.int64], Columns]] = []
        self._skipped: list[str] = []

    def add(self, chunk: int, rows: NDArray[np.int64], columns: Columns, skipped: Sequence[str]) -> None:
        """Add a finished chunk: its readable rows, their predictions, and the keys of its other samples."""
        if self._pending and chunk != self._pending[-1][0] + 1:
            self.flush()
        self._pending.append((chunk, rows, columns))
        self._skipped += skipped
        now = time.monotonic()
        size = sum(values.nbytes for _, _, columns in self._pending for values in columns.values())
        interval = max(_MIN_WRITE_INTERVAL_S, _WRITE_INTERVAL_SHARE * (now - self._started))
        if size > _MAX_PENDING_BYTES or now - self._written > interval:
            self.flush()

    def flush(self) -> None:
        """Write the pending chunks.

        Raises:
            DataError: the file cannot be written.
        """
        if self._pending:
            rows = np.concatenate([rows for _, rows, _ in self._pending])
            names = self._pending[0][2]
            columns = {name: np.concatenate([columns[name] for _, _, columns in self._pending]) for name in names}
            first, stop = self._pending[0][0], self._pending[-1][0] + 1
            write_part(self._directory, first, stop, self._build_table(rows, columns), self._skipped)
        self._pending, self._skipped, self._written = [], [], time.monotonic()
