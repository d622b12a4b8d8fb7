"""Multilabel metrics of a split, or of any number of bootstrap draws of it at once; definitions are scikit-learn's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from choral.metrics.debiased_calibration import CalibrationGaps
from choral.metrics.estimate import nan_mean
from choral.metrics.per_sample import f1_from_counts, multilabel_log_losses
from choral.metrics.ranking import Ranking, build_rankings, compute_ranking_metrics

DEFAULT_THRESHOLD = 0.5  # a label is predicted where its probability is above


@dataclass(frozen=True)
class MultilabelMetrics:
    """Labels and predictions of a multilabel split, and the metrics computed from them.

    Attributes:
        labels: (N, L) bool.
        predictions: (N, L) float32 probabilities.
        decisions: (N, L) bool, the predicted labels; None: those with a probability above one half.
    """

    labels: NDArray[np.bool_]
    predictions: NDArray[np.float32]
    decisions: NDArray[np.bool_] | None = None

    @cached_property
    def predicted(self) -> NDArray[np.bool_]:
        """(N, L) predicted labels."""
        return self.predictions > DEFAULT_THRESHOLD if self.decisions is None else self.decisions

    @cached_property
    def calibration_gaps(self) -> CalibrationGaps:
        """Gaps between a label's probability and its frequency, all labels pooled."""
        return CalibrationGaps.from_predictions(np.clip(self.predictions, 0, 1), self.labels)

    def compute_overall(self, counts: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """Return the metrics that need no ranking, (draws,) each.

        f1 (micro), f1_macro (without labels that neither occur nor are predicted), exact_match, log_loss and brier (means
        over labels).

        Args:
            counts: (draws, N) how often each draw holds each sample.
        """
        weights = counts.astype(np.float64)
        total = weights.sum(axis=1)
        hits, predicted, actual = self._count(weights)
        metrics = {"f1": f1_from_counts(hits.sum(1), (predicted - hits).sum(1), (actual - hits).sum(1))}
        metrics["f1_macro"] = nan_mean(self.compute_by_label(counts)["f1"])
        with np.errstate(invalid="ignore"):
            means = weights @ self._columns / total[:, None]
            metrics |= dict(zip(("exact_match", "log_loss", "brier"), means.T, strict=True))
        return metrics

    def compute_by_label(self, counts: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """Return (draws, L) precision, recall and f1 of each label; NaN where the denominator is 0."""
        hits, predicted, actual = self._count(counts.astype(np.float64))
        with np.errstate(invalid="ignore"):
            return {"precision": hits / predicted, "recall": hits / actual, "f1": 2 * hits / (predicted + actual)}

    def compute_rankings(self, counts: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """Return (draws,) mean_ap and roc_auc, means over labels, and (draws, L) of each label as "METRIC/class"."""
        precisions, areas = compute_ranking_metrics(self._rankings, counts)
        return {
            "mean_ap": nan_mean(precisions),
            "roc_auc": nan_mean(areas),
            "average_precision/class": precisions,
            "roc_auc/class": areas,
        }

    @cached_property
    def _rankings(self) -> list[Ranking | None]:
        return build_rankings(self.labels, self.predictions)

    def _count(self, weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
        """Return three (draws, L) arrays: true positives, predicted and actual samples of each label."""
        return tuple(weights @ matrix for matrix in self._matrices)

    @cached_property
    def _matrices(self) -> tuple[NDArray[np.float64], ...]:
        return tuple(
            matrix.astype(np.float64) for matrix in (self.labels & self.predicted, self.predicted, self.labels)
        )

    @cached_property
    def _columns(self) -> NDArray[np.float64]:
        squares = ((self.predictions.astype(np.float64) - self.labels) ** 2).mean(axis=1)
        exact = (self.predicted == self.labels).all(axis=1).astype(np.float64)
        return np.stack([exact, multilabel_log_losses(self.labels, self.predictions), squares], axis=1)
