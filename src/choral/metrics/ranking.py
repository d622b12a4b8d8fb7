"""Average precision and area under the ROC curve: how well scores rank samples with a label above those without.

scikit-learn sorts the samples at every call. Here each label is sorted once, and every bootstrap draw is a few sums over the
sorted samples; tests compare both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from choral.core.errors import DataError
from choral.metrics.intervals import DRAWS, bootstrap_counts

_DRAWS_PER_BLOCK = 32
_MAX_WORK = 20_000_000_000  # ranked numbers, summed over draws: about half a minute
_MIN_DRAWS = 200


def average_precision(labels: NDArray[np.bool_], scores: NDArray[Any]) -> float:
    """Return the area under the precision-recall curve as a step function, as scikit-learn defines it.

    Args:
        labels: (N,) whether the label applies; at least once.
        scores: (N,) higher where it is more likely; samples of equal score share a threshold.
    """
    _, is_positive, run_ends = _sort_by_score(labels, scores)
    hits = np.cumsum(is_positive)[run_ends]
    precision = hits / (run_ends + 1)
    recall = hits / hits[-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def mean_average_precision(labels: NDArray[np.bool_], scores: NDArray[Any]) -> float:
    """Return the mean average precision over labels (macro), without labels that no sample has.

    Args:
        labels, scores: (N, L).

    Raises:
        DataError: no sample has any label.
    """
    present = np.flatnonzero(labels.any(axis=0))
    if not len(present):
        raise DataError("no sample of the split has any label: mean average precision is undefined")
    return float(np.mean([average_precision(labels[:, label], scores[:, label]) for label in present]))


def bootstrap_mean_average_precisions(
    labels: NDArray[np.bool_], scores: list[NDArray[Any]], *, seed: int = 0, draws: int = DRAWS
) -> NDArray[np.float64]:
    """Return the mean average precisions of several predictors on the same draws of samples.

    Args:
        labels: (N, L); at least one applies somewhere.
        scores: (N, L) of each predictor.
        seed, draws: as for `choral.metrics.intervals.bootstrap_means`.

    Returns:
        (draws, predictors) float64; each draw leaves out labels that none of its samples has.
    """
    present = np.flatnonzero(labels.any(axis=0))
    rankings = [
        [Ranking.from_scores(labels[:, label], of_predictor[:, label]) for label in present] for of_predictor in scores
    ]
    parts = []
    for counts in bootstrap_counts(len(labels), seed=seed, draws=draws):
        for block in _transposed_blocks(counts):
            precisions = np.stack([[ranking.compute_precisions(block) for ranking in ranked] for ranked in rankings])
            precisions[..., np.isnan(precisions[0]).all(axis=0)] = 0  # a draw without any label, which is very rare
            parts.append(np.nanmean(precisions, axis=1).T)
    return np.concatenate(parts)


@dataclass(frozen=True)
class Ranking:
    """The positions of the positive samples of one label in the order of falling scores.

    Samples of equal score form a run; runs with a positive sample are numbered. The order is cut into segments: before, in
    and between those runs. The sums of a draw over the segments determine its metrics, without sorting or gathering again.

    Attributes:
        segment: (N,) int32 of each sample: 0 before the first run, 1 in it, 2 between it and the second, and so on.
        positives: (P,) samples that have the label.
        run: (P,) run of each.
    """

    segment: NDArray[np.int32]
    positives: NDArray[np.int64]
    run: NDArray[np.int64]

    @classmethod
    def from_scores(cls, labels: NDArray[np.bool_], scores: NDArray[Any]) -> Ranking:
        """Rank (N,) samples, of which at least one has the label."""
        order, is_positive, run_ends = _sort_by_score(labels, scores)
        run_of_positive = np.searchsorted(run_ends, np.flatnonzero(is_positive))
        positive_runs, run = np.unique(run_of_positive, return_inverse=True)
        lengths = np.diff(run_ends, prepend=-1)
        segment_of_run = 2 * np.searchsorted(positive_runs, np.arange(len(run_ends)))
        segment_of_run[positive_runs] += 1
        segment = np.empty(len(order), dtype=np.int32)
        segment[order] = np.repeat(segment_of_run, lengths)
        return cls(segment, order[is_positive], run)

    def compute_precisions(self, counts: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the average precision of each draw, NaN for draws without a positive sample.

        Args:
            counts: (N, draws) how often each draw holds each sample; few draws, so that sums stay in the processor's cache.
        """
        return self.compute_precisions_and_areas(counts)[0]

    def compute_precisions_and_areas(
        self, counts: NDArray[np.floating]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the average precision and the area under the ROC curve of each draw.

        The area is the share of pairs of a positive and a negative sample in which the positive one scores higher, ties
        counting half; NaN if there is no such pair.

        Args:
            counts: as for `compute_precisions`.
        """
        runs = int(self.run.max()) + 1
        cumulative = np.cumsum(_sum_groups(self.segment, 2 * runs + 1, counts), axis=0)
        in_run = _sum_groups(self.run, runs, counts[self.positives])
        before, through, hits = cumulative[: 2 * runs : 2], cumulative[1 : 2 * runs : 2], np.cumsum(in_run, axis=0)
        positive, negative = hits[-1], cumulative[-1] - hits[-1]
        negatives_below = negative - (through - hits) + (through - before - in_run) / 2
        with np.errstate(invalid="ignore", divide="ignore"):
            precisions: NDArray[np.float64] = (in_run * (hits / np.maximum(through, 1))).sum(axis=0) / positive
            return precisions, (in_run * negatives_below).sum(axis=0) / (positive * negative)


def _sum_groups(group: NDArray[Any], groups: int, counts: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return (groups, draws) sums of (n, draws) counts over the samples of each group."""
    from scipy.sparse import csc_array

    ones, columns = np.ones(len(group), dtype=counts.dtype), np.arange(len(group) + 1)
    indicator = csc_array((ones, group, columns), shape=(groups, len(group)))
    sums: NDArray[np.float64] = (indicator @ counts).astype(np.float64)
    return sums


def _transposed_blocks(counts: NDArray[np.int64]) -> Iterator[NDArray[np.floating]]:
    """Yield (draws, N) counts as (N, some draws) blocks, of a type in which sums over N are exact."""
    exact = np.float32 if counts.shape[1] < 1 << 24 else np.float64
    for start in range(0, len(counts), _DRAWS_PER_BLOCK):
        yield np.ascontiguousarray(counts[start : start + _DRAWS_PER_BLOCK].T, dtype=exact)


def build_rankings(labels: NDArray[np.bool_], scores: NDArray[Any]) -> list[Ranking | None]:
    """Return the ranking of each label by its scores, both (N, L); None for labels that no sample has."""
    columns = zip(labels.T, scores.T, strict=True)
    return [Ranking.from_scores(truth, column) if truth.any() else None for truth, column in columns]


def compute_ranking_metrics(
    rankings: Sequence[Ranking | None], counts: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return average precisions and areas under the ROC curve of several labels on draws of samples.

    Args:
        rankings: of L labels.
        counts: (draws, N) how often each draw holds each sample.

    Returns:
        Two (draws, L) float64 arrays; NaN where a draw has no sample with the label; areas also where all have it.
    """
    metrics = np.full((2, len(counts), len(rankings)), np.nan)
    for number, block in enumerate(_transposed_blocks(counts)):
        rows = slice(number * _DRAWS_PER_BLOCK, number * _DRAWS_PER_BLOCK + block.shape[1])
        for label, ranking in enumerate(rankings):
            if ranking is not None:
                metrics[:, rows, label] = ranking.compute_precisions_and_areas(block)
    return metrics[0], metrics[1]


def affordable_draws(numbers: int) -> int:
    """Return the draws for `numbers` ranked numbers: 2,000, or as many as take half a minute, at least 200."""
    return int(np.clip(_MAX_WORK // max(numbers, 1), _MIN_DRAWS, DRAWS))


def _sort_by_score(labels: NDArray[np.bool_], scores: NDArray[Any]) -> tuple[NDArray[np.int64], Any, NDArray[np.int64]]:
    """Return the samples by falling score, their labels, and the last position of each run of equal scores."""
    order = np.argsort(-scores, kind="stable")
    return order, labels[order], np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
