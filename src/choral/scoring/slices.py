"""Slices: the samples of a split by what a column of their metadata says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from choral.core.errors import ConfigError, DataError, did_you_mean
from choral.data.shards.index import LABEL_IDS, Index

MISSING = "(missing)"
MOST = 20  # values that are slices of their own
_FEW = 8  # numbers that are values rather than quantities
_NO_SLICES = ("key", "shard", "offset", LABEL_IDS)


def columns_of(index: Index) -> list[str]:
    """Return the columns that samples can be sliced by: metadata, group, label (of classes), ext and length (bytes)."""
    unlabelled = () if index.dataset.task == "multiclass" else ("label",)
    return [name for name in index.table.column_names if name not in (*_NO_SLICES, *unlabelled)]


def slices_of(index: Index, keys: Sequence[str], column: str) -> dict[str, NDArray[np.bool_]]:
    """Return the slices of some samples of a split by a column of its index.

    Text and truth values, and numbers of which there are no more than eight, make a slice of each value; beyond the twenty
    most frequent the others share one. Other numbers make four by their quartiles among `keys`, named by the least and the
    largest value in each; equal numbers are never parted, so that there may be fewer. Missing values (null, NaN, empty
    text) are a slice of their own.

    Args:
        index: of the split.
        keys: (N,) of samples of it.
        column: one of `columns_of`.

    Returns:
        name to an (N,) mask, none of them empty; they part the samples, text in order of size, numbers in ascending order.

    Raises:
        ConfigError: no such column, with those that there are, or one of lists or the like.
        DataError: a key is not in the index.
    """
    known = columns_of(index)
    if column not in known:
        near = did_you_mean(column, known)
        raise ConfigError(
            f"--by: no column '{column}' in split {index.split} of {index.dataset.folder}.{near} "
            f"There are: {', '.join(known)}"
        )
    found = index.table[column].take(_rows(index, keys))
    values = found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if column == "label":
        values = pa.array([index.dataset.classes[number] for number in values.to_pylist()], pa.string())
    if pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
        return _of_numbers(values)
    if pa.types.is_boolean(values.type) or pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        return _of_texts(values)
    raise ConfigError(f"--by: column '{column}' holds {values.type}; slices need text, numbers or truth values")


def _rows(index: Index, keys: Sequence[str]) -> pa.Array:
    rows = pc.index_in(pa.array(keys, pa.string()), value_set=index.table["key"].combine_chunks())
    if rows.null_count:
        absent = keys[rows.is_null().to_pylist().index(True)]
        raise DataError(f"{index.dataset.folder}: split {index.split} has no sample '{absent}': was it packed again?")
    return rows


def _of_texts(values: pa.Array) -> dict[str, NDArray[np.bool_]]:
    texts = np.array([MISSING if not value and value is not False else str(value) for value in values.to_pylist()])
    names, of_sample, counts = np.unique(texts, return_inverse=True, return_counts=True)
    order = [number for number in np.lexsort((names, -counts)) if names[number] != MISSING]
    slices = {str(names[number]): of_sample == number for number in order[:MOST]}
    if len(order) > MOST:
        slices[f"({len(order) - MOST} others)"] = np.isin(of_sample, order[MOST:])
    return slices | _missing(texts == MISSING)


def _of_numbers(values: pa.Array) -> dict[str, NDArray[np.bool_]]:
    numbers: NDArray[Any] = values.to_numpy(zero_copy_only=False)
    missing = np.isnan(numbers) if numbers.dtype.kind == "f" else np.zeros(len(numbers), dtype=np.bool_)
    there = np.sort(numbers[~missing])
    distinct = np.unique(there)
    if len(distinct) <= _FEW:
        masks = [numbers == value for value in distinct]
    else:  # the ends are among the numbers, so that each slice has at least one
        ends = np.unique(there[[(len(there) * quarter + 3) // 4 - 1 for quarter in (1, 2, 3, 4)]])
        place = np.searchsorted(ends, numbers)
        masks = [(place == number) & ~missing for number in range(len(ends))]
    return {_span(numbers[mask]): mask for mask in masks} | _missing(missing)


def _missing(mask: NDArray[np.bool_]) -> dict[str, NDArray[np.bool_]]:
    return {MISSING: mask} if mask.any() else {}


def _span(numbers: NDArray[Any]) -> str:
    low, high = numbers.min(), numbers.max()
    short = [f"{value:.4g}" if value.dtype.kind == "f" else str(value) for value in (low, high)]
    if low != high and short[0] == short[1]:
        short = [repr(value.item()) for value in (low, high)]
    return short[0] if low == high else f"{short[0]} to {short[1]}"
