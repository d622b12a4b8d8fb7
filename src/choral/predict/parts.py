"""The parts of a ledger, one a rank: opened without being read, checked against the samples expected."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from choral import files
from choral.errors import DataError
from choral.shards.plan import slice_of

PART_KEY = b"choral-part"  # of the schema's metadata


@dataclass(frozen=True)
class Part:
    """Rows of one rank, mapped into memory.

    Attributes:
        path, rank: where they lie, and whose they are.
        table: one record batch, its columns as in the ledger.
        skipped: keys that the rank could not read.
    """

    path: Path
    rank: int
    table: pa.Table
    skipped: list[str]

    def column(self, name: str) -> pa.Array:
        """Return a column as one array over the mapped file."""
        return single_array(self.table.column(name))


def part_path(folder: Path, rank: int, world_size: int) -> Path:
    """Return where the part of a rank lies."""
    return folder / f"part-{rank:05d}-of-{world_size:05d}.arrow"


def open_part(folder: Path, rank: int, world_size: int) -> Part:
    """Map the part of a rank into memory; DataError if it is missing or damaged."""
    path = part_path(folder, rank, world_size)
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        content = json.loads(table.schema.metadata[PART_KEY])
        skipped = [str(key) for key in content["skipped"]]
    except FileNotFoundError:
        raise DataError(
            f"{folder}: the predictions of rank {rank} of {world_size} are missing; evaluate again"
        ) from None
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged predictions of rank {rank} ({error}); evaluate again") from error
    return Part(path, rank, table, skipped)


def checked_rows(parts: Sequence[Part], expected_keys: Sequence[str]) -> tuple[pa.Array, NDArray[np.int64]]:
    """Check that each sample was predicted once, or skipped, and return the rows sorted by key.

    Args:
        parts: of rank 0, 1, ...
        expected_keys: in the order of the index.

    Returns:
        The keys, sorted, and for each the (n,) int64 position of its row in the parts laid end to end.

    Raises:
        DataError: a key that is foreign, double or missing; rank and up to three keys are named.
    """
    predicted = pa.concat_arrays([part.column("key") for part in parts])
    keys = pa.concat_arrays([predicted, *(pa.array(part.skipped, pa.string()) for part in parts)])
    ranks = np.repeat(
        [part.rank for part in parts] * 2, [len(part.table) for part in parts] + [len(part.skipped) for part in parts]
    )
    expected = pa.array(expected_keys, pa.string())
    foreign = np.flatnonzero(~_flags(pc.is_in(keys, expected)))
    if len(foreign):
        where = f"rank {ranks[foreign[0]]}"
        raise DataError(f"{where}: predictions for {_listing(keys, foreign)}, not in this split; evaluate again")
    order = pc.sort_indices(keys).to_numpy().astype(np.int64)  # by UTF-8 bytes, which is the order of code points
    ordered = keys.take(order)
    double = np.flatnonzero(_flags(pc.equal(ordered.slice(1), ordered.slice(0, max(len(ordered) - 1, 0)))))
    if len(double):
        where = f"ranks {ranks[order[double[0]]]} and {ranks[order[double[0] + 1]]}"
        raise DataError(f"{where}: more than one prediction for {_listing(ordered, double)}; evaluate again")
    missing = np.flatnonzero(~_flags(pc.is_in(expected, keys)))
    if len(missing):
        slices = [slice_of(len(expected), rank, len(parts)) for rank in range(len(parts))]
        rank = next(rank for rank, rows in enumerate(slices) if missing[0] < rows.stop)
        raise DataError(f"rank {rank} of {len(parts)}: no prediction for {_listing(expected, missing)}; evaluate again")
    rows = pc.sort_indices(predicted).to_numpy().astype(np.int64)
    return predicted.take(rows), rows


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write that becomes `path` once it is complete and on disk, or vanishes if an exception passes.

    Raises:
        DataError: it cannot be written, for instance because the disk is full; what was at `path` is still there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.written_aside(path) as file:
            yield file
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from error


def single_array(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array; `combine_chunks` alone would copy it even where it is one chunk already."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _flags(mask: pa.Array) -> NDArray[np.bool_]:
    flags: NDArray[np.bool_] = mask.to_numpy(zero_copy_only=False).astype(bool)
    return flags


def _listing(keys: pa.Array, positions: NDArray[np.int64]) -> str:
    shown = ", ".join(repr(keys[int(position)].as_py()) for position in positions[:3])
    return shown if len(positions) <= 3 else f"{shown} and {len(positions) - 3} more"
