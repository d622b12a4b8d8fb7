"""The targets of the samples of a split: classes, labels or regression targets, read from its index."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from choral.config import Config, Task
from choral.core.errors import ConfigError, DataError
from choral.data.shards.index import LABEL_IDS, Index

_BLOCK = 1 << 16  # rows; a few MB


@dataclass(frozen=True)
class Targets:
    """The targets of one split; made by `open`. Picklable: a worker process maps the index again.

    Attributes:
        task: of the run.
        names: of the classes, labels or target columns, one per output of the model.
        index: of the split.
        columns: the columns of the index named in `data.targets`; empty: the targets of the packed data set.
    """

    task: Task
    names: tuple[str, ...]
    index: Index
    columns: tuple[str, ...] = ()

    @classmethod
    def open(cls, config: Config, index: Index) -> Targets:
        """Return the targets of a config, checked over the whole split.

        Raises:
            ConfigError: the data set was packed for another task, and `data.targets` names no column.
            DataError: a column is missing, has missing values, or holds values other than finite numbers (regression)
                or 0 and 1 (multilabel). The message names column, split and sample.
        """
        columns = config.data.targets
        if not columns:
            _check_task(config.task, index)
        if config.task == "regression":
            columns = columns or index.dataset.classes
        targets = cls(config.task, columns or index.dataset.classes, index, columns)
        for values, name in zip(targets._values, columns, strict=True):
            targets._check_column(values, name)
        return targets

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without cached values: the other process maps the same pages."""
        return (Targets, (self.task, self.names, self.index, self.columns))

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.index)

    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return the targets of index rows.

        Returns:
            multiclass: (b,) int64 class ids; multilabel: (b, L) float32, 1 where the label applies, else 0; regression:
            (b, T) float32, in the units of the data.
        """
        if self.task == "multiclass":
            return self.index.labels[rows]
        if self.columns:
            return np.stack([values[rows] for values in self._values], axis=1).astype(np.float32)
        return self._packed_labels(rows)

    def blocks(self, rows: NDArray[np.int64] | None = None) -> Iterator[NDArray[Any]]:
        """Yield the targets of rows (None: all) in order, block by block, as `take` returns them."""
        count = len(self) if rows is None else len(rows)
        for start in range(0, count, _BLOCK):
            end = min(start + _BLOCK, count)
            yield self.take(np.arange(start, end) if rows is None else rows[start:end])

    def _packed_labels(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        starts, ends, ids = self._lists
        counts = ends[rows] - starts[rows]
        result = np.zeros((len(rows), len(self.names)), dtype=np.float32)
        within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        result[np.repeat(np.arange(len(rows)), counts), ids[np.repeat(starts[rows], counts) + within]] = 1
        return result

    @cached_property
    def _lists(self) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
        """Start and end of each sample's label ids, and all label ids; views of the mapped index."""
        lists: Any = self.index.column(LABEL_IDS)
        bounds = lists.offsets.to_numpy()
        return bounds[:-1], bounds[1:], lists.values.to_numpy()

    @cached_property
    def _values(self) -> list[NDArray[Any]]:
        """(n,) values of each column."""
        return [read_numeric_column(self.index, name) for name in self.columns]

    def _check_column(self, values: NDArray[Any], name: str) -> None:
        good = np.isfinite(values) if self.task == "regression" else (values == 0) | (values == 1)
        if not good.all():
            row = int(np.flatnonzero(~good)[0])
            expected = "a finite number" if self.task == "regression" else "0 or 1 for multilabel"
            where, key = _describe_column(self.index, name), self.index.keys([row])[0]
            raise DataError(f"{where} holds {values[row]} for sample {key!r}, expected {expected}")


def read_numeric_column(index: Index, name: str) -> NDArray[Any]:
    """Return a numeric or boolean column without missing values.

    Args:
        index: of a split.
        name: of the column.

    Returns:
        (n,) in the dtype of the column; booleans as uint8.

    Raises:
        DataError: it is missing, not numeric, or has missing values. The message names column, split and sample.
    """
    column = index.column(name)
    if isinstance(column, np.ndarray):
        return column
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise DataError(f"{_describe_column(index, name)} is {column.type}, expected numbers")
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise DataError(
            f"{_describe_column(index, name)} has no value for {column.null_count} samples, first {index.keys([row])[0]!r}: "
            "exclude these samples when packing, or fill in values"
        )
    values: NDArray[Any] = column.to_numpy()
    return values


def _describe_column(index: Index, name: str) -> str:
    return f"{index.dataset.folder}: column {name!r} of split {index.split}"


def _check_task(task: Task, index: Index) -> None:
    """Refuse a data set that was packed for another task, if `data.targets` is empty."""
    dataset = index.dataset
    if dataset.task == task:
        return
    if task == "multiclass":
        advice = f"set task: {dataset.task}, or pack the data with classes"
    else:
        kind = "columns of 0 and 1" if task == "multilabel" else "a column of numbers"
        advice = f"pack the data with --task {task}, or name {kind} in data.targets"
    raise ConfigError(f"task: {task}, but {dataset.folder} was packed for {dataset.task}: {advice}")
