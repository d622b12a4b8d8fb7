"""Selective prediction: accuracy against coverage, when the least confident predictions are left to a person.

El-Yaniv and Wiener 2010, "On the foundations of noise-free selective classification"; area under the risk-coverage curve
(AURC) as in Geifman and El-Yaniv 2017, https://arxiv.org/abs/1705.08500.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from choral.metrics.intervals import DRAWS, bootstrap_counts
from choral.metrics.reliability import wilson_interval


@dataclass(frozen=True)
class AccuracyCoverageCurve:
    """Accuracy of the most confident predictions, by coverage.

    Attributes:
        coverage: (k,) shares of samples that are predicted, rising to 1.
        accuracy: (k,) on those samples.
        low, high: (k,) pointwise 95 % interval: the bootstrap's, or Wilson's where that is wider (as where nothing is wrong).
        area: AURC, the mean error rate over all coverages; 0 at best.
    """

    coverage: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    area: float


def compute_accuracy_coverage(
    confidence: NDArray[np.floating],
    is_correct: NDArray[np.bool_],
    coverages: Sequence[float],
    *,
    seed: int = 0,
    draws: int = DRAWS,
) -> AccuracyCoverageCurve:
    """Return the accuracy of the most confident predictions at each coverage, with its interval.

    Samples of equal confidence come in random order: each counts with the mean over all of them.

    Args:
        confidence: (N,) higher is more confident.
        is_correct: (N,).
        coverages: in (0, 1], rising; ceil(coverage N) samples are predicted.
        seed, draws: of the bootstrap, as for `choral.metrics.intervals.bootstrap_means`.
    """
    ranked = _RankedSamples.from_predictions(confidence, is_correct)
    shares = np.asarray(coverages, dtype=np.float64)
    drawn = np.concatenate(
        [
            _accuracies(*ranked.count_runs(counts), shares)
            for counts in bootstrap_counts(len(is_correct), seed=seed, draws=draws)
        ]
    )
    all_samples = np.ones((1, len(is_correct)), dtype=np.int64)
    accuracy = _accuracies(*ranked.count_runs(all_samples), shares)[0]
    covered = np.ceil(shares * len(is_correct) - 1e-9).astype(np.int64)
    wilson = np.array([wilson_interval(*pair) for pair in zip(accuracy.tolist(), covered.tolist(), strict=True)])
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    low, high = np.minimum(low, wilson[:, 0]), np.maximum(high, wilson[:, 1])
    return AccuracyCoverageCurve(shares, accuracy, low, high, compute_aurc(confidence, is_correct))


def compute_aurc(confidence: NDArray[np.floating], is_correct: NDArray[np.bool_]) -> float:
    """Return the area under the risk-coverage curve: the mean over k of the error rate of the k most confident samples."""
    all_samples = np.ones((1, len(is_correct)), dtype=np.int64)
    return float(_areas(*_RankedSamples.from_predictions(confidence, is_correct).count_runs(all_samples))[0])


def bootstrap_aurc(
    confidences: Sequence[NDArray[np.floating]],
    is_correct: Sequence[NDArray[np.bool_]],
    *,
    seed: int = 0,
    draws: int = DRAWS,
) -> NDArray[np.float64]:
    """Return the (draws, predictors) AURC of several predictors, on the same draws of samples."""
    ranked = [_RankedSamples.from_predictions(*pair) for pair in zip(confidences, is_correct, strict=True)]
    blocks = bootstrap_counts(len(is_correct[0]), seed=seed, draws=draws)
    return np.concatenate([np.stack([_areas(*one.count_runs(counts)) for one in ranked], axis=1) for counts in blocks])


@dataclass(frozen=True)
class _RankedSamples:
    """Samples by falling confidence, in runs of equal confidence.

    Attributes:
        order: (N,) the samples.
        is_correct: (N,) 0 or 1, in this order.
        run_starts: (runs,) where each run begins.
    """

    order: NDArray[np.int64]
    is_correct: NDArray[np.int64]
    run_starts: NDArray[np.int64]

    @classmethod
    def from_predictions(cls, confidence: NDArray[np.floating], is_correct: NDArray[np.bool_]) -> _RankedSamples:
        order = np.argsort(-confidence, kind="stable")
        run_starts = np.flatnonzero(np.diff(confidence[order], prepend=np.inf))
        return cls(order, is_correct[order].astype(np.int64), run_starts)

    def count_runs(self, counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the number of samples in each run and their error rate, (draws, runs) both.

        Args:
            counts: (draws, N) how often each draw holds each sample.
        """
        ordered = counts[:, self.order]
        sizes = np.add.reduceat(ordered, self.run_starts, axis=1)
        hits = np.add.reduceat(ordered * self.is_correct, self.run_starts, axis=1)
        return sizes, 1 - hits / np.maximum(sizes, 1)


def _accuracies(
    sizes: NDArray[np.int64], error_rates: NDArray[np.float64], coverages: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return (draws, coverages) accuracies."""
    covered, errors = np.cumsum(sizes, axis=1), np.cumsum(sizes * error_rates, axis=1)
    targets = np.ceil(coverages * covered[0, -1] - 1e-9)
    accuracies = np.empty((len(sizes), len(targets)))
    for row in range(len(sizes)):
        run = np.searchsorted(covered[row], targets)
        surplus = (covered[row, run] - targets) * error_rates[row, run]  # of the run that crosses the target
        accuracies[row] = 1 - (errors[row, run] - surplus) / targets
    return accuracies


def _areas(sizes: NDArray[np.int64], error_rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the (draws,) areas, exactly, without a step for each k.

    Within a run that follows b samples with e errors, the error rate of the k most confident is (e + (k - b) rate) / k; its
    sum over the run is a difference of harmonic numbers.
    """
    covered = np.cumsum(sizes, axis=1)
    before = covered - sizes
    errors = np.cumsum(sizes * error_rates, axis=1) - sizes * error_rates
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, covered[0, -1] + 1))])
    sums = (errors - before * error_rates) * (harmonic[covered] - harmonic[before]) + error_rates * sizes
    areas: NDArray[np.float64] = sums.sum(axis=1) / covered[:, -1]
    return areas
