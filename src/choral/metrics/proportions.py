"""Theoretical intervals of proportions and of means of proportions, for cases in which no bootstrap draw varies.

If all samples are correct, they are correct in every draw, and the percentile interval of the accuracy is [1, 1]. Wilson's
interval of 180 such samples starts at 0.979. Intervals of means over classes follow from those of the classes (Zou and Donner
2008, https://doi.org/10.1002/sim.3095).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from choral.metrics.class_metrics import ClassMetrics
from choral.metrics.estimate import Estimate
from choral.metrics.multilabel_metrics import MultilabelMetrics
from choral.metrics.reliability import wilson_f1_interval, wilson_interval

RANKING_METRICS = ("roc_auc", "average_precision", "mean_ap")
"""Metrics that need a ranking of the samples."""
PROPORTION_METRICS = (
    *("accuracy", "top_2", "top_5", "balanced_accuracy", "f1_macro", "f1_micro", "f1", "exact_match"),
    *RANKING_METRICS,
)
"""Metrics built from proportions of samples, or of pairs of samples, not from losses or errors."""
_MIN_CLASS_SAMPLES = 20  # with this many in every class, the bootstrap of a ranking metric covers


def with_wilson_interval(estimate: Estimate, count: int) -> Estimate:
    """Return a proportion of `count` samples with Wilson's interval if it is 0 or 1; otherwise unchanged."""
    if estimate.value not in (0, 1):
        return estimate
    low, high = wilson_interval(estimate.value, count)
    return Estimate(estimate.value, estimate.draws, (round(low, 12), round(high, 12)))


def with_theoretical_interval(metrics: ClassMetrics | MultilabelMetrics, metric: str, estimate: Estimate) -> Estimate:
    """Return one of `PROPORTION_METRICS` with a theoretical interval if it is 0 or 1 in every draw; otherwise unchanged."""
    interval = estimate.interval
    if interval.value not in (0, 1) or interval.low != interval.high:
        return estimate
    low, high = mean_proportion_interval(metrics, metric, interval.value)
    return Estimate(interval.value, estimate.draws, (round(max(low, 0.0), 12), round(min(high, 1.0), 12)))


def mean_proportion_interval(
    metrics: ClassMetrics | MultilabelMetrics, metric: str, value: float
) -> tuple[float, float]:
    """Return the bounds of one of `PROPORTION_METRICS`, as a mean over classes or labels of proportions.

    They may lie outside [0, 1]. Both are `value` for rankings whose bootstrap covers anyway.
    """
    if metric in ("f1_macro", "f1"):
        hits, predicted, actual = confusion_counts(metrics)
        trials = predicted + actual - hits
        occurs = trials > 0
        shares, trials = 2 * hits[occurs] / (predicted + actual)[occurs], trials[occurs]
        if metric == "f1" and len(trials):  # labels pooled; those of one sample are not independent
            shares, trials = np.array([value]), np.minimum(trials.sum(keepdims=True), len(metrics.labels))
        bounds = [wilson_f1_interval(*pair) for pair in zip(shares.tolist(), trials.tolist(), strict=True)]
    else:
        shares, trials = _proportions(metrics, metric, value)
        bounds = [wilson_interval(*pair) for pair in zip(shares.tolist(), trials.tolist(), strict=True)]
    if not bounds:
        return value, value  # widens no interval
    below, above = (np.sqrt(((shares - side) ** 2).sum()) / len(shares) for side in np.array(bounds).T)
    return value - float(below), value + float(above)


def _proportions(
    metrics: ClassMetrics | MultilabelMetrics, metric: str, value: float
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the proportions that a metric averages and the trials of each; empty if the bootstrap covers."""
    all_samples = np.ones((1, len(metrics.labels)), dtype=np.int64)
    if isinstance(metrics, ClassMetrics):
        trials = np.bincount(metrics.labels, minlength=metrics.classes)
    else:
        trials = np.count_nonzero(metrics.labels, axis=0)
    if metric == "balanced_accuracy":
        assert isinstance(metrics, ClassMetrics)
        shares = metrics.compute_by_class(all_samples)["recall"][0]
    elif metric in RANKING_METRICS:
        name = "roc_auc" if metric == "roc_auc" else "average_precision"
        shares = metrics.compute_rankings(all_samples)[f"{name}/class"][0]
        if name == "roc_auc":  # a share of pairs, of which no more than this are independent
            trials = np.minimum(trials, len(metrics.labels) - trials)
        if value not in (0, 1) and (trials[np.isfinite(shares)] >= _MIN_CLASS_SAMPLES).all():
            return np.empty(0), np.empty(0, dtype=np.int64)
    else:
        return np.array([value]), np.array([len(metrics.labels)])
    defined = np.isfinite(shares)
    return shares[defined], trials[defined]


def confusion_counts(
    metrics: ClassMetrics | MultilabelMetrics,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return true positives, predicted and actual samples of each class or label, (C,) each."""
    if isinstance(metrics, ClassMetrics):
        confusion = metrics.confusion
        return np.diag(confusion), confusion.sum(axis=0), confusion.sum(axis=1)
    hits, predicted, actual = (
        np.count_nonzero(matrix, axis=0)
        for matrix in (metrics.labels & metrics.predicted, metrics.predicted, metrics.labels)
    )
    return hits, predicted, actual
