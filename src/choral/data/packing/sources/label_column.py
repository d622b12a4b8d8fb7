"""Classes from another column than the source's own: grades, types, probabilities that come in a few steps."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pyarrow as pa

from choral.core.errors import ConfigError, DataError, did_you_mean
from choral.data.packing.sources.base import ImageSource

_NO_METADATA = ("key", "location", "size", "label", "split", "group")
_ALL_DIFFERENT = 20  # samples; from more on, values of which none comes twice are no classes


def labelled_by(source: ImageSource, column: str) -> ImageSource:
    """Return the source with the values of a metadata column as its classes.

    Args:
        source: whose images have one class each.
        column: of text, numbers, or true and false. Classes stand in the order of the values, numbers are named as they
            are usually written, with up to six digits: 0.333333.

    Raises:
        ConfigError: there is no such column.
        DataError: it has gaps or something else in it, fewer than two values, or values of which none comes twice.
    """
    known = [name for name in source.samples.column_names if name not in _NO_METADATA]
    if column not in known:
        there = ", ".join(known) or "none"
        raise ConfigError(
            f"{source.name}: no column {column!r} to take classes from; there are: {there}.{did_you_mean(column, known)}"
        )
    values, where = source.samples[column], f"{source.name}: column {column!r}"
    if values.null_count:
        row = int(np.flatnonzero(values.is_null().to_numpy())[0])
        raise DataError(f"{where} has no value for {values.null_count} samples, first {_key(source, row)!r}")
    listed = values.to_pylist()
    if not all(isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)) for value in listed):
        raise DataError(f"{where} is {values.type}: classes are text, (finite) numbers, or true and false")
    distinct = sorted(set(listed))
    if len(distinct) < 2:
        raise DataError(f"{where} is {listed[0]!r} everywhere, expected at least two classes")
    if len(distinct) == len(listed) > _ALL_DIFFERENT:
        raise DataError(
            f"{where}: every value occurs just once: are these classes? For numbers, there is task regression"
        )
    number_of = {value: number for number, value in enumerate(distinct)}
    labels = pa.array([number_of[value] for value in listed], pa.int64())
    place = source.samples.column_names.index("label")
    return dataclasses.replace(
        source, classes=_names(distinct), samples=source.samples.set_column(place, "label", labels)
    )


def _names(distinct: list[Any]) -> tuple[str, ...]:
    short = tuple(f"{value:g}" if isinstance(value, float) else str(value) for value in distinct)
    return short if len(set(short)) == len(short) else tuple(map(str, distinct))


def _key(source: ImageSource, row: int) -> str:
    return str(source.samples["key"][row].as_py())
