"""Metrics of numbers, of the samples or of any draw of them; as scikit-learn and SciPy define them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from choral.metrics.per_sample import r2_of_sums


def deviations(labels: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the (T,) standard deviation of each target over (N, T) numbers, by which errors are divided.

    It is 1 of a target that is the same of all, whose errors would be infinitely many standard deviations.
    """
    spread: NDArray[np.float64] = labels.astype(np.float64).std(axis=0)
    return np.where(labels.max(axis=0) > labels.min(axis=0), spread, 1.0)


@dataclass(frozen=True)
class NumberMetrics:
    """What is measured: (N, T) numbers of T targets, true and predicted."""

    labels: NDArray[np.floating]
    predictions: NDArray[np.float32]

    def by_target(self, times: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """Return, for (some, N) times that samples are there, (some, T) rmse, mae, r2 and spearman of each target.

        NaN where nothing is there, and of Spearman's correlation of ranks where all are equal. R2 of true numbers that
        are all equal is 1 without an error, else 0.
        """
        weights = times.astype(np.float64)
        total = weights.sum(axis=1, keepdims=True)
        errors = self.predictions.astype(np.float64) - self.labels
        centred = self.labels - self.labels.mean(axis=0, dtype=np.float64)
        with np.errstate(invalid="ignore"):
            absolute, squared, first, second = (
                weights @ columns / total for columns in (np.abs(errors), errors**2, centred, centred**2)
            )
            # Of equal numbers the difference of these is rounding, not variance.
            variance = np.where(second - first**2 > 1e-12 * second, second - first**2, 0.0)
            spearman = [_correlations(*ranks, weights) for ranks in self._ranks]
            r2 = np.where(total > 0, r2_of_sums(squared, variance), np.nan)
            return {"rmse": np.sqrt(squared), "mae": absolute, "r2": r2, "spearman": np.stack(spearman, axis=1)}

    @cached_property
    def _ranks(self) -> list[tuple[Ranks, Ranks]]:
        return [
            (Ranks.of(self.labels[:, target]), Ranks.of(self.predictions[:, target]))
            for target in range(self.labels.shape[1])
        ]


@dataclass(frozen=True)
class Ranks:
    """The ranks of (N,) numbers in draws of them; equal ones share the mean of theirs.

    Attributes:
        order: (N,) from the smallest.
        runs: where runs of equal numbers begin, in this order.
        run: (N,) of each number.
    """

    order: NDArray[np.int64]
    runs: NDArray[np.int64]
    run: NDArray[np.int64]

    @classmethod
    def of(cls, numbers: NDArray[np.floating]) -> Ranks:
        """Rank them."""
        order = np.argsort(numbers, kind="stable")
        _, run, sizes = np.unique(numbers, return_inverse=True, return_counts=True)
        return cls(order, np.cumsum(sizes) - sizes, run)

    def __call__(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (some, N) ranks, less one half, in draws in which the numbers are there (some, N) times."""
        own = np.add.reduceat(weights[:, self.order], self.runs, axis=1)
        ranks: NDArray[np.float64] = (np.cumsum(own, axis=1) - own / 2)[:, self.run]
        return ranks


def _correlations(one: Ranks, other: Ranks, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the (some,) correlations of ranks; NaN where one's are all equal."""
    a, b = one(weights), other(weights)
    total = weights.sum(axis=1, keepdims=True)
    a -= (weights * a).sum(axis=1, keepdims=True) / total
    b -= (weights * b).sum(axis=1, keepdims=True) / total
    both, of_a, of_b = ((weights * product).sum(axis=1) for product in (a * b, a * a, b * b))
    spread = np.sqrt(of_a) * np.sqrt(of_b)
    return np.where(spread > 1e-9 * total[:, 0], both / np.where(spread > 0, spread, 1), np.nan)
