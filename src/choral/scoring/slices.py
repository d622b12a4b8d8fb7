"""Splits the samples of a data split into slices by a metadata column."""

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
MAX_VALUES = 20  # most frequent values that have a slice of their own
_MAX_DISCRETE = 8  # distinct numbers that are treated as values, not as quantities
_EXCLUDED = ("key", "shard", "offset", LABEL_IDS)


def list_slice_columns(index: Index) -> list[str]:
    """Return the columns for slices: metadata, group, label (multiclass), ext and length (bytes)."""
    unlabelled = () if index.dataset.task == "multiclass" else ("label",)
    return [name for name in index.table.column_names if name not in (*_EXCLUDED, *unlabelled)]


def split_by_column(index: Index, keys: Sequence[str], column: str) -> dict[str, NDArray[np.bool_]]:
    """Return the slices of samples by the values of a column.

    Texts, booleans and up to eight distinct numbers have one slice per value; values beyond the twenty most frequent share
    a slice. More numbers are split at their quartiles among `keys`; a slice is named by its smallest and largest value, and
    equal numbers stay together, so there can be fewer than four. Missing values (null, NaN, empty text) are a slice of
    their own.

    Args:
        index: of the split.
        keys: (N,) keys of samples of the split.
        column: one of `list_slice_columns`.

    Returns:
        Name to a non-empty (N,) mask. Every sample is in exactly one slice; texts by decreasing size, numbers ascending.

    Raises:
        ConfigError: no such column (the existing ones are listed), or its type is not supported.
        DataError: a key is not in the index.
    """
    columns = list_slice_columns(index)
    if column not in columns:
        near = did_you_mean(column, columns)
        raise ConfigError(
            f"--by: no column '{column}' in split {index.split} of {index.dataset.folder}.{near} "
            f"There are: {', '.join(columns)}"
        )
    found = index.table[column].take(_find_rows(index, keys))
    values = found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if column == "label":
        values = pa.array([index.dataset.classes[number] for number in values.to_pylist()], pa.string())
    if pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
        return _split_numbers(values)
    if pa.types.is_boolean(values.type) or pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        return _split_texts(values)
    raise ConfigError(f"--by: column '{column}' holds {values.type}; slices need text, numbers or booleans")


def _find_rows(index: Index, keys: Sequence[str]) -> pa.Array:
    rows = pc.index_in(pa.array(keys, pa.string()), value_set=index.table["key"].combine_chunks())
    if rows.null_count:
        missing = keys[rows.is_null().to_pylist().index(True)]
        raise DataError(f"{index.dataset.folder}: split {index.split} has no sample '{missing}': was it packed again?")
    return rows


def _split_texts(values: pa.Array) -> dict[str, NDArray[np.bool_]]:
    texts = np.array([MISSING if not value and value is not False else str(value) for value in values.to_pylist()])
    names, of_sample, counts = np.unique(texts, return_inverse=True, return_counts=True)
    order = [number for number in np.lexsort((names, -counts)) if names[number] != MISSING]
    slices = {str(names[number]): of_sample == number for number in order[:MAX_VALUES]}
    if len(order) > MAX_VALUES:
        slices[f"({len(order) - MAX_VALUES} others)"] = np.isin(of_sample, order[MAX_VALUES:])
    return slices | _missing_slice(texts == MISSING)


def _split_numbers(values: pa.Array) -> dict[str, NDArray[np.bool_]]:
    numbers: NDArray[Any] = values.to_numpy(zero_copy_only=False)
    missing = np.isnan(numbers) if numbers.dtype.kind == "f" else np.zeros(len(numbers), dtype=np.bool_)
    present = np.sort(numbers[~missing])
    distinct = np.unique(present)
    if len(distinct) <= _MAX_DISCRETE:
        masks = [numbers == value for value in distinct]
    else:  # the limits are among the numbers, so no slice is empty
        limits = np.unique(present[[(len(present) * quarter + 3) // 4 - 1 for quarter in (1, 2, 3, 4)]])
        place = np.searchsorted(limits, numbers)
        masks = [(place == number) & ~missing for number in range(len(limits))]
    return {_format_range(numbers[mask]): mask for mask in masks} | _missing_slice(missing)


def _missing_slice(mask: NDArray[np.bool_]) -> dict[str, NDArray[np.bool_]]:
    return {MISSING: mask} if mask.any() else {}


def _format_range(numbers: NDArray[Any]) -> str:
    low, high = numbers.min(), numbers.max()
    short = [f"{value:.4g}" if value.dtype.kind == "f" else str(value) for value in (low, high)]
    if low != high and short[0] == short[1]:
        short = [repr(value.item()) for value in (low, high)]
    return short[0] if low == high else f"{short[0]} to {short[1]}"
