"""Intervals of shares by theory, and of means of shares: they hold also where a bootstrap sees nothing vary.

Where all samples are right they are so in every draw, and a percentile interval of the accuracy is [1, 1]. Wilson's of 180
such samples begins at 0.979; of means over classes follows from theirs (Zou and Donner 2008,
https://doi.org/10.1002/sim.3095).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from choral.metrics.class_metrics import ClassMetrics
from choral.metrics.estimate import Estimate
from choral.metrics.multilabel_metrics import LabelMetrics
from choral.metrics.reliability import wilson, wilson_f1

RANKED = ("roc_auc", "average_precision", "mean_ap")
"""Metrics that need a ranking of the samples."""
SHARES = (
    *("accuracy", "top_2", "top_5", "balanced_accuracy", "f1_macro", "f1_micro", "f1", "exact_match"),
    *RANKED,
)
"""Metrics that are made of shares of samples, or of pairs of them, and not of losses or errors."""
_FEW_OF_CLASS = 20  # samples: with as many of each, the bootstrap of a ranking holds


def of_share(estimate: Estimate, count: int) -> Estimate:
    """Return a share of `count` samples with Wilson's interval where all of them count, or none; else as it is."""
    if estimate.value not in (0, 1):
        return estimate
    low, high = wilson(estimate.value, count)
    return Estimate(estimate.value, estimate.draws, (round(low, 12), round(high, 12)))


def of_shares(metrics: ClassMetrics | LabelMetrics, metric: str, estimate: Estimate) -> Estimate:
    """Return one of `SHARES` with an interval by theory where it is 0 or 1 in every draw; else as it is."""
    found = estimate.interval
    if found.value not in (0, 1) or found.low != found.high:
        return estimate
    low, high = ends_of_shares(metrics, metric, found.value)
    return Estimate(found.value, estimate.draws, (round(max(low, 0.0), 12), round(min(high, 1.0), 12)))


def ends_of_shares(metrics: ClassMetrics | LabelMetrics, metric: str, value: float) -> tuple[float, float]:
    """Return the ends of one of `SHARES`, a mean over classes or labels, each a share of so many samples.

    They may lie beyond 0 and 1. Of rankings whose bootstrap holds both are `value`.
    """
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


def _shares(
    metrics: ClassMetrics | LabelMetrics, metric: str, value: float
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return what a metric is the mean of, and the samples that each is a share of; nothing if the bootstrap holds."""
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
        if value not in (0, 1) and (counts[np.isfinite(shares)] >= _FEW_OF_CLASS).all():
            return np.empty(0), np.empty(0, dtype=np.int64)
    else:
        return np.array([value]), np.array([len(metrics.labels)])
    known = np.isfinite(shares)
    return shares[known], counts[known]


def overlaps(metrics: ClassMetrics | LabelMetrics) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return of each class or label the samples that rightly were given it, all that were, and all that have it."""
    if isinstance(metrics, ClassMetrics):
        table = metrics.confusion
        return np.diag(table), table.sum(axis=0), table.sum(axis=1)
    hits, given, labels = (
        np.count_nonzero(of, axis=0) for of in (metrics.labels & metrics.given, metrics.given, metrics.labels)
    )
    return hits, given, labels
