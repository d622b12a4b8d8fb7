"""Confidence intervals by the percentile bootstrap over samples.

Efron 1979, "Bootstrap methods: another look at the jackknife", https://doi.org/10.1214/aos/1176344552.

A draw is N samples taken with replacement from the N samples of the split. A score is evaluated on every draw; the interval
spans the central 95 % of the results. Two predictors are compared on the same draws: samples that are hard for both cancel
out, so the interval of the difference is narrower than those of the scores.

`scipy.stats.bootstrap` is not used: here all metrics of all predictors share one set of draws, held as counts, so that a
thousand columns of means cost one matrix product.
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
    """A value and the bounds of its confidence interval."""

    value: float
    low: float
    high: float


def bootstrap(values: NDArray[np.float64], *, seed: int = 0, draws: int = DRAWS, level: float = LEVEL) -> Interval:
    """Return the mean of `values` and its interval.

    Args:
        values: (N,) one number a sample, N >= 1.
        seed: the same seed, draws and N give the same draws of samples.
        draws: number of draws.
        level: coverage of the interval, in (0, 1).
    """
    return mean_interval(values, bootstrap_means(values[:, None], seed=seed, draws=draws)[:, 0], level=level)


def paired_bootstrap(
    a: NDArray[np.float64], b: NDArray[np.float64], *, seed: int = 0, draws: int = DRAWS, level: float = LEVEL
) -> Interval:
    """Return the mean of `a - b` and its interval.

    Args:
        a, b: (N,) of two predictors on the same samples in the same order.
        seed, draws, level: as for `bootstrap`.
    """
    return bootstrap(a - b, seed=seed, draws=draws, level=level)


def bootstrap_means(values: NDArray[np.float64], *, seed: int = 0, draws: int = DRAWS) -> NDArray[np.float64]:
    """Return the means of every column over the same draws of samples.

    Args:
        values: (N, K), N >= 1: K numbers a sample. All K share the draws, so the difference of two columns of the result is
            the bootstrap of their paired difference, and one pass serves all rows of a table.
        seed: of the draws.
        draws: number of draws of N samples each, with replacement.

    Returns:
        (draws, K) float64.
    """
    parts = [counts.astype(np.float64) @ values for counts in bootstrap_counts(len(values), seed=seed, draws=draws)]
    means: NDArray[np.float64] = np.concatenate(parts) / len(values)
    return means


def bootstrap_counts(count: int, *, seed: int = 0, draws: int = DRAWS) -> Iterator[NDArray[np.int64]]:
    """Yield (some draws, count) int64 blocks: how often each draw holds each of `count` samples.

    The same count and seed give the same draws throughout this package; fewer draws are the first ones of more.
    """
    assert count > 0, "an interval needs at least one sample"
    random = np.random.default_rng(seed)
    step = max(1, _CHUNK // count)
    for start in range(0, draws, step):
        size = min(step, draws - start)
        picks = random.integers(0, count, size=(size, count), dtype=np.int64)
        picks += np.arange(size)[:, None] * count
        yield np.bincount(picks.ravel(), minlength=size * count).reshape(size, count)


def mean_interval(values: NDArray[np.float64], means: NDArray[np.float64], *, level: float = LEVEL) -> Interval:
    """Return the mean of (N,) `values` and the percentile interval of its (draws,) bootstrap `means`.

    The mean is summed exactly and the bounds are rounded to twelve decimals: no digit depends on the order of summation.
    """
    return percentile_interval(math.fsum(values) / len(values), means, level=level)


def percentile_interval(value: float, draws: NDArray[np.float64], *, level: float = LEVEL) -> Interval:
    """Return a value with the percentile interval of its values on the draws, (draws,), rounded to twelve decimals."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, round(float(low), 12), round(float(high), 12))
