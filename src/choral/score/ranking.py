"""Average precision: how well scores put the samples that have a label before those that do not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from choral.errors import DataError
from choral.score.intervals import DRAWS, resampled_counts

_DRAWS_AT_ONCE = 32


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
    ranked = [[_Found.of(labels[:, label], own[:, label]) for label in known] for own in scores]
    parts = []
    for many in resampled_counts(len(labels), seed=seed, draws=draws):
        for start in range(0, len(many), _DRAWS_AT_ONCE):
            times = np.ascontiguousarray(many[start : start + _DRAWS_AT_ONCE].T, dtype=np.int32)
            found = np.stack([[ranking.precisions(times) for ranking in own] for own in ranked])
            found[..., np.isnan(found[0]).all(axis=0)] = 0  # no label in the whole draw: as rare as it is hopeless
            parts.append(np.nanmean(found, axis=1).T)
    return np.concatenate(parts)


@dataclass(frozen=True)
class _Found:
    """Where one predictor finds the samples that have a label, going down from its highest score.

    Attributes:
        order: (N,) the samples, highest score first.
        hits: (positives,) those that have the label, in this order.
        of_run: (runs,) the last of the hits of each run of equal scores that has some.
        end: (runs,) the position in `order` at which the run ends.
    """

    order: NDArray[np.int64]
    hits: NDArray[np.int64]
    of_run: NDArray[np.int64]
    end: NDArray[np.int64]

    @classmethod
    def of(cls, labels: NDArray[np.bool_], scores: NDArray[Any]) -> _Found:
        order, hit, last = _ranking(labels, scores)
        run = np.searchsorted(last, np.flatnonzero(hit))  # of each hit
        of_run = np.append(np.flatnonzero(np.diff(run)), len(run) - 1)
        return cls(order, order[hit], of_run, last[run[of_run]])

    def precisions(self, times: NDArray[np.int32]) -> NDArray[np.float64]:
        """Return the average precision of each draw, NaN where none of its samples has the label.

        Args:
            times: (N, draws) how often each sample was drawn; few draws, so that sums stay in the processor's cache.
        """
        seen = np.cumsum(times[self.order], axis=0, dtype=np.int32)[self.end]
        hits = np.cumsum(times[self.hits], axis=0, dtype=np.int32)[self.of_run]
        with np.errstate(invalid="ignore"):
            found = (np.diff(hits, axis=0, prepend=0) * (hits / np.maximum(seen, 1))).sum(axis=0)
            precisions: NDArray[np.float64] = found / hits[-1]
        return precisions


def _ranking(labels: NDArray[np.bool_], scores: NDArray[Any]) -> tuple[NDArray[np.int64], Any, NDArray[np.int64]]:
    """Return the samples from the highest score down, their labels, and where runs of equal scores end."""
    order = np.argsort(-scores, kind="stable")
    return order, labels[order], np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
