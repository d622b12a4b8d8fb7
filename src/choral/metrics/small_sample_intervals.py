"""Intervals for small samples, such as slices, where the bootstrap underestimates the uncertainty.

Two samples that are both correct are so in every draw, and the percentile interval of their accuracy is [1, 1]. Here no
interval is narrower than small-sample theory says: proportions get at least Wilson's interval, means over classes what
follows from it (Zou and Donner 2008, https://doi.org/10.1002/sim.3095); for other means the bootstrap's interval is widened
by the ratio of Student's t distribution to the normal one.
"""

from __future__ import annotations

import math

from choral.metrics.estimate import Z_95, Estimate
from choral.metrics.intervals import LEVEL
from choral.metrics.metric_report import Metrics
from choral.metrics.proportions import PROPORTION_METRICS, mean_proportion_interval
from choral.metrics.regression_metrics import RegressionMetrics

_BOUNDS = {"r2": (-math.inf, 1.0), "spearman": (-1.0, 1.0)}  # of all others 0 and infinity


def widen_for_small_sample(metrics: Metrics, metric: str, estimate: Estimate) -> Estimate:
    """Return an estimate whose interval holds for small samples too.

    Differences to estimates on other samples are computed from the bounds, see `Estimate.minus`.

    Args:
        metrics: of the samples.
        metric: one of `choral.metrics.metric_report.METRIC_NAMES`.
        estimate: with the bootstrap's interval, or undefined; that of `ece` holds as it is.
    """
    interval = estimate.interval
    if metric == "ece" or not math.isfinite(interval.value):
        return estimate
    if isinstance(metrics, RegressionMetrics) or metric not in PROPORTION_METRICS:
        low, high = _student_bounds(metric, len(metrics.labels), estimate)
    else:
        low, high = mean_proportion_interval(metrics, metric, interval.value)
        if math.isfinite(interval.low):
            low, high = min(low, interval.low), max(high, interval.high)
    return Estimate(interval.value, estimate.draws, (round(low, 12), round(high, 12)), paired=False)


def _student_bounds(metric: str, count: int, estimate: Estimate) -> tuple[float, float]:
    """Return wider bounds; NaN for a single sample, whose variance is unknown."""
    interval = estimate.interval
    if count < 2:
        return math.nan, math.nan
    from scipy.special import stdtrit  # a table of scores starts without SciPy

    factor = float(stdtrit(count - 1, (1 + LEVEL) / 2)) / Z_95 * math.sqrt(count / (count - 1))
    smallest, largest = _BOUNDS.get(metric, (0.0, math.inf))
    low = interval.value - factor * (interval.value - interval.low)
    high = interval.value + factor * (interval.high - interval.value)
    return max(smallest, low), min(largest, high)
