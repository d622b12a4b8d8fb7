"""Selective prediction: what accuracy is left if the least sure predictions are handed to a person.

El-Yaniv and Wiener 2010, "On the foundations of noise-free selective classification"; the area under the curve of risk over
coverage as in Geifman and El-Yaniv 2017, https://arxiv.org/abs/1705.08500.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from choral.metrics.intervals import DRAWS, resampled_counts
from choral.metrics.reliability import wilson


@dataclass(frozen=True)
class Curve:
    """Accuracy over coverage.

    Attributes:
        coverage: (k,) shares of samples that are answered, rising to 1.
        accuracy: (k,) of those that are answered.
        low, high: (k,) ends of the pointwise 95 % interval: by bootstrap, or Wilson's where that is wider, as it is where
            nothing is wrong.
        area: mean share of errors over all coverages (AURC), 0 at best.
    """

    coverage: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    area: float


def selective_curve(
    confidence: NDArray[np.floating],
    hit: NDArray[np.bool_],
    coverages: Sequence[float],
    *,
    seed: int = 0,
    draws: int = DRAWS,
) -> Curve:
    """Return the accuracy of the surest predictions at each coverage, with a band.

    Samples of equal confidence are answered in random order: each counts with the mean of them all.

    Args:
        confidence: (N,) higher is surer.
        hit: (N,) whether the prediction is right.
        coverages: in (0, 1], rising; of N samples ceil(coverage N) are answered.
        seed, draws: of the bootstrap, as for `choral.metrics.intervals.resampled_means`.
    """
    ranked = _Ranked.of(confidence, hit)
    wanted = np.asarray(coverages, dtype=np.float64)
    drawn = np.concatenate(
        [_accuracies(*ranked.drawn(times), wanted) for times in resampled_counts(len(hit), seed=seed, draws=draws)]
    )
    once = np.ones((1, len(hit)), dtype=np.int64)
    accuracy = _accuracies(*ranked.drawn(once), wanted)[0]
    answered = np.ceil(wanted * len(hit) - 1e-9).astype(np.int64)
    ends = np.array([wilson(share, count) for share, count in zip(accuracy.tolist(), answered.tolist(), strict=True)])
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    low, high = np.minimum(low, ends[:, 0]), np.maximum(high, ends[:, 1])
    return Curve(wanted, accuracy, low, high, area_of(confidence, hit))


def area_of(confidence: NDArray[np.floating], hit: NDArray[np.bool_]) -> float:
    """Return the area under the curve of risk over coverage: the mean over k of the share of errors in the k surest."""
    once = np.ones((1, len(hit)), dtype=np.int64)
    return float(_areas(*_Ranked.of(confidence, hit).drawn(once))[0])


def resampled_areas(
    confidences: Sequence[NDArray[np.floating]],
    hits: Sequence[NDArray[np.bool_]],
    *,
    seed: int = 0,
    draws: int = DRAWS,
) -> NDArray[np.float64]:
    """Return the areas of several predictors over the same draws of samples, (draws, predictors)."""
    ranked = [_Ranked.of(confidence, hit) for confidence, hit in zip(confidences, hits, strict=True)]
    draws_of_samples = resampled_counts(len(hits[0]), seed=seed, draws=draws)
    return np.concatenate(
        [np.stack([_areas(*one.drawn(times)) for one in ranked], axis=1) for times in draws_of_samples]
    )


@dataclass(frozen=True)
class _Ranked:
    """Samples from the surest down, in runs of equal confidence.

    Attributes:
        order: (N,) the samples.
        hit: (N,) whether each is right, in this order.
        starts: (runs,) where each run begins.
    """

    order: NDArray[np.int64]
    hit: NDArray[np.int64]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, confidence: NDArray[np.floating], hit: NDArray[np.bool_]) -> _Ranked:
        order = np.argsort(-confidence, kind="stable")
        starts = np.flatnonzero(np.diff(confidence[order], prepend=np.inf))
        return cls(order, hit[order].astype(np.int64), starts)

    def drawn(self, times: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return how many samples of each run a draw has, and the share of them that is wrong, (draws, runs) both.

        Args:
            times: (draws, N) how often each sample was drawn.
        """
        ordered = times[:, self.order]
        counts = np.add.reduceat(ordered, self.starts, axis=1)
        hits = np.add.reduceat(ordered * self.hit, self.starts, axis=1)
        return counts, 1 - hits / np.maximum(counts, 1)


def _accuracies(
    counts: NDArray[np.int64], wrong: NDArray[np.float64], coverages: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return (draws, coverages) accuracies."""
    answered, errors = np.cumsum(counts, axis=1), np.cumsum(counts * wrong, axis=1)
    wanted = np.ceil(coverages * answered[0, -1] - 1e-9)
    found = np.empty((len(counts), len(wanted)))
    for row in range(len(counts)):
        place = np.searchsorted(answered[row], wanted)
        beyond = (answered[row, place] - wanted) * wrong[row, place]  # of the run that crosses the mark
        found[row] = 1 - (errors[row, place] - beyond) / wanted
    return found


def _areas(counts: NDArray[np.int64], wrong: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the (draws,) areas, exactly, without a step for each k.

    In a run behind b samples with e errors, the share of errors in the k surest is (e + (k - b) wrong) / k: its sum over
    the run is a difference of harmonic numbers.
    """
    answered = np.cumsum(counts, axis=1)
    before = answered - counts
    errors = np.cumsum(counts * wrong, axis=1) - counts * wrong
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, answered[0, -1] + 1))])
    sums = (errors - before * wrong) * (harmonic[answered] - harmonic[before]) + wrong * counts
    areas: NDArray[np.float64] = sums.sum(axis=1) / answered[:, -1]
    return areas
