"""Intervals of few samples, as slices have: a bootstrap of them knows too little doubt.

Two samples that are both right are so in every draw, and a percentile interval of their accuracy is [1, 1]. Here none is
narrower than what theory says of few: of shares Wilson's interval, of means over classes what follows from theirs
(Zou and Donner 2008, https://doi.org/10.1002/sim.3095), of other means the bootstrap's as much wider as Student's
t distribution is than the normal one.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from choral.score.card import ORDER, RANKED, Metrics, overlaps
from choral.score.class_metrics import ClassMetrics
from choral.score.estimate import DEVIATIONS, Estimate
from choral.score.intervals import LEVEL
from choral.score.number_metrics import NumberMetrics
from choral.score.reliability import wilson, wilson_f1

_OF_ERRORS = ("log_loss", "brier", *ORDER["regression"])
_BOUNDS = {"r2": (-math.inf, 1.0), "spearman": (-1.0, 1.0)}  # of the others 0 and infinity
_FEW_OF_CLASS = 20  # samples: with as many of each, the bootstrap of a ranking holds


def of_few(metrics: Metrics, metric: str, estimate: Estimate) -> Estimate:
    """Return an estimate whose interval holds for few samples as well.

    Differences to one of other samples are made from the ends, see `Estimate.minus`.

    Args:
        metrics: of the samples.
        metric: that is estimated, as `choral.score.card.ORDER` names it.
        estimate: with the interval of the bootstrap, or not defined; of `ece` it holds as it is.
    """
    found = estimate.interval
    if metric == "ece" or not math.isfinite(found.value):
        return estimate
    if not of_shares(metric):
        low, high = _by_student(metric, len(metrics.labels), estimate)
    else:
        low, high = _of_shares(metrics, metric, found.value)
        low, high = (min(low, found.low), max(high, found.high)) if math.isfinite(found.low) else (low, high)
    return Estimate(found.value, estimate.draws, (round(low, 12), round(high, 12)), paired=False)


def of_shares(metric: str) -> bool:
    """Whether a metric is made of shares of samples, or of pairs of them, and not of losses or errors."""
    return metric not in _OF_ERRORS


def _by_student(metric: str, count: int, estimate: Estimate) -> tuple[float, float]:
    """Return wider ends; NaN of one sample, whose spread nobody knows."""
    found = estimate.interval
    if count < 2:
        return math.nan, math.nan
    wider = float(stdtrit(count - 1, (1 + LEVEL) / 2)) / DEVIATIONS * math.sqrt(count / (count - 1))
    least, most = _BOUNDS.get(metric, (0.0, math.inf))
    low, high = found.value - wider * (found.value - found.low), found.value + wider * (found.high - found.value)
    return max(least, low), min(most, high)


def _of_shares(metrics: Metrics, metric: str, value: float) -> tuple[float, float]:
    """Return the ends of a mean over classes or labels, each a share of so many samples."""
    assert not isinstance(metrics, NumberMetrics)
    if metric in ("f1_macro", "f1"):
        hits, given, labels = overlaps(metrics)
        counts = given + labels - hits
        there = counts > 0
        shares, counts = 2 * hits[there] / (given + labels)[there], counts[there]
        if metric == "f1" and len(counts):  # of all labels together; those of a sample are not independent
            shares, counts = np.array([value]), np.minimum(counts.sum(keepdims=True), len(metrics.labels))
        ends = [wilson_f1(*pair) for pair in zip(shares.tolist(), counts.tolist(), strict=True)]
    else:
        shares, counts = _shares(metrics, metric, value)
        ends = [wilson(*pair) for pair in zip(shares.tolist(), counts.tolist(), strict=True)]
    if not ends:
        return value, value  # which makes nothing wider
    below, above = (np.sqrt(((shares - side) ** 2).sum()) / len(shares) for side in np.array(ends).T)
    return value - float(below), value + float(above)


def _shares(metrics: Metrics, metric: str, value: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return what a metric is the mean of, and the samples that each is a share of; nothing if the bootstrap holds."""
    assert not isinstance(metrics, NumberMetrics)
    once = np.ones((1, len(metrics.labels)), dtype=np.int64)
    if isinstance(metrics, ClassMetrics):
        counts = np.bincount(metrics.labels, minlength=metrics.classes)
    else:
        counts = np.count_nonzero(metrics.labels, axis=0)
    if metric == "balanced_accuracy":
        assert isinstance(metrics, ClassMetrics)
        shares = metrics.by_class(once)["recall"][0]
    elif metric in RANKED:
        name = "roc_auc" if metric == "roc_auc" else "average_precision"
        shares = metrics.rankings(once)[f"{name}/class"][0]
        if name == "roc_auc":  # of pairs, but no more of them are independent
            counts = np.minimum(counts, len(metrics.labels) - counts)
        if (counts[np.isfinite(shares)] >= _FEW_OF_CLASS).all():
            return np.empty(0), np.empty(0, dtype=np.int64)
    else:
        return np.array([value]), np.array([len(metrics.labels)])
    known = np.isfinite(shares)
    return shares[known], counts[known]
