"""Average precision: how well scores put the samples that have a label before those that do not."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from choral.errors import DataError
from choral.score.intervals import DRAWS, resampled_counts


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
    ranked = [[_ranking(labels[:, label], own[:, label]) for label in known] for own in scores]
    parts = []
    for times in resampled_counts(len(labels), seed=seed, draws=draws):
        found = np.full((len(times), len(scores), len(known)), np.nan)
        for number, own in enumerate(ranked):
            for place, ranking in enumerate(own):
                found[:, number, place] = _precisions_of_draws(times, *ranking)
        empty = np.isnan(found[:, 0]).all(axis=1)
        found[empty] = 0  # no label in the whole draw: as improbable as it is hopeless
        parts.append(np.nanmean(found, axis=2))
    return np.concatenate(parts)


def _ranking(labels: NDArray[np.bool_], scores: NDArray[Any]) -> tuple[NDArray[np.int64], Any, NDArray[np.int64]]:
    """Return the samples from the highest score down, their labels, and where runs of equal scores end."""
    order = np.argsort(-scores, kind="stable")
    return order, labels[order], np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)


def _precisions_of_draws(
    times: NDArray[np.int64], order: NDArray[np.int64], labels: NDArray[np.bool_], last: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the average precision of each draw, NaN where none of its samples has the label."""
    drawn = times[:, order]
    seen = np.cumsum(drawn, axis=1)[:, last]
    hits = np.cumsum(drawn * labels, axis=1)[:, last]
    precision = hits / np.maximum(seen, 1)
    with np.errstate(invalid="ignore"):
        found: NDArray[np.float64] = (np.diff(hits, axis=1, prepend=0) * precision).sum(axis=1) / hits[:, -1]
    return found
