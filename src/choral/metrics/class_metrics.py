"""Metrics of classes, of the samples or of any draw of them, all from a few sums.

As scikit-learn defines them. Means over classes (macro) leave out classes that have no sample, or that are neither there nor
predicted (F1); a draw may lack classes that the split has.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from choral.metrics.debiased_calibration import Gaps
from choral.metrics.estimate import nan_mean
from choral.metrics.per_sample import correct, log_losses, top_class
from choral.metrics.ranking import Ranking, rankings_of, resampled_rankings

_MANY = 10  # classes: with so many the top 5 are asked for, with fewer the top 2


@dataclass(frozen=True)
class ClassMetrics:
    """What is measured.

    Attributes:
        labels: (N,) int64.
        predictions: (N, C) float32.
        probabilities: whether predictions are that; without, there are only metrics of what was decided.
        decided: (N,) int64, the classes that were decided for; None: the most probable.
    """

    labels: NDArray[np.int64]
    predictions: NDArray[np.float32]
    probabilities: bool = True
    decided: NDArray[np.int64] | None = None

    @property
    def classes(self) -> int:
        """C."""
        return int(self.predictions.shape[1])

    @cached_property
    def given(self) -> NDArray[np.int64]:
        """(N,) the classes that were decided for."""
        return top_class(self.predictions) if self.decided is None else self.decided

    @property
    def top(self) -> int:
        """The k of top-k: 5, of fewer than ten classes 2; 0 of two."""
        return 5 if self.classes >= _MANY else 2 if self.classes > 2 else 0

    @cached_property
    def gaps(self) -> Gaps:
        """Of the probability of the class that was decided for from the share that is right."""
        said = self.predictions[np.arange(len(self.labels)), self.given]
        return Gaps.of(np.clip(said, 0, 1), self.labels == self.given)

    def sums(self, times: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """Return, for (some, N) times that samples are there, (some,) metrics that need no ranking.

        accuracy, top_2 or top_5 (equal probabilities count against), balanced_accuracy, f1_macro, f1_micro (which is the
        accuracy); of probabilities log_loss (nats) and brier (sum over classes of the squared error, 0 to 2; of two
        classes half of it, as it is usual).
        """
        weights = times.astype(np.float64)
        total = weights.sum(axis=1)
        names, columns = self._columns
        with np.errstate(invalid="ignore"):
            found = dict(zip(names, (weights @ columns / total[:, None]).T, strict=True))
        classes = self.by_class(times)
        found["balanced_accuracy"] = nan_mean(classes["recall"])
        found["f1_macro"] = nan_mean(classes["f1"])
        found["f1_micro"] = found["accuracy"]
        return found

    def by_class(self, times: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """Return (some, C) precision, recall and f1 of each class; NaN where there is nothing to divide by."""
        weights = np.ascontiguousarray(times.T, dtype=np.float64)
        labels, given, hits = (matrix @ weights for matrix in self._members)
        with np.errstate(invalid="ignore"):
            return {"precision": (hits / given).T, "recall": (hits / labels).T, "f1": (2 * hits / (given + labels)).T}

    def rankings(self, times: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """Return (some, C) average_precision and roc_auc, of each class against the others, and (some,) their means."""
        precisions, areas = resampled_rankings(self._rankings, times)
        return {
            "roc_auc": nan_mean(areas),
            "average_precision": nan_mean(precisions),
            "roc_auc/class": areas,
            "average_precision/class": precisions,
        }

    @cached_property
    def confusion(self) -> NDArray[np.int64]:
        """(C, C) samples of each class (row) that were taken for each (column)."""
        pairs = self.labels * self.classes + self.given
        return np.bincount(pairs, minlength=self.classes**2).reshape(self.classes, self.classes)

    @cached_property
    def _rankings(self) -> list[Ranking | None]:
        return rankings_of(self.labels[:, None] == np.arange(self.classes), self.predictions)

    @cached_property
    def _columns(self) -> tuple[list[str], NDArray[np.float64]]:
        columns = {"accuracy": correct(self.labels, self.given)}
        if self.probabilities:
            own = self.predictions[np.arange(len(self.labels)), self.labels]
            if self.top:
                ahead = (self.predictions >= own[:, None]).sum(axis=1)  # itself included
                columns[f"top_{self.top}"] = (ahead <= self.top).astype(np.float64)
            columns["log_loss"] = log_losses(self.labels, self.predictions)
            squares = np.einsum("nc,nc->n", self.predictions, self.predictions, dtype=np.float64)
            brier = squares - 2 * own.astype(np.float64) + 1
            columns["brier"] = brier / 2 if self.classes == 2 else brier
        return list(columns), np.stack(list(columns.values()), axis=1)

    @cached_property
    def _members(self) -> tuple[Any, Any, Any]:
        """Three (C, N) sparse matrices: of each class its samples, those taken for it, and those rightly so."""
        hit = self.labels == self.given
        return tuple(
            _one_hot(classes, weights, self.classes)
            for classes, weights in ((self.labels, hit | True), (self.given, hit | True), (self.labels, hit))
        )


def _one_hot(of_sample: NDArray[np.int64], weights: NDArray[Any], count: int) -> Any:
    """Return the sparse (count, N) float64 matrix that has each sample's weight in its row."""
    from scipy.sparse import csr_array

    samples = np.arange(len(of_sample))
    return csr_array((weights.astype(np.float64), (of_sample, samples)), shape=(count, len(of_sample)))
