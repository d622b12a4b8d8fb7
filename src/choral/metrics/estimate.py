"""Scores that are not means of one number a sample: the same function of the samples, and of every draw of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from choral.metrics.intervals import DRAWS, Interval, interval_around, resampled_counts

DEVIATIONS = 1.959963984540054
"""Of a normal distribution, from its middle to the ends of 95 %."""
_EDGE = 1e-6
Measure = Callable[[NDArray[np.int64]], dict[str, NDArray[np.float64]]]
"""From (some, N) how often each sample is there, to metrics by name, (some,) or (some, K); NaN where one is not defined."""


@dataclass(frozen=True)
class Estimate:
    """A score, and what it was on (draws,) draws of samples, the same for all predictors.

    Attributes:
        value: NaN where it is not defined, as the precision of a class that was never predicted.
        draws: NaN where it is not defined; those are left out of intervals.
        ends: of the interval, where the middle of the draws is no good one.
        paired: whether differences are taken draw by draw; else from the ends.
    """

    value: float
    draws: NDArray[np.float64]
    ends: tuple[float, float] | None = None
    paired: bool = True

    @property
    def interval(self) -> Interval:
        """The score with its interval; NaN where it is not defined."""
        if self.ends is not None:
            return Interval(self.value, *self.ends)
        return _around(self.value, self.draws)

    def minus(self, other: Estimate) -> Interval:
        """Return the paired difference; where one has fewer draws, by these.

        Of two that are not `paired` it is made from the ends, as of independent ones: Zou and Donner 2008, "Construction of
        confidence limits about effect measures", https://doi.org/10.1002/sim.3095. That is wider than it need be.
        """
        if self.ends is not None and other.ends is not None and not (self.paired and other.paired):
            value = self.value - other.value
            (low, high), (other_low, other_high) = self.ends, other.ends
            below = math.hypot(self.value - low, other_high - other.value)
            above = math.hypot(high - self.value, other.value - other_low)
            return Interval(value, round(value - below, 12), round(value + above, 12))
        draws = min(len(self.draws), len(other.draws))
        return _around(self.value - other.value, self.draws[:draws] - other.draws[:draws])


def bounded(value: float, draws: NDArray[np.float64]) -> Estimate:
    """Return an estimate of something between 0 and 1 whose draws are biased, as those of rankings and mean F1 are.

    Its interval is that of a normal distribution of the logit, with the spread of the draws around what is left of the value
    after their bias is taken off. Percentiles do worse: of 30 classes with 30 samples each they cover an average
    precision in 65 %, this in 91 %; of 15 positives among 300 samples a ROC-AUC of 0.98 in 76 %, this in 97 %.
    """
    known = _logits(draws[np.isfinite(draws)])
    if not math.isfinite(value) or not len(known) or np.ptp(known) == 0:
        return Estimate(value, draws)
    middle, half = 2 * float(_logits(np.array(value))) - known.mean(), DEVIATIONS * known.std()
    low, high = (round(1 / (1 + math.exp(-end)), 12) for end in (middle - half, middle + half))
    return Estimate(value, draws, (low, high))


def _logits(values: NDArray[np.float64]) -> NDArray[np.float64]:
    inside = np.clip(values, _EDGE, 1 - _EDGE)
    logits: NDArray[np.float64] = np.log(inside / (1 - inside))
    return logits


def p_of(difference: Interval) -> float:
    """Return the p value of no difference, from the end of the interval that is nearer to it, as of a normal distribution."""
    near = difference.low if difference.value > 0 else difference.high
    spread = abs(difference.value - near) / DEVIATIONS
    return math.erfc(abs(difference.value) / spread / math.sqrt(2)) if spread > 0 else float(difference.value == 0)


def resampled(
    measure: Measure, count: int, *, seed: int = 0, draws: int = DRAWS
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return what a measure comes to: name to the value, () or (K,), and to its draws, (draws,) or (draws, K).

    Args:
        measure: of `count` samples.
        count: N.
        seed, draws: as for `choral.metrics.intervals.resampled_means`; the draws are the same as there.
    """
    once = measure(np.ones((1, count), dtype=np.int64))
    parts = [measure(times) for times in resampled_counts(count, seed=seed, draws=draws)]
    return {name: (value[0], np.concatenate([part[name] for part in parts])) for name, value in once.items()}


def nan_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the (some,) means of the numbers among (some, K) values; NaN where there is none."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        mean: NDArray[np.float64] = np.where(known, values, 0).sum(axis=1) / known.sum(axis=1)
    return mean


def _around(value: float, draws: NDArray[np.float64]) -> Interval:
    defined = draws[np.isfinite(draws)]
    if not math.isfinite(value) or not len(defined):
        return Interval(value, math.nan, math.nan)
    return interval_around(value, defined)
