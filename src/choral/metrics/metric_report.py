"""All metrics of one predictor with confidence intervals: overall, and for each class, label or target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from choral.metrics.calibration_error import DEFAULT_BINS, expected_calibration_error
from choral.metrics.class_metrics import ClassMetrics
from choral.metrics.debiased_calibration import CalibrationGaps, debiased_calibration_error
from choral.metrics.estimate import Estimate, MetricFunction, bootstrap_metrics, logit_scale_estimate
from choral.metrics.multilabel_metrics import MultilabelMetrics
from choral.metrics.proportions import PROPORTION_METRICS, RANKING_METRICS, confusion_counts, with_theoretical_interval
from choral.metrics.ranking import affordable_draws
from choral.metrics.regression_metrics import RegressionMetrics
from choral.metrics.reliability import wilson_f1_interval, wilson_interval

Metrics = ClassMetrics | MultilabelMetrics | RegressionMetrics
METRIC_NAMES = {
    "multiclass": (
        *("accuracy", "top_2", "top_5", "balanced_accuracy", "f1_macro", "f1_micro", "roc_auc", "average_precision"),
        *("log_loss", "brier", "ece"),
    ),
    "multilabel": ("mean_ap", "roc_auc", "f1", "f1_macro", "exact_match", "log_loss", "brier", "ece"),
    "regression": ("rmse", "mae", "r2", "spearman"),
}
CLASS_METRIC_NAMES = {
    "multiclass": ("precision", "recall", "f1", "roc_auc", "average_precision"),
    "multilabel": ("average_precision", "roc_auc", "precision", "recall", "f1"),
    "regression": METRIC_NAMES["regression"],
}
_LOGIT_SCALE_METRICS = (*RANKING_METRICS, "f1_macro")
_Sampled = tuple[NDArray[np.float64], NDArray[np.float64]]  # the value of a metric, and its values on the draws


@dataclass(frozen=True)
class MetricReport:
    """The metrics of a predictor on N samples.

    Attributes:
        task: multiclass, multilabel or regression.
        count: N.
        overall: metric to estimate, in the order of `METRIC_NAMES`; with several targets only r2 and spearman, averaged.
        by_class: class, label or target to metric to estimate.
        counts: samples of each class or label; empty for regression.
        confusion: (C, C) confusion matrix of multiclass, rows true, columns predicted.
        standard_ece: the usual binned calibration error, biased upwards; None without probabilities.
        bins: number of bins of the debiased `ece`; 0 without probabilities.
    """

    task: str
    count: int
    overall: dict[str, Estimate]
    by_class: dict[str, dict[str, Estimate]]
    counts: dict[str, int] = field(default_factory=dict)
    confusion: NDArray[np.int64] | None = None
    standard_ece: float | None = None
    bins: int = DEFAULT_BINS


def compute_metric_report(
    task: str,
    labels: NDArray[Any],
    predictions: NDArray[np.float32],
    classes: Sequence[str],
    *,
    has_probabilities: bool = True,
    decisions: NDArray[Any] | None = None,
    seed: int = 0,
) -> MetricReport:
    """Return all metrics of a predictor. Reports on the same samples with the same seed share their bootstrap draws.

    `ece` is the debiased calibration error, see `choral.metrics.debiased_calibration`. Rankings (one-vs-rest roc_auc and
    average_precision) use 2,000 draws, on very large splits fewer.

    Args:
        task: multiclass, multilabel or regression.
        labels: (N,) int64; (N, L) 0 and 1; or (N, T) numbers.
        predictions: (N, C) float32.
        classes: C names of classes, labels or targets.
        has_probabilities: multiclass: whether predictions are probabilities; false for a hard vote.
        decisions: (N,) predicted classes or (N, L) predicted labels; None: the argmax, labels above one half.
        seed: of the draws.
    """
    metrics = build_metrics(task, labels, predictions, has_probabilities=has_probabilities, decisions=decisions)
    overall = bootstrap_metrics(overall_metric_function(metrics), len(labels), seed=seed)
    of_classes = bootstrap_metrics(class_metric_function(metrics), len(labels), seed=seed)
    if has_rankings(metrics):
        assert not isinstance(metrics, RegressionMetrics)
        draws = affordable_draws(predictions.size)
        rankings = bootstrap_metrics(metrics.compute_rankings, len(labels), seed=seed, draws=draws)
        for name, values in rankings.items():
            (of_classes if name.endswith("/class") else overall)[name.removesuffix("/class")] = values
    return MetricReport(
        task=task,
        count=len(labels),
        overall=build_estimates(metrics, overall),
        by_class=_estimates_by_class(task, metrics, of_classes, classes),
        counts=_count_classes(task, labels, classes),
        confusion=metrics.confusion if isinstance(metrics, ClassMetrics) else None,
        standard_ece=_standard_ece(metrics),
        bins=_calibration_gaps(metrics).by_sample.shape[1] if has_rankings(metrics) else 0,
    )


def build_metrics(
    task: str,
    labels: NDArray[Any],
    predictions: NDArray[np.float32],
    *,
    has_probabilities: bool = True,
    decisions: NDArray[Any] | None = None,
) -> Metrics:
    """Return the metrics object of a task; arguments as for `compute_metric_report`."""
    if task == "multiclass":
        return ClassMetrics(labels, predictions, has_probabilities, decisions)
    if task == "multilabel":
        return MultilabelMetrics(labels > 0, predictions, decisions)
    return RegressionMetrics(labels, predictions)


def has_rankings(metrics: Metrics) -> bool:
    """Whether the predictions are probabilities, by which samples can be ranked."""
    return isinstance(metrics, MultilabelMetrics) or (isinstance(metrics, ClassMetrics) and metrics.has_probabilities)


def overall_metric_function(metrics: Metrics) -> MetricFunction:
    """Return the function of draws that computes the metrics of all samples, without rankings."""
    if not isinstance(metrics, RegressionMetrics):
        return metrics.compute_overall
    regression = metrics

    def average_targets(counts: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        by_target = regression.compute_by_target(counts)
        several = regression.labels.shape[1] > 1  # targets differ in unit: only unitless metrics have a mean
        return {
            name: values.mean(axis=1) for name, values in by_target.items() if not several or name in ("r2", "spearman")
        }

    return average_targets


def class_metric_function(metrics: Metrics) -> MetricFunction:
    """Return the function of draws that computes the metrics of each class, label or target, without rankings."""
    if isinstance(metrics, ClassMetrics):
        return metrics.compute_by_class
    return metrics.compute_by_label if isinstance(metrics, MultilabelMetrics) else metrics.compute_by_target


def build_estimates(metrics: Metrics, overall: Mapping[str, _Sampled]) -> dict[str, Estimate]:
    """Return estimates of the overall metrics, in the order of `METRIC_NAMES`, each with the interval that covers best.

    Args:
        metrics: of the samples.
        overall: metric to its value and its values on the draws.
    """
    estimates = {name: _estimate(name, float(value), draws) for name, (value, draws) in overall.items()}
    if not isinstance(metrics, RegressionMetrics):
        estimates |= {
            name: with_theoretical_interval(metrics, name, estimates[name])
            for name in PROPORTION_METRICS
            if name in estimates
        }
    if has_rankings(metrics):
        estimates["ece"] = debiased_calibration_error(_calibration_gaps(metrics))
    task = {ClassMetrics: "multiclass", MultilabelMetrics: "multilabel", RegressionMetrics: "regression"}[type(metrics)]
    return {name: estimates[name] for name in METRIC_NAMES[task] if name in estimates}


def _estimates_by_class(
    task: str, metrics: Metrics, of_classes: Mapping[str, _Sampled], classes: Sequence[str]
) -> dict[str, dict[str, Estimate]]:
    bounds = {} if isinstance(metrics, RegressionMetrics) else _wilson_bounds_by_class(metrics, of_classes)
    by_class: dict[str, dict[str, Estimate]] = {}
    for number, name in enumerate(classes):
        by_class[name] = {}
        for metric in CLASS_METRIC_NAMES[task]:
            if metric in of_classes:
                value, draws = of_classes[metric]
                by_class[name][metric] = _estimate(
                    metric, float(value[number]), draws[:, number], bounds.get((metric, number))
                )
    return by_class


def _estimate(
    metric: str, value: float, draws: NDArray[np.float64], bounds: tuple[float, float] | None = None
) -> Estimate:
    if metric in _LOGIT_SCALE_METRICS:
        return logit_scale_estimate(value, draws)
    return Estimate(value, draws, bounds)


def _wilson_bounds_by_class(
    metrics: ClassMetrics | MultilabelMetrics, of_classes: Mapping[str, _Sampled]
) -> dict[tuple[str, int], tuple[float, float]]:
    """Return Wilson's intervals of precision, recall and F1 by metric and class; they hold at 0 and 1 too."""
    hits, predicted, actual = confusion_counts(metrics)
    bounds = {}
    for metric, trials in (("precision", predicted), ("recall", actual), ("f1", predicted + actual - hits)):
        for number in np.flatnonzero(trials).tolist():
            value = float(of_classes[metric][0][number])
            interval = wilson_f1_interval if metric == "f1" else wilson_interval
            bounds[metric, number] = interval(value, int(trials[number]))
    return bounds


def _count_classes(task: str, labels: NDArray[Any], classes: Sequence[str]) -> dict[str, int]:
    if task == "regression":
        return {}
    counts = np.bincount(labels, minlength=len(classes)) if task == "multiclass" else (labels > 0).sum(axis=0)
    return dict(zip(classes, counts.tolist(), strict=True))


def _calibration_gaps(metrics: Metrics) -> CalibrationGaps:
    assert not isinstance(metrics, RegressionMetrics)
    return metrics.calibration_gaps


def _standard_ece(metrics: Metrics) -> float | None:
    if isinstance(metrics, MultilabelMetrics):
        return expected_calibration_error(metrics.predictions.reshape(-1), metrics.labels.reshape(-1))
    if isinstance(metrics, ClassMetrics) and metrics.has_probabilities:
        confidence = metrics.predictions[np.arange(len(metrics.labels)), metrics.predicted]
        return expected_calibration_error(confidence, metrics.labels == metrics.predicted)
    return None
