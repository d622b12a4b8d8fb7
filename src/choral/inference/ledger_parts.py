"""The parts of a ledger, with some chunks each: memory-mapped, and checked against the samples of the split."""

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

from choral.core import files
from choral.core.errors import DataError

PART_KEY = b"choral-part"  # of the schema's metadata


@dataclass(frozen=True)
class Part:
    """The memory-mapped rows of consecutive chunks.

    Attributes:
        path: of the file.
        first, stop: the chunks, `stop` not included.
        table: one record batch with the columns of the ledger.
        skipped: keys of samples that could not be read.
    """

    path: Path
    first: int
    stop: int
    table: pa.Table
    skipped: list[str]

    def column(self, name: str) -> pa.Array:
        """Return a column as one array over the mapped file."""
        return single_array(self.table.column(name))


def part_path(folder: Path, first: int, stop: int) -> Path:
    """Return the path of the part with chunks first to stop - 1."""
    return folder / f"part-{first:09d}-{stop:09d}.arrow"


def part_paths(folder: Path) -> list[Path]:
    """Return the paths of the parts in a folder, in the order of their chunks."""
    return sorted(folder.glob("part-*.arrow"))


def open_part(path: Path) -> Part:
    """Map a part into memory; DataError if it is missing or damaged."""
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        content = json.loads(table.schema.metadata[PART_KEY])
        skipped = [str(key) for key in content["skipped"]]
        first, stop = int(content["first"]), int(content["stop"])
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged predictions ({error}); evaluate again") from error
    return Part(path, first, stop, table, skipped)


def open_parts(folder: Path, chunks: int) -> list[Part]:
    """Open the parts of all chunks, in order.

    Raises:
        DataError: a part is damaged, or a chunk is missing or occurs twice; the message names them.
    """
    parts, next_chunk = [], 0
    for path in part_paths(folder):
        part = open_part(path)
        if part.first < next_chunk:
            raise DataError(f"{path}: more than one prediction for chunk {part.first} of {chunks}; evaluate again")
        _check_none_missing(folder, next_chunk, part.first, chunks)
        parts.append(part)
        next_chunk = part.stop
    _check_none_missing(folder, next_chunk, chunks, chunks)
    return parts


def _check_none_missing(folder: Path, first: int, stop: int, chunks: int) -> None:
    if first < stop:
        raise DataError(
            f"{folder}: the predictions of chunks {first} to {stop - 1} of {chunks} are missing; evaluate again"
        )


def check_and_sort_rows(
    parts: Sequence[Part], expected_keys: Sequence[str], left_out: Sequence[str]
) -> tuple[pa.Array, NDArray[np.int64]]:
    """Check that each sample was predicted exactly once, or skipped, and return the rows sorted by key.

    Args:
        parts: of all chunks.
        expected_keys: of the split.
        left_out: keys of samples that no model was to predict.

    Returns:
        The sorted keys, and for each the (n,) int64 position of its row in the concatenated parts.

    Raises:
        DataError: a key is not in the split, duplicated or missing; the message names up to three keys and their parts.
    """
    texts = pa.string()
    predicted = pa.concat_arrays([pa.array([], texts), *(part.column("key") for part in parts)])
    keys = pa.concat_arrays([predicted, *(pa.array(part.skipped, texts) for part in parts), pa.array(left_out, texts)])
    owners = [part.path.name for part in parts]
    counts = [len(part.table) for part in parts] + [len(part.skipped) for part in parts] + [len(left_out)]
    places = np.repeat([*owners, *owners, "left out"], counts)
    expected = pa.array(expected_keys, texts)
    unexpected = np.flatnonzero(~_flags(pc.is_in(keys, expected)))
    if len(unexpected):
        where = places[unexpected[0]]
        raise DataError(f"{where}: predictions for {_list_keys(keys, unexpected)}, not in this split; evaluate again")
    order = pc.sort_indices(keys).to_numpy().astype(np.int64)  # by UTF-8 bytes, which is the order of code points
    ordered = keys.take(order)
    duplicates = np.flatnonzero(_flags(pc.equal(ordered.slice(1), ordered.slice(0, max(len(ordered) - 1, 0)))))
    if len(duplicates):
        where = f"{places[order[duplicates[0]]]} and {places[order[duplicates[0] + 1]]}"
        raise DataError(f"{where}: more than one prediction for {_list_keys(ordered, duplicates)}; evaluate again")
    missing = np.flatnonzero(~_flags(pc.is_in(expected, keys)))
    if len(missing):
        raise DataError(f"no prediction for {_list_keys(expected, missing)}; evaluate again")
    rows = pc.sort_indices(predicted).to_numpy().astype(np.int64)
    return predicted.take(rows), rows


@contextlib.contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write, which becomes `path` when it is complete and on disk, or is deleted after an exception.

    Raises:
        DataError: the file cannot be written, for example because the disk is full; `path` is unchanged.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.atomic_file(path) as file:
            yield file
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from error


def single_array(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array, without a copy if it has a single chunk (`combine_chunks` would copy it)."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _flags(mask: pa.Array) -> NDArray[np.bool_]:
    flags: NDArray[np.bool_] = mask.to_numpy(zero_copy_only=False).astype(bool)
    return flags


def _list_keys(keys: pa.Array, positions: NDArray[np.int64]) -> str:
    """Return the first three keys at some positions as text."""
    text = ", ".join(repr(keys[int(position)].as_py()) for position in positions[:3])
    return text if len(positions) <= 3 else f"{text} and {len(positions) - 3} more"
