"""Intervals of few samples, as slices have: a bootstrap of them knows too little doubt.

Two samples that are both right are so in every draw, and a percentile interval of their accuracy is [1, 1]. Here none is
narrower than what theory says of few: of shares Wilson's interval, of means over classes what follows from theirs
(Zou and Donner 2008, https://doi.org/10.1002/sim.3095), of other means the bootstrap's as much wider as Student's
t distribution is than the normal one.
"""

from __future__ import annotations

import math

from scipy.special import stdtrit

from choral.metrics.estimate import DEVIATIONS, Estimate
from choral.metrics.intervals import LEVEL
from choral.metrics.metric_report import Metrics
from choral.metrics.proportions import SHARES, ends_of_shares
from choral.metrics.regression_metrics import NumberMetrics

_BOUNDS = {"r2": (-math.inf, 1.0), "spearman": (-1.0, 1.0)}  # of the others 0 and infinity


def of_few(metrics: Metrics, metric: str, estimate: Estimate) -> Estimate:
    """Return an estimate whose interval holds for few samples as well.

    Differences to one of other samples are made from the ends, see `Estimate.minus`.

    Args:
        metrics: of the samples.
        metric: that is estimated, as `choral.metrics.metric_report.ORDER` names it.
        estimate: with the interval of the bootstrap, or not defined; of `ece` it holds as it is.
    """
    found = estimate.interval
    if metric == "ece" or not math.isfinite(found.value):
        return estimate
    if isinstance(metrics, NumberMetrics) or metric not in SHARES:
        low, high = _by_student(metric, len(metrics.labels), estimate)
    else:
        low, high = ends_of_shares(metrics, metric, found.value)
        low, high = (min(low, found.low), max(high, found.high)) if math.isfinite(found.low) else (low, high)
    return Estimate(found.value, estimate.draws, (round(low, 12), round(high, 12)), paired=False)


def _by_student(metric: str, count: int, estimate: Estimate) -> tuple[float, float]:
    """Return wider ends; NaN of one sample, whose spread nobody knows."""
    found = estimate.interval
    if count < 2:
        return math.nan, math.nan
    wider = float(stdtrit(count - 1, (1 + LEVEL) / 2)) / DEVIATIONS * math.sqrt(count / (count - 1))
    least, most = _BOUNDS.get(metric, (0.0, math.inf))
    low, high = found.value - wider * (found.value - found.low), found.value + wider * (found.high - found.value)
    return max(least, low), min(most, high)
