"""Confidence intervals by the percentile bootstrap over samples.

Efron 1979, "Bootstrap methods: another look at the jackknife", https://doi.org/10.1214/aos/1176344552.

A score is the mean of one number a sample, or is made from such means, or from the samples as a whole. Samples are drawn
with replacement, as many as there are, and the score of each such draw is noted: the interval spans the middle 95 % of
them. Two predictors are compared on the same draws: what is hard for both cancels out, and the interval of the difference
is narrower than those of the scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 2000
LEVEL = 0.95
_CHUNK = 1 << 21  # counts held at a time: some 40 MB


@dataclass(frozen=True)
class Interval:
    """A value and the ends of its confidence interval."""

    value: float
    low: float
    high: float


def bootstrap(values: NDArray[np.float64], *, seed: int = 0, draws: int = DRAWS, level: float = LEVEL) -> Interval:
    """Return the mean of `values` and its interval.

    Args:
        values: (N,) one number a sample, N >= 1.
        seed: the same seed, draws and N mean the same draws of samples.
        draws: of N samples each.
        level: that the interval covers, in (0, 1).
    """
    return interval_of(values, resampled_means(values[:, None], seed=seed, draws=draws)[:, 0], level=level)


def paired_bootstrap(
    a: NDArray[np.float64], b: NDArray[np.float64], *, seed: int = 0, draws: int = DRAWS, level: float = LEVEL
) -> Interval:
    """Return the mean of `a - b` and its interval.

    Args:
        a, b: (N,) of two predictors on the same samples in the same order.
        seed, draws, level: as for `bootstrap`.
    """
    return bootstrap(a - b, seed=seed, draws=draws, level=level)


def resampled_means(values: NDArray[np.float64], *, seed: int = 0, draws: int = DRAWS) -> NDArray[np.float64]:
    """Return the means of every column over the same `draws` draws of samples.

    Args:
        values: (N, K), N >= 1: K numbers a sample. All K share the draws, so that the difference of two columns of the
            result is the bootstrap of their paired difference, and one pass serves all rows of a table.
        seed: of the draws.
        draws: of N samples each, with replacement.

    Returns:
        (draws, K) float64.
    """
    parts = [times.astype(np.float64) @ values for times in resampled_counts(len(values), seed=seed, draws=draws)]
    means: NDArray[np.float64] = np.concatenate(parts) / len(values)
    return means


def resampled_counts(count: int, *, seed: int = 0, draws: int = DRAWS) -> Iterator[NDArray[np.int64]]:
    """Yield, some draws at a time, (some, count) int64: how often each of `count` samples was drawn.

    The same count and seed give the same draws as everywhere in this module; fewer draws are the first of them.
    """
    assert count > 0, "an interval needs at least one sample"
    random = np.random.default_rng(seed)
    step = max(1, _CHUNK // count)
    for start in range(0, draws, step):
        size = min(step, draws - start)
        picks = random.integers(0, count, size=(size, count), dtype=np.int64)
        picks += np.arange(size)[:, None] * count
        yield np.bincount(picks.ravel(), minlength=size * count).reshape(size, count)


def interval_of(values: NDArray[np.float64], means: NDArray[np.float64], *, level: float = LEVEL) -> Interval:
    """Return the mean of (N,) `values` and the percentile interval of its (draws,) resampled `means`.

    The mean is summed exactly, and the ends are rounded to twelve decimals: no digit depends on the order in which a
    machine adds.
    """
    return interval_around(math.fsum(values) / len(values), means, level=level)


def interval_around(value: float, draws: NDArray[np.float64], *, level: float = LEVEL) -> Interval:
    """Return a score and the percentile interval of what it was on (draws,) draws, rounded to twelve decimals."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, round(float(low), 12), round(float(high), 12))
