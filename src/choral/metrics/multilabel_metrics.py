"""Metrics of labels of which any number applies, of the samples or of any draw of them; as scikit-learn defines them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from choral.metrics.debiased_calibration import Gaps
from choral.metrics.estimate import nan_mean
from choral.metrics.per_sample import f1_of_counts, label_log_losses
from choral.metrics.ranking import Ranking, rankings_of, resampled_rankings

HALF = 0.5  # above which a label is given, where nothing else was decided


@dataclass(frozen=True)
class LabelMetrics:
    """What is measured.

    Attributes:
        labels: (N, L) bool.
        predictions: (N, L) float32 probabilities.
        decided: (N, L) bool, the labels that were given; None: those above one half.
    """

    labels: NDArray[np.bool_]
    predictions: NDArray[np.float32]
    decided: NDArray[np.bool_] | None = None

    @cached_property
    def given(self) -> NDArray[np.bool_]:
        """(N, L) the labels that were given."""
        return self.predictions > HALF if self.decided is None else self.decided

    @cached_property
    def gaps(self) -> Gaps:
        """Of the probability of a label from the share of samples that have it, all labels together."""
        return Gaps.of(np.clip(self.predictions, 0, 1), self.labels)

    def sums(self, times: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """Return, for (some, N) times that samples are there, (some,) metrics that need no ranking.

        f1 (micro: all labels together), f1_macro (labels that nothing has or was given are left out), exact_match, log_loss
        and brier (means over labels).
        """
        weights = times.astype(np.float64)
        total = weights.sum(axis=1)
        hits, given, labels = self._counts(weights)
        found = {"f1": f1_of_counts(hits.sum(1), (given - hits).sum(1), (labels - hits).sum(1))}
        found["f1_macro"] = nan_mean(self.by_label(times)["f1"])
        with np.errstate(invalid="ignore"):
            means = weights @ self._columns / total[:, None]
            found |= dict(zip(("exact_match", "log_loss", "brier"), means.T, strict=True))
        return found

    def by_label(self, times: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """Return (some, L) precision, recall and f1 of each label; NaN where there is nothing to divide by."""
        hits, given, labels = self._counts(times.astype(np.float64))
        with np.errstate(invalid="ignore"):
            return {"precision": hits / given, "recall": hits / labels, "f1": 2 * hits / (given + labels)}

    def rankings(self, times: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """Return (some, L) average_precision and roc_auc of each label, and (some,) their means: mean_ap and roc_auc."""
        precisions, areas = resampled_rankings(self._rankings, times)
        return {
            "mean_ap": nan_mean(precisions),
            "roc_auc": nan_mean(areas),
            "average_precision/class": precisions,
            "roc_auc/class": areas,
        }

    @cached_property
    def _rankings(self) -> list[Ranking | None]:
        return rankings_of(self.labels, self.predictions)

    def _counts(self, weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
        """Return three times (some, L): hits, given and true labels."""
        return tuple(weights @ matrix for matrix in self._matrices)

    @cached_property
    def _matrices(self) -> tuple[NDArray[np.float64], ...]:
        return tuple(matrix.astype(np.float64) for matrix in (self.labels & self.given, self.given, self.labels))

    @cached_property
    def _columns(self) -> NDArray[np.float64]:
        squares = ((self.predictions.astype(np.float64) - self.labels) ** 2).mean(axis=1)
        exact = (self.given == self.labels).all(axis=1).astype(np.float64)
        return np.stack([exact, label_log_losses(self.labels, self.predictions), squares], axis=1)
