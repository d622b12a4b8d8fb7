"""How probable the classes of each training sample are, where its label is not certain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from choral.core.errors import ConfigError, DataError, did_you_mean
from choral.data.loading.targets import numbers_of
from choral.data.shards.index import Index

_KEY = "train.label_probabilities"
_ROUNDING = 1e-3  # annotations are often written with two or three digits


@dataclass(frozen=True)
class LabelProbabilities:
    """The probabilities of the classes of one split, read from columns of its index; made by `open`.

    Attributes:
        index: of the split.
        classes: how many there are.
        named: (k,) ids of the classes that have a column.
        columns: (n,) probabilities of each of these.
    """

    index: Index
    classes: int
    named: tuple[int, ...]
    columns: tuple[NDArray[Any], ...]

    @classmethod
    def open(cls, columns: Mapping[str, str], index: Index) -> LabelProbabilities:
        """Return the probabilities that `train.label_probabilities` names, checked over the whole split.

        Args:
            columns: the column of each class. One class may be left out: it has what the others leave.
            index: of a split packed with classes.

        Raises:
            ConfigError: there is no such class, or several are left out.
            DataError: a column is not there, has gaps, or holds something else than probabilities; or those of a sample
                do not sum to one. Column, split and sample are named.
        """
        classes = index.dataset.classes
        for name in columns:
            if name not in classes:
                known = ", ".join(classes[:20])
                raise ConfigError(
                    f"{_KEY}.{name}: there is no such class; there are: {known}.{did_you_mean(name, classes)}"
                )
        left_out = [name for name in classes if name not in columns]
        if len(left_out) > 1:
            raise ConfigError(
                f"{_KEY}: {len(left_out)} classes have no column ({', '.join(left_out[:5])}): expected one of each class, or "
                "of all but one, which has what the others leave"
            )
        values = tuple(numbers_of(index, name) for name in columns.values())
        found = cls(index, len(classes), tuple(classes.index(name) for name in columns), values)
        found._check(tuple(columns.values()), complete=not left_out)
        return found

    def of(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the probabilities of rows of the index.

        Returns:
            (b, C) float32, each row of sum 1.
        """
        result = np.zeros((len(rows), self.classes))
        for number, values in zip(self.named, self.columns, strict=True):
            result[:, number] = values[rows]
        if len(self.named) < self.classes:
            rest = next(number for number in range(self.classes) if number not in self.named)
            result[:, rest] = np.maximum(1 - result.sum(axis=1), 0)
        shares: NDArray[np.float32] = (result / result.sum(axis=1, keepdims=True)).astype(np.float32)
        return shares

    def weights(self, rows: NDArray[np.int64] | None) -> NDArray[np.float64]:
        """Return what each sample weighs if it counts as much as its label is probable.

        Args:
            rows: that are trained on, each as often as it is seen, over which the mean is 1; None: all.

        Returns:
            (n,) float64, of all rows of the index.

        Raises:
            DataError: of all that are trained on, no label is probable at all.
        """
        labels = self.index.labels
        weights = np.empty(len(labels))
        for start in range(0, len(labels), 1 << 16):
            block = np.arange(start, min(start + (1 << 16), len(labels)))
            weights[block] = self.of(block)[np.arange(len(block)), labels[block]]
        mean = float((weights if rows is None else weights[rows]).mean())
        if not mean > 0:
            raise DataError(
                f"{self.index.dataset.folder}: by {_KEY}, no training sample's label has a probability above 0"
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
