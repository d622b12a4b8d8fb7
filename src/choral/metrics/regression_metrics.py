"""Regression metrics of a split, or of any number of bootstrap draws of it; definitions are scikit-learn's and SciPy's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from choral.metrics.per_sample import r2_from_sums


def compute_target_scales(labels: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the (T,) standard deviations of (N, T) targets, the unit of standardised errors; 1 for a constant target."""
    deviation: NDArray[np.float64] = labels.astype(np.float64).std(axis=0)
    return np.where(labels.max(axis=0) > labels.min(axis=0), deviation, 1.0)


@dataclass(frozen=True)
class RegressionMetrics:
    """(N, T) true and predicted numbers of T targets, and the metrics computed from them."""

    labels: NDArray[np.floating]
    predictions: NDArray[np.float32]

    def compute_by_target(self, counts: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """Return (draws, T) rmse, mae, r2 and spearman of each target.

        NaN for an empty draw, and for Spearman's rank correlation where all numbers are equal. R2 of a constant target is 1
        without error, else 0.

        Args:
            counts: (draws, N) how often each draw holds each sample.
        """
        weights = counts.astype(np.float64)
        total = weights.sum(axis=1, keepdims=True)
        errors = self.predictions.astype(np.float64) - self.labels
        centred = self.labels - self.labels.mean(axis=0, dtype=np.float64)
        with np.errstate(invalid="ignore"):
            absolute, squared, first, second = (
                weights @ columns / total for columns in (np.abs(errors), errors**2, centred, centred**2)
            )
            # For equal numbers the difference of the two moments is rounding error, not variance.
            variance = np.where(second - first**2 > 1e-12 * second, second - first**2, 0.0)
            spearman = [_rank_correlations(*ranks, weights) for ranks in self._ranks]
            r2 = np.where(total > 0, r2_from_sums(squared, variance), np.nan)
            return {"rmse": np.sqrt(squared), "mae": absolute, "r2": r2, "spearman": np.stack(spearman, axis=1)}

    @cached_property
    def _ranks(self) -> list[tuple[Ranks, Ranks]]:
        return [
            (Ranks.from_values(self.labels[:, target]), Ranks.from_values(self.predictions[:, target]))
            for target in range(self.labels.shape[1])
        ]


@dataclass(frozen=True)
class Ranks:
    """The ranks of (N,) numbers within bootstrap draws; ties share their mean rank.

    Attributes:
        order: (N,) ascending order.
        run_starts: positions in that order at which runs of equal numbers begin.
        run: (N,) run of each number.
    """

    order: NDArray[np.int64]
    run_starts: NDArray[np.int64]
    run: NDArray[np.int64]

    @classmethod
    def from_values(cls, values: NDArray[np.floating]) -> Ranks:
        """Sort the numbers once."""
        order = np.argsort(values, kind="stable")
        _, run, sizes = np.unique(values, return_inverse=True, return_counts=True)
        return cls(order, np.cumsum(sizes) - sizes, run)

    def __call__(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (draws, N) ranks minus one half, for draws given as (draws, N) counts."""
        run_weights = np.add.reduceat(weights[:, self.order], self.run_starts, axis=1)
        ranks: NDArray[np.float64] = (np.cumsum(run_weights, axis=1) - run_weights / 2)[:, self.run]
        return ranks


def _rank_correlations(one: Ranks, other: Ranks, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (draws,) Spearman correlations; NaN where either side is constant."""
    a, b = one(weights), other(weights)
    total = weights.sum(axis=1, keepdims=True)
    a -= (weights * a).sum(axis=1, keepdims=True) / total
    b -= (weights * b).sum(axis=1, keepdims=True) / total
    covariance, variance_a, variance_b = ((weights * product).sum(axis=1) for product in (a * b, a * a, b * b))
    scale = np.sqrt(variance_a) * np.sqrt(variance_b)
    return np.where(scale > 1e-9 * total[:, 0], covariance / np.where(scale > 0, scale, 1), np.nan)
