"""Average precision and area under the ROC curve: how well scores put the samples that have a label before the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from choral.errors import DataError
from choral.score.intervals import DRAWS, resampled_counts

_DRAWS_AT_ONCE = 32
_WORK = 2_000_000_000  # numbers looked at for the intervals of rankings: a minute or so
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
        seed, draws: as for `choral.score.intervals.resampled_means`.

    Returns:
        (draws, predictors) float64; in each draw, labels that none of its samples has are left out.
    """
    known = np.flatnonzero(labels.any(axis=0))
    ranked = [[Ranking.of(labels[:, label], own[:, label]) for label in known] for own in scores]
    parts = []
    for many in resampled_counts(len(labels), seed=seed, draws=draws):
        for start in range(0, len(many), _DRAWS_AT_ONCE):
            times = np.ascontiguousarray(many[start : start + _DRAWS_AT_ONCE].T, dtype=np.int32)
            found = np.stack([[ranking.precisions(times) for ranking in own] for own in ranked])
            found[..., np.isnan(found[0]).all(axis=0)] = 0  # no label in the whole draw: as rare as it is hopeless
            parts.append(np.nanmean(found, axis=1).T)
    return np.concatenate(parts)


@dataclass(frozen=True)
class Ranking:
    """Where one predictor finds the samples that have a label, going down from its highest score.

    Attributes:
        order: (N,) int32 the samples, highest score first: of many labels these are as much as their scores.
        hits: (positives,) those that have the label, in this order.
        of_run: (runs,) the last of the hits of each run of equal scores that has some.
        begin, end: (runs,) the positions in `order` at which the run begins and ends.
    """

    order: NDArray[np.int32]
    hits: NDArray[np.int32]
    of_run: NDArray[np.int64]
    begin: NDArray[np.int64]
    end: NDArray[np.int64]

    @classmethod
    def of(cls, labels: NDArray[np.bool_], scores: NDArray[Any]) -> Ranking:
        """Rank (N,) samples, of which at least one has the label."""
        order, hit, last = _ranking(labels, scores)
        run = np.searchsorted(last, np.flatnonzero(hit))  # of each hit
        of_run = np.append(np.flatnonzero(np.diff(run)), len(run) - 1)
        begin = np.append(0, last[:-1] + 1)
        return cls(order, order[hit], of_run, begin[run[of_run]], last[run[of_run]])

    def precisions(self, times: NDArray[np.int32]) -> NDArray[np.float64]:
        """Return the average precision of each draw, NaN where none of its samples has the label.

        Args:
            times: (N, draws) how often each sample was drawn; few draws, so that sums stay in the processor's cache.
        """
        seen = np.cumsum(times[self.order], axis=0, dtype=np.int32)[self.end]
        return _precisions(self._hits(times), seen)

    def precisions_and_areas(self, times: NDArray[np.int32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the average precision and the area under the ROC curve of each draw.

        The area is the share of pairs of a sample with and one without the label in which the first has the higher score,
        equal ones counting half; NaN where there is no such pair.

        Args:
            times: as for `precisions`.
        """
        seen = np.cumsum(times[self.order], axis=0, dtype=np.int32)
        before = np.where(self.begin[:, None] > 0, seen[self.begin - 1], 0)
        hits, through = self._hits(times), seen[self.end]
        with_label, without = hits[-1].astype(np.float64), (seen[-1] - hits[-1]).astype(np.float64)
        own = np.diff(hits, axis=0, prepend=0)
        tied = through - before - own
        below = without - (through - hits) + tied / 2
        with np.errstate(invalid="ignore", divide="ignore"):
            areas = (own * below).sum(axis=0) / (with_label * without)
        return _precisions(hits, through), areas

    def _hits(self, times: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return (runs, draws): samples with the label down to the end of each run."""
        hits: NDArray[np.int32] = np.cumsum(times[self.hits], axis=0, dtype=np.int32)[self.of_run]
        return hits


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
    many = np.ascontiguousarray(times.T, dtype=np.int32)
    for start in range(0, len(times), _DRAWS_AT_ONCE):
        some = slice(start, start + _DRAWS_AT_ONCE)
        block = np.ascontiguousarray(many[:, some])
        for number, ranking in enumerate(rankings):
            if ranking is not None:
                found[:, some, number] = ranking.precisions_and_areas(block)
    return found[0], found[1]


def affordable_draws(numbers: int) -> int:
    """Return how many draws rankings of so many numbers are worth: 2,000, or as many as take a minute or so, at least 200."""
    return int(np.clip(_WORK // max(numbers, 1), _FEWEST_DRAWS, DRAWS))


def _precisions(hits: NDArray[np.int32], seen: NDArray[np.int32]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):
        found = (np.diff(hits, axis=0, prepend=0) * (hits / np.maximum(seen, 1))).sum(axis=0)
        precisions: NDArray[np.float64] = found / hits[-1]
    return precisions


def _ranking(labels: NDArray[np.bool_], scores: NDArray[Any]) -> tuple[NDArray[np.int32], Any, NDArray[np.int64]]:
    """Return the samples from the highest score down, their labels, and where runs of equal scores end."""
    order = np.argsort(-scores, kind="stable").astype(np.int32)
    return order, labels[order], np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
