"""Expected calibration error: how far confidence is from the share that is right, over bins of equally many samples.

Naeini et al. 2015, "Obtaining well calibrated probabilities using Bayesian binning", https://doi.org/10.1609/aaai.v29i1.9602;
bins of equal mass as in Nguyen and O'Connor 2015, https://arxiv.org/abs/1508.05154, for in steps of equal width most samples
of a good network lie in the last one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from choral.score.intervals import DRAWS, resampled_counts

BINS = 15


def expected_calibration_error(confidence: NDArray[np.floating], hit: NDArray[np.bool_], bins: int = BINS) -> float:
    """Return the mean over bins of |mean confidence - share that is right|, 0 to 1.

    It is biased upwards: also of perfectly calibrated predictions it is above 0, the more so the fewer samples a bin has.
    Samples of equal confidence that lie across the end of a bin count on both sides in proportion.

    Args:
        confidence: (N,) in [0, 1], of what was said.
        hit: (N,) whether it was right.
        bins: of equally many samples; at most N.
    """
    order = np.argsort(confidence, kind="stable")
    once = np.ones((1, len(order)), dtype=np.int64)
    return float(_errors(once, confidence[order], hit[order], bins)[0])


def resampled_calibration_errors(
    confidences: Sequence[NDArray[np.floating]],
    hits: Sequence[NDArray[np.bool_]],
    bins: int = BINS,
    *,
    seed: int = 0,
    draws: int = DRAWS,
) -> NDArray[np.float64]:
    """Return the errors of several predictors over the same draws of samples, (draws, predictors) float64.

    Each draw has bins of its own.
    """
    orders = [np.argsort(confidence, kind="stable") for confidence in confidences]
    parts = [
        np.stack(
            [
                _errors(times[:, order], confidence[order], hit[order], bins)
                for order, confidence, hit in zip(orders, confidences, hits, strict=True)
            ],
            axis=1,
        )
        for times in resampled_counts(len(hits[0]), seed=seed, draws=draws)
    ]
    return np.concatenate(parts)


def _errors(
    times: NDArray[np.int64], confidence: NDArray[np.floating], hit: NDArray[np.bool_], bins: int
) -> NDArray[np.float64]:
    """Return the error of each draw, from (draws, N) how often each sample was drawn, by rising confidence."""
    runs = np.flatnonzero(np.diff(confidence, prepend=-np.inf))
    gaps = np.add.reduceat(times * (confidence.astype(np.float64) - hit), runs, axis=1)
    counts = np.add.reduceat(times, runs, axis=1)
    total = int(counts[0].sum())
    ends = np.linspace(0, total, min(bins, total) + 1)
    # The sum of gaps over the first k samples, for any k: linear within a run.
    sums = np.pad(np.cumsum(gaps, axis=1), ((0, 0), (1, 0)))
    places = np.pad(np.cumsum(counts, axis=1), ((0, 0), (1, 0)))
    at_ends = np.stack([np.interp(ends, own, sums[row]) for row, own in enumerate(places)])
    errors: NDArray[np.float64] = np.abs(np.diff(at_ends, axis=1)).sum(axis=1) / total
    return errors
