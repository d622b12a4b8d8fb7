"""Average precision and area under the ROC curve: how well scores put the samples that have a label before the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from choral.core.errors import DataError
from choral.metrics.intervals import DRAWS, resampled_counts

_DRAWS_AT_ONCE = 32
_WORK = 20_000_000_000  # numbers looked at for the intervals of rankings: half a minute or so
_FEWEST_DRAWS = 200


def average_precision(labels: NDArray[np.bool_], scores: NDArray[Any]) -> float:
    """Return the area under the precision-recall curve as a step function, as scikit-learn defines it.

    Args:
        labels: (N,) whether the label applies; at least once.
        scores: (N,) higher where it is more likely; samples of equal score are found at the same threshold.
    """
    _, hit, last = _ranking(labels, scores)
    hits = np.cumsum(hit)[last]
    precision = hits / (last + 1)
    recall = hits / hits[-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def mean_average_precision(labels: NDArray[np.bool_], scores: NDArray[Any]) -> float:
    """Return the mean over labels (macro) of the average precision; labels that no sample has are left out.

    Args:
        labels, scores: (N, L).

    Raises:
        DataError: no sample has any label, so that nothing can be measured.
    """
    known = np.flatnonzero(labels.any(axis=0))
    if not len(known):
        raise DataError("no sample of the split has any label: mean average precision needs some")
    return float(np.mean([average_precision(labels[:, label], scores[:, label]) for label in known]))


def resampled_mean_average_precisions(
    labels: NDArray[np.bool_], scores: list[NDArray[Any]], *, seed: int = 0, draws: int = DRAWS
) -> NDArray[np.float64]:
    """Return the mean average precisions of several predictors over the same draws of samples.

    Args:
        labels: (N, L); at least one applies somewhere.
        scores: (N, L) of each predictor.
        seed, draws: as for `choral.metrics.intervals.resampled_means`.

    Returns:
        (draws, predictors) float64; in each draw, labels that none of its samples has are left out.
    """
    known = np.flatnonzero(labels.any(axis=0))
    ranked = [[Ranking.of(labels[:, label], own[:, label]) for label in known] for own in scores]
    parts = []
    for many in resampled_counts(len(labels), seed=seed, draws=draws):
        for times in _few(many):
            found = np.stack([[ranking.precisions(times) for ranking in own] for own in ranked])
            found[..., np.isnan(found[0]).all(axis=0)] = 0  # no label in the whole draw: as rare as it is hopeless
            parts.append(np.nanmean(found, axis=1).T)
    return np.concatenate(parts)


@dataclass(frozen=True)
class Ranking:
    """Where one predictor finds the samples that have a label, going down from its highest score.

    Runs are of equal scores, and those that have a sample with the label are numbered. What lies before, in and between
    them are parts: a sum over each tells all that a draw of samples comes to, without sorting or even gathering again.

    Attributes:
        part: (N,) int32 of each sample: 0 before the first run, 1 in it, 2 between it and the second, and so on.
        hits: (positives,) the samples that have the label.
        run: (positives,) of each.
    """

    part: NDArray[np.int32]
    hits: NDArray[np.int64]
    run: NDArray[np.int64]

    @classmethod
    def of(cls, labels: NDArray[np.bool_], scores: NDArray[Any]) -> Ranking:
        """Rank (N,) samples, of which at least one has the label."""
        order, hit, last = _ranking(labels, scores)
        of_hit = np.searchsorted(last, np.flatnonzero(hit))  # the run of each hit, of all runs
        found, run = np.unique(of_hit, return_inverse=True)
        lengths = np.diff(last, prepend=-1)
        place = 2 * np.searchsorted(found, np.arange(len(last)))  # of all runs: those found come before it
        place[found] += 1
        part = np.empty(len(order), dtype=np.int32)
        part[order] = np.repeat(place, lengths)
        return cls(part, order[hit], run)

    def precisions(self, times: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the average precision of each draw, NaN where none of its samples has the label.

        Args:
            times: (N, draws) how often each sample was drawn; of few draws, so that sums stay in the processor's cache.
        """
        return self.precisions_and_areas(times)[0]

    def precisions_and_areas(self, times: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the average precision and the area under the ROC curve of each draw.

        The area is the share of pairs of a sample with and one without the label in which the first has the higher score,
        equal ones counting half; NaN where there is no such pair.

        Args:
            times: as for `precisions`.
        """
        runs = int(self.run.max()) + 1
        seen = np.cumsum(_sums(self.part, 2 * runs + 1, times), axis=0)
        own = _sums(self.run, runs, times[self.hits])
        before, through, hits = seen[: 2 * runs : 2], seen[1 : 2 * runs : 2], np.cumsum(own, axis=0)
        with_label, without = hits[-1], seen[-1] - hits[-1]
        below = without - (through - hits) + (through - before - own) / 2
        with np.errstate(invalid="ignore", divide="ignore"):
            precisions: NDArray[np.float64] = (own * (hits / np.maximum(through, 1))).sum(axis=0) / with_label
            return precisions, (own * below).sum(axis=0) / (with_label * without)


def _sums(part: NDArray[Any], parts: int, times: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return (parts, draws): how many samples of each part were drawn, from (n, draws) how often each one was."""
    from scipy.sparse import csc_array

    ones, columns = np.ones(len(part), dtype=times.dtype), np.arange(len(part) + 1)
    sums: NDArray[np.float64] = (csc_array((ones, part, columns), shape=(parts, len(part))) @ times).astype(np.float64)
    return sums


def _few(times: NDArray[np.int64]) -> Iterator[NDArray[np.floating]]:
    """Yield some (draws, N) counts at a time as (N, some) numbers, of a type in which sums over N are exact."""
    exact = np.float32 if times.shape[1] < 1 << 24 else np.float64
    for start in range(0, len(times), _DRAWS_AT_ONCE):
        yield np.ascontiguousarray(times[start : start + _DRAWS_AT_ONCE].T, dtype=exact)


def rankings_of(labels: NDArray[np.bool_], scores: NDArray[Any]) -> list[Ranking | None]:
    """Return the ranking of each of (N, L) labels by its (N, L) scores; None of labels that no sample has."""
    columns = zip(labels.T, scores.T, strict=True)
    return [Ranking.of(truth, own) if truth.any() else None for truth, own in columns]


def resampled_rankings(
    rankings: Sequence[Ranking | None], times: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return average precisions and areas under the ROC curve of several labels on draws of samples.

    Args:
        rankings: of L labels.
        times: (draws, N) how often each sample was drawn.

    Returns:
        Twice (draws, L) float64; NaN where no sample of the draw has the label, of areas also where all have it.
    """
    found = np.full((2, len(times), len(rankings)), np.nan)
    for number, few in enumerate(_few(times)):
        some = slice(number * _DRAWS_AT_ONCE, number * _DRAWS_AT_ONCE + few.shape[1])
        for label, ranking in enumerate(rankings):
            if ranking is not None:
                found[:, some, label] = ranking.precisions_and_areas(few)
    return found[0], found[1]


def affordable_draws(numbers: int) -> int:
    """Return how many draws so many ranked numbers are worth: 2,000, or as many as take half a minute, at least 200."""
    return int(np.clip(_WORK // max(numbers, 1), _FEWEST_DRAWS, DRAWS))


def _ranking(labels: NDArray[np.bool_], scores: NDArray[Any]) -> tuple[NDArray[np.int64], Any, NDArray[np.int64]]:
    """Return the samples from the highest score down, their labels, and where runs of equal scores end."""
    order = np.argsort(-scores, kind="stable")
    return order, labels[order], np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
