"""Multiclass metrics of a split, or of any number of bootstrap draws of it at once, from a few weighted sums.

Definitions are scikit-learn's. Macro averages leave out classes without samples (F1: classes that neither occur nor are
predicted), since a draw may lack classes that the split has.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from choral.metrics.debiased_calibration import CalibrationGaps
from choral.metrics.estimate import nan_mean
from choral.metrics.per_sample import correct, log_losses, top_class
from choral.metrics.ranking import Ranking, build_rankings, compute_ranking_metrics

_MANY_CLASSES = 10  # from here on top-5 is reported, below top-2


@dataclass(frozen=True)
class ClassMetrics:
    """Labels and predictions of a multiclass split, and the metrics computed from them.

    Attributes:
        labels: (N,) int64.
        predictions: (N, C) float32.
        has_probabilities: whether `predictions` are probabilities. If not (hard vote), only metrics of the predicted class
            are computed.
        decisions: (N,) int64, the predicted classes where they are not the argmax (thresholds, costs); None: the argmax.
    """

    labels: NDArray[np.int64]
    predictions: NDArray[np.float32]
    has_probabilities: bool = True
    decisions: NDArray[np.int64] | None = None

    @property
    def classes(self) -> int:
        """C."""
        return int(self.predictions.shape[1])

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """(N,) predicted classes."""
        return top_class(self.predictions) if self.decisions is None else self.decisions

    @property
    def top_k(self) -> int:
        """The k of top-k accuracy: 5, with fewer than ten classes 2; 0 (not reported) with two classes."""
        return 5 if self.classes >= _MANY_CLASSES else 2 if self.classes > 2 else 0

    @cached_property
    def calibration_gaps(self) -> CalibrationGaps:
        """Gaps between the probability of the predicted class and the accuracy."""
        confidence = self.predictions[np.arange(len(self.labels)), self.predicted]
        return CalibrationGaps.from_predictions(np.clip(confidence, 0, 1), self.labels == self.predicted)

    def compute_overall(self, counts: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """Return the metrics that need no ranking, (draws,) each.

        accuracy, top_2 or top_5 (ties count as wrong), balanced_accuracy, f1_macro, f1_micro (equal to the accuracy); of
        probabilities also log_loss (nats) and brier (squared error summed over classes, 0 to 2; halved for two classes, as
        is usual).

        Args:
            counts: (draws, N) how often each draw holds each sample.
        """
        weights = counts.astype(np.float64)
        total = weights.sum(axis=1)
        names, columns = self._columns
        with np.errstate(invalid="ignore"):
            metrics = dict(zip(names, (weights @ columns / total[:, None]).T, strict=True))
        by_class = self.compute_by_class(counts)
        metrics["balanced_accuracy"] = nan_mean(by_class["recall"])
        metrics["f1_macro"] = nan_mean(by_class["f1"])
        metrics["f1_micro"] = metrics["accuracy"]
        return metrics

    def compute_by_class(self, counts: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """Return (draws, C) precision, recall and f1 of each class; NaN where the denominator is 0."""
        weights = np.ascontiguousarray(counts.T, dtype=np.float64)
        actual, predicted, hits = (matrix @ weights for matrix in self._class_matrices)
        with np.errstate(invalid="ignore"):
            return {
                "precision": (hits / predicted).T,
                "recall": (hits / actual).T,
                "f1": (2 * hits / (predicted + actual)).T,
            }

    def compute_rankings(self, counts: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """Return one-vs-rest average_precision and roc_auc: (draws,) macro averages, and (draws, C) as "METRIC/class"."""
        precisions, areas = compute_ranking_metrics(self._rankings, counts)
        return {
            "roc_auc": nan_mean(areas),
            "average_precision": nan_mean(precisions),
            "roc_auc/class": areas,
            "average_precision/class": precisions,
        }

    @cached_property
    def confusion(self) -> NDArray[np.int64]:
        """(C, C) confusion matrix: rows are true classes, columns predicted ones."""
        pairs = self.labels * self.classes + self.predicted
        return np.bincount(pairs, minlength=self.classes**2).reshape(self.classes, self.classes)

    @cached_property
    def _rankings(self) -> list[Ranking | None]:
        return build_rankings(self.labels[:, None] == np.arange(self.classes), self.predictions)

    @cached_property
    def _columns(self) -> tuple[list[str], NDArray[np.float64]]:
        """Names and (N, metrics) values of the metrics that are means over samples."""
        columns = {"accuracy": correct(self.labels, self.predicted)}
        if self.has_probabilities:
            of_label = self.predictions[np.arange(len(self.labels)), self.labels]
            if self.top_k:
                rank = (self.predictions >= of_label[:, None]).sum(axis=1)  # from 1: the label itself counts
                columns[f"top_{self.top_k}"] = (rank <= self.top_k).astype(np.float64)
            columns["log_loss"] = log_losses(self.labels, self.predictions)
            squares = np.einsum("nc,nc->n", self.predictions, self.predictions, dtype=np.float64)
            brier = squares - 2 * of_label.astype(np.float64) + 1
            columns["brier"] = brier / 2 if self.classes == 2 else brier
        return list(columns), np.stack(list(columns.values()), axis=1)

    @cached_property
    def _class_matrices(self) -> tuple[Any, Any, Any]:
        """Three sparse (C, N) indicator matrices: samples of each class, samples predicted as it, and its true positives."""
        is_correct = self.labels == self.predicted
        everything = np.ones(len(self.labels))
        return (
            _class_indicator(self.labels, everything, self.classes),
            _class_indicator(self.predicted, everything, self.classes),
            _class_indicator(self.labels, is_correct, self.classes),
        )


def _class_indicator(classes: NDArray[np.int64], weights: NDArray[Any], count: int) -> Any:
    """Return the sparse (count, N) float64 matrix that holds each sample's weight in the row of its class."""
    from scipy.sparse import csr_array

    samples = np.arange(len(classes))
    return csr_array((weights.astype(np.float64), (classes, samples)), shape=(count, len(classes)))
