"""Estimates with bootstrap intervals, for metrics that are no means over samples.

A metric is any function of how often each sample occurs: it is evaluated once on the split and once on every draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from choral.metrics.intervals import DRAWS, Interval, bootstrap_counts, percentile_interval

Z_95 = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution: half the width of a 95 % interval."""
_EDGE = 1e-6
MetricFunction = Callable[[NDArray[np.int64]], dict[str, NDArray[np.float64]]]
"""From (draws, N) how often each sample occurs to metrics by name, (draws,) or (draws, K); NaN where one is undefined."""


@dataclass(frozen=True)
class Estimate:
    """The value of a metric, and its values on bootstrap draws of the samples, which all predictors share.

    Attributes:
        value: NaN where it is undefined, as the precision of a class that is never predicted.
        draws: (draws,) NaN where it is undefined; intervals leave those out.
        bounds: of the interval, where percentiles of the draws are a poor one; None: percentiles.
        paired: whether differences are taken draw by draw; if not, they are computed from the bounds.
    """

    value: float
    draws: NDArray[np.float64]
    bounds: tuple[float, float] | None = None
    paired: bool = True

    @property
    def interval(self) -> Interval:
        """The value with its interval; NaN where it is undefined."""
        if self.bounds is not None:
            return Interval(self.value, *self.bounds)
        return _finite_percentile_interval(self.value, self.draws)

    def minus(self, other: Estimate) -> Interval:
        """Return the paired difference; if one has fewer draws, on those.

        If either is not `paired`, the interval is computed from the bounds, as for independent estimates (Zou and Donner
        2008, "Construction of confidence limits about effect measures", https://doi.org/10.1002/sim.3095). It is then wider
        than necessary.
        """
        if self.bounds is not None and other.bounds is not None and not (self.paired and other.paired):
            value = self.value - other.value
            (low, high), (other_low, other_high) = self.bounds, other.bounds
            below = math.hypot(self.value - low, other_high - other.value)
            above = math.hypot(high - self.value, other.value - other_low)
            return Interval(value, round(value - below, 12), round(value + above, 12))
        draws = min(len(self.draws), len(other.draws))
        return _finite_percentile_interval(self.value - other.value, self.draws[:draws] - other.draws[:draws])


def logit_scale_estimate(value: float, draws: NDArray[np.float64]) -> Estimate:
    """Return an estimate of a metric in [0, 1] whose draws are biased, such as ranking metrics and macro F1.

    The interval is normal on the logit scale, with the draws' standard deviation, around the bias-corrected value. A
    percentile interval does worse: for 30 classes with 30 samples each it covers the average precision in 65 % of cases,
    the logit interval in 91 %; for 15 positives among 300 samples a ROC-AUC of 0.98 in 76 %, the logit interval in 97 %.
    If the value is undefined or all draws are equal, the interval is that of the draws' percentiles.
    """
    logits = _logit(draws[np.isfinite(draws)])
    if not math.isfinite(value) or not len(logits) or np.ptp(logits) == 0:
        return Estimate(value, draws)
    centre, half_width = 2 * float(_logit(np.array(value))) - logits.mean(), Z_95 * logits.std()
    low, high = (round(1 / (1 + math.exp(-end)), 12) for end in (centre - half_width, centre + half_width))
    return Estimate(value, draws, (low, high))


def difference_p_value(difference: Interval) -> float:
    """Return the two-sided p value of a zero difference, under a normal distribution.

    The standard error is read from the bound that is nearer to 0.
    """
    nearer = difference.low if difference.value > 0 else difference.high
    standard_error = abs(difference.value - nearer) / Z_95
    if standard_error > 0:
        return math.erfc(abs(difference.value) / standard_error / math.sqrt(2))
    return float(difference.value == 0)


def bootstrap_metrics(
    metric_function: MetricFunction, count: int, *, seed: int = 0, draws: int = DRAWS
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return metric name to its value, () or (K,), and its values on the draws, (draws,) or (draws, K).

    Args:
        metric_function: of `count` samples.
        count: N.
        seed, draws: as for `choral.metrics.intervals.bootstrap_means`, with the same draws.
    """
    on_all = metric_function(np.ones((1, count), dtype=np.int64))
    parts = [metric_function(counts) for counts in bootstrap_counts(count, seed=seed, draws=draws)]
    return {name: (value[0], np.concatenate([part[name] for part in parts])) for name, value in on_all.items()}


def nan_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the (rows,) means over the non-NaN entries of (rows, K); NaN, without a warning, where there is none."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        mean: NDArray[np.float64] = np.where(defined, values, 0).sum(axis=1) / defined.sum(axis=1)
    return mean


def _logit(values: NDArray[np.float64]) -> NDArray[np.float64]:
    inside = np.clip(values, _EDGE, 1 - _EDGE)
    logits: NDArray[np.float64] = np.log(inside / (1 - inside))
    return logits


def _finite_percentile_interval(value: float, draws: NDArray[np.float64]) -> Interval:
    finite = draws[np.isfinite(draws)]
    if not math.isfinite(value) or not len(finite):
        return Interval(value, math.nan, math.nan)
    return percentile_interval(value, finite)
