"""Classes from a metadata column of a source: grades, types, probabilities with few distinct values."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pyarrow as pa

from choral.core.errors import ConfigError, DataError, did_you_mean
from choral.data.packing.sources.base import ImageSource

_NOT_METADATA = ("key", "location", "size", "label", "split", "group")
_MAX_UNIQUE = 20  # with more samples than this, values that occur only once are not classes


def use_column_as_label(source: ImageSource, column: str) -> ImageSource:
    """Return the source with the values of a metadata column as its classes.

    Args:
        source: a source with one class per image.
        column: of text, numbers or booleans. Classes are in the order of the values; numbers are formatted with up to
            six significant digits: 0.333333.

    Raises:
        ConfigError: no such column.
        DataError: nulls, values of other types, fewer than two distinct values, or only values that occur once.
    """
    available = [name for name in source.samples.column_names if name not in _NOT_METADATA]
    if column not in available:
        hint = did_you_mean(column, available)
        raise ConfigError(
            f"{source.name}: no column {column!r} to use as the label; available: "
            f"{', '.join(available) or 'none'}.{hint}"
        )
    values, prefix = source.samples[column], f"{source.name}: column {column!r}"
    if values.null_count:
        row = int(np.flatnonzero(values.is_null().to_numpy())[0])
        raise DataError(f"{prefix} has no value for {values.null_count} samples, first {_key(source, row)!r}")
    listed = values.to_pylist()
    if not all(isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)) for value in listed):
        raise DataError(f"{prefix} is {values.type}: classes must be text, finite numbers or booleans")
    distinct = sorted(set(listed))
    if len(distinct) < 2:
        raise DataError(f"{prefix} is {listed[0]!r} for all samples, expected at least two classes")
    if len(distinct) == len(listed) > _MAX_UNIQUE:
        raise DataError(
            f"{prefix}: every value occurs only once: are these classes? For numbers, there is task regression"
        )
    id_of_value = {value: number for number, value in enumerate(distinct)}
    labels = pa.array([id_of_value[value] for value in listed], pa.int64())
    position = source.samples.column_names.index("label")
    return dataclasses.replace(
        source, classes=_class_names(distinct), samples=source.samples.set_column(position, "label", labels)
    )


def _class_names(distinct: list[Any]) -> tuple[str, ...]:
    short = tuple(f"{value:g}" if isinstance(value, float) else str(value) for value in distinct)
    return short if len(set(short)) == len(short) else tuple(map(str, distinct))


def _key(source: ImageSource, row: int) -> str:
    return str(source.samples["key"][row].as_py())
