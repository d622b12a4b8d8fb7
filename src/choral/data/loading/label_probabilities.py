"""Class probabilities of the training samples (soft targets), for labels that are uncertain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from choral.core.errors import ConfigError, DataError, did_you_mean
from choral.data.loading.targets import read_numeric_column
from choral.data.shards.index import Index

_KEY = "train.label_probabilities"
_ROUNDING = 1e-3  # annotations often have only two or three digits


@dataclass(frozen=True)
class LabelProbabilities:
    """The class probabilities of a split, read from columns of its index; made by `open`.

    Attributes:
        index: of the split.
        classes: number of classes.
        named: ids of the k classes that have a column.
        columns: k arrays of (n,) probabilities.
    """

    index: Index
    classes: int
    named: tuple[int, ...]
    columns: tuple[NDArray[Any], ...]

    @classmethod
    def open(cls, columns: Mapping[str, str], index: Index) -> LabelProbabilities:
        """Return the probabilities in the columns of `train.label_probabilities`, checked over the whole split.

        Args:
            columns: the column of each class. One class may be omitted: its probability is the remainder to 1.
            index: of a split packed with classes.

        Raises:
            ConfigError: a class does not exist, or more than one class is omitted.
            DataError: a column is missing, has missing values, or holds values outside [0, 1]; or the probabilities of
                a sample do not sum to 1. The message names column, split and sample.
        """
        classes = index.dataset.classes
        for name in columns:
            if name not in classes:
                listed = ", ".join(classes[:20])
                raise ConfigError(
                    f"{_KEY}.{name}: no such class; the classes are {listed}.{did_you_mean(name, classes)}"
                )
        omitted = [name for name in classes if name not in columns]
        if len(omitted) > 1:
            raise ConfigError(
                f"{_KEY}: {len(omitted)} classes have no column ({', '.join(omitted[:5])}): expected a column for each "
                "class, or for all but one, whose probability is the remainder"
            )
        values = tuple(read_numeric_column(index, name) for name in columns.values())
        probabilities = cls(index, len(classes), tuple(classes.index(name) for name in columns), values)
        probabilities._check(tuple(columns.values()), complete=not omitted)
        return probabilities

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the class probabilities of index rows.

        Returns:
            (b, C) float32; each row sums to 1.
        """
        result = np.zeros((len(rows), self.classes))
        for number, values in zip(self.named, self.columns, strict=True):
            result[:, number] = values[rows]
        if len(self.named) < self.classes:
            rest = next(number for number in range(self.classes) if number not in self.named)
            result[:, rest] = np.maximum(1 - result.sum(axis=1), 0)
        normalized: NDArray[np.float32] = (result / result.sum(axis=1, keepdims=True)).astype(np.float32)
        return normalized

    def weights(self, rows: NDArray[np.int64] | None) -> NDArray[np.float64]:
        """Return sample weights proportional to the probability of each sample's label.

        Args:
            rows: the rows that are trained on, repetitions included, over which the mean is 1; None: all.

        Returns:
            (n,) float64, for all rows of the index.

        Raises:
            DataError: the label of every training sample has probability 0.
        """
        labels = self.index.labels
        weights = np.empty(len(labels))
        for start in range(0, len(labels), 1 << 16):
            block = np.arange(start, min(start + (1 << 16), len(labels)))
            weights[block] = self.take(block)[np.arange(len(block)), labels[block]]
        mean = float((weights if rows is None else weights[rows]).mean())
        if not mean > 0:
            raise DataError(
                f"{self.index.dataset.folder}: {_KEY} gives the label of every training sample probability 0"
            )
        return weights / mean

    def _check(self, names: tuple[str, ...], *, complete: bool) -> None:
        total = np.zeros(len(self.index))
        for name, values in zip(names, self.columns, strict=True):
            # a NaN fails both comparisons
            self._refuse(~((values >= 0) & (values <= 1)), values, f"column {name!r}", "a probability from 0 to 1")
            total += values
        off = np.abs(total - 1) > _ROUNDING if complete else total > 1 + _ROUNDING
        expected = "1" if complete else "at most 1"
        self._refuse(off, total, f"the sum of columns {', '.join(names)}", expected)

    def _refuse(self, bad: NDArray[np.bool_], values: NDArray[Any], what: str, expected: str) -> None:
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise DataError(
                f"{self.index.dataset.folder}: {_KEY}: {what} of split {self.index.split} is {values[row]:g} for sample "
                f"{self.index.keys([row])[0]!r} ({int(bad.sum())} such samples), expected {expected}"
            )
