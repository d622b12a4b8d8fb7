"""A split in chunks: what is predicted together, dealt to ranks, and kept on disk as soon as it is finished.

Chunks are so many consecutive rows of the split however many ranks there are, and a chunk is one batch of every network:
so a prediction does not depend on the number of ranks, to the bit. A finished chunk is found again by later starts with any
number of ranks. Its folder is named by everything that decides what is in it: weights, views, data, rows, size of the chunks,
and what computes it.
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
from choral.data.shards.epoch_plan import slice_of
from choral.inference.ledger import LedgerMeta, own_part, write_part
from choral.inference.ledger_parts import open_part, part_path, part_paths

_log = logging.getLogger(__name__)
_WRITE_AT_LEAST_EVERY_S = 10.0
# Of the time that a rank has been at work: a long evaluation leaves hundreds of files, not thousands.
_WRITE_EVERY = 0.02
_WRITE_BYTES = 64 << 20  # of a rank's predictions in memory


@dataclass(frozen=True)
class Chunks:
    """The rows of a split that are asked about, in the order in which they are, and how many of them are a chunk."""

    rows: NDArray[np.int64]
    size: int

    def __len__(self) -> int:
        """Return the number of chunks."""
        return -(-len(self.rows) // self.size)

    def rows_of(self, chunk: int) -> NDArray[np.int64]:
        """Return the rows of a chunk, `size` of them but for the last."""
        return self.rows[chunk * self.size : (chunk + 1) * self.size]

    def folder(self, predictions: Path, meta: LedgerMeta, computed_by: Sequence[str]) -> Path:
        """Return where finished chunks of a ledger are kept until it is written.

        Args:
            predictions: of the run.
            meta: of the ledger.
            computed_by: software and kind of device, of which a ledger is not a mixture.
        """
        content = {name: value for name, value in asdict(meta).items() if name != "skipped"}
        words = json.dumps([content, self.size, hashlib.sha256(self.rows.tobytes()).hexdigest(), *computed_by])
        return parts_of(predictions, meta.split) / hashlib.sha256(words.encode()).hexdigest()[:16]


def parts_of(predictions: Path, split: str) -> Path:
    """Return the folder of all unfinished ledgers of a split."""
    return predictions / f".{split}.parts"


def dealt(todo: NDArray[np.int64], rank: int, world_size: int) -> list[int]:
    """Return a rank's share of the chunks to do: consecutive ones, so that it reads a stretch of the shards."""
    share: list[int] = todo[slice_of(len(todo), rank, world_size)].tolist()
    return share


def finished(folder: Path, chunks: int, meta: LedgerMeta, may_skip: bool = True) -> NDArray[np.bool_]:
    """Return which of so many chunks lie in a folder, and make it tidy: one rank alone may do so.

    Parts that are damaged or overlap are deleted, with a warning, and so is what belongs to other predictions of the split:
    other weights, views or data. Unless samples may be skipped, so are parts of an earlier start that has skipped some.
    """
    for other in folder.parent.iterdir() if folder.parent.is_dir() else ():
        if other != folder:
            shutil.rmtree(other) if other.is_dir() else other.unlink()
    done = np.zeros(chunks, dtype=np.bool_)
    for path in folder.glob(".*"):  # of a process that was killed while writing
        path.unlink()
    for path in part_paths(folder):
        try:
            part = own_part(open_part(path), meta)
            named = path == part_path(folder, part.first, part.stop)
            if not named or part.stop > chunks or done[part.first : part.stop].any():
                raise DataError(f"{path}: holds other chunks than it should")
            if part.skipped and not may_skip:
                raise DataError(f"{path}: without samples that could not be read, such as {part.skipped[0]!r}")
        except DataError as error:
            _log.warning("predicted again: %s", error)
            path.unlink()
        else:
            done[part.first : part.stop] = True
    return done


Columns = dict[tuple[str, str], NDArray[np.float32]]
"""(n, outputs) predictions by (member, view)."""


class ChunkWriter:
    """Keeps a rank's finished chunks in memory for some seconds, then writes them into one file.

    Args:
        folder: `Chunks.folder`.
        table: makes the rows of a ledger from predictions of consecutive chunks, laid end to end.
    """

    def __init__(self, folder: Path, table: Callable[[NDArray[np.int64], Columns], pa.Table]) -> None:
        self._folder, self._table = folder, table
        self._started = self._written = time.monotonic()
        self._held: list[tuple[int, NDArray[np.int64], Columns]] = []
        self._skipped: list[str] = []

    def add(self, chunk: int, rows: NDArray[np.int64], columns: Columns, skipped: Sequence[str]) -> None:
        """Take a finished chunk: its readable rows, their predictions, and the keys of the others."""
        if self._held and chunk != self._held[-1][0] + 1:
            self.flush()
        self._held.append((chunk, rows, columns))
        self._skipped += skipped
        now = time.monotonic()
        held = sum(values.nbytes for _, _, own in self._held for values in own.values())
        pause = max(_WRITE_AT_LEAST_EVERY_S, _WRITE_EVERY * (now - self._started))
        if held > _WRITE_BYTES or now - self._written > pause:
            self.flush()

    def flush(self) -> None:
        """Write what is held.

        Raises:
            DataError: it cannot be written.
        """
        if self._held:
            rows = np.concatenate([rows for _, rows, _ in self._held])
            columns = {name: np.concatenate([own[name] for _, _, own in self._held]) for name in self._held[0][2]}
            first, stop = self._held[0][0], self._held[-1][0] + 1
            write_part(self._folder, first, stop, self._table(rows, columns), self._skipped)
        self._held, self._skipped, self._written = [], [], time.monotonic()
