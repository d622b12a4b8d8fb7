"""All metrics of one predictor, with intervals: of the samples together, and of each class, label or target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from choral.metrics.calibration_error import BINS, expected_calibration_error
from choral.metrics.class_metrics import ClassMetrics
from choral.metrics.debiased_calibration import Gaps, debiased_calibration_error
from choral.metrics.estimate import Estimate, Measure, bounded, resampled
from choral.metrics.multilabel_metrics import LabelMetrics
from choral.metrics.proportions import RANKED, SHARES, of_shares, overlaps
from choral.metrics.ranking import affordable_draws
from choral.metrics.regression_metrics import NumberMetrics
from choral.metrics.reliability import wilson, wilson_f1

Metrics = ClassMetrics | LabelMetrics | NumberMetrics
ORDER = {
    "multiclass": (
        *("accuracy", "top_2", "top_5", "balanced_accuracy", "f1_macro", "f1_micro", "roc_auc", "average_precision"),
        *("log_loss", "brier", "ece"),
    ),
    "multilabel": ("mean_ap", "roc_auc", "f1", "f1_macro", "exact_match", "log_loss", "brier", "ece"),
    "regression": ("rmse", "mae", "r2", "spearman"),
}
OF_CLASS = {
    "multiclass": ("precision", "recall", "f1", "roc_auc", "average_precision"),
    "multilabel": ("average_precision", "roc_auc", "precision", "recall", "f1"),
    "regression": ORDER["regression"],
}
_BOUNDED = (*RANKED, "f1_macro")


@dataclass(frozen=True)
class Card:
    """What is known of a predictor.

    Attributes:
        task: multiclass, multilabel or regression.
        count: N.
        overall: metric to estimate, in the order of `ORDER`; of several targets none but r2 and spearman, their means.
        by_class: class, label or target to metric to estimate.
        counts: samples of each class or label; none of regression.
        confusion: (C, C) of multiclass, row true, column predicted.
        plain_ece: calibration error as it is usually computed, biased upwards; None where there are no probabilities.
        bins: of it.
    """

    task: str
    count: int
    overall: dict[str, Estimate]
    by_class: dict[str, dict[str, Estimate]]
    counts: dict[str, int] = field(default_factory=dict)
    confusion: NDArray[np.int64] | None = None
    plain_ece: float | None = None
    bins: int = BINS


def card_of(
    task: str,
    labels: NDArray[Any],
    predictions: NDArray[np.float32],
    classes: Sequence[str],
    *,
    probabilities: bool = True,
    decided: NDArray[Any] | None = None,
    seed: int = 0,
) -> Card:
    """Return all metrics of a predictor; those of two on the same samples and seed have the same draws.

    `ece` is the debiased calibration error, see `choral.metrics.debiased_calibration`. Rankings (roc_auc and
    average_precision, of each class against the others) have 2,000 draws, or of very many as many as are affordable.

    Args:
        task: multiclass, multilabel or regression.
        labels: (N,) int64; (N, L) 0 and 1; or (N, T) numbers.
        predictions: (N, C) float32.
        classes: C names of classes, labels or targets.
        probabilities: of multiclass, whether predictions are that; not so of a hard vote.
        decided: (N,) classes or (N, L) labels that were decided for; None: the most probable, those above one half.
        seed: of the draws.
    """
    metrics = measured(task, labels, predictions, probabilities=probabilities, decided=decided)
    found = resampled(overall_measure(metrics), len(labels), seed=seed)
    own = resampled(class_measure(metrics), len(labels), seed=seed)
    if ranks(metrics):
        assert not isinstance(metrics, NumberMetrics)
        draws = affordable_draws(predictions.size)
        ranked = resampled(metrics.rankings, len(labels), seed=seed, draws=draws)
        found |= {name: values for name, values in ranked.items() if not name.endswith("/class")}
        own |= {name.removesuffix("/class"): values for name, values in ranked.items() if name.endswith("/class")}
    ends = {} if isinstance(metrics, NumberMetrics) else _ends_by_class(metrics, own)
    by_class = {
        name: {
            metric: _estimate(
                metric, float(own[metric][0][number]), own[metric][1][:, number], ends.get((metric, number))
            )
            for metric in OF_CLASS[task]
            if metric in own
        }
        for number, name in enumerate(classes)
    }
    return Card(
        task=task,
        count=len(labels),
        overall=estimates_of(metrics, found),
        by_class=by_class,
        counts=_counts(task, labels, classes),
        confusion=metrics.confusion if isinstance(metrics, ClassMetrics) else None,
        plain_ece=_plain_ece(metrics),
        bins=_gaps(metrics).of_sample.shape[1] if ranks(metrics) else 0,
    )


def measured(
    task: str,
    labels: NDArray[Any],
    predictions: NDArray[np.float32],
    *,
    probabilities: bool = True,
    decided: NDArray[Any] | None = None,
) -> Metrics:
    """Return what is measured; arguments as for `card_of`."""
    if task == "multiclass":
        return ClassMetrics(labels, predictions, probabilities, decided)
    if task == "multilabel":
        return LabelMetrics(labels > 0, predictions, decided)
    return NumberMetrics(labels, predictions)


def ranks(metrics: Metrics) -> bool:
    """Whether there is a ranking of samples by probability."""
    return isinstance(metrics, LabelMetrics) or (isinstance(metrics, ClassMetrics) and metrics.probabilities)


def overall_measure(metrics: Metrics) -> Measure:
    """Return the function of draws that gives the metrics of all samples together, but for rankings."""
    if not isinstance(metrics, NumberMetrics):
        return metrics.sums
    numbers = metrics

    def of_targets(times: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        found = numbers.by_target(times)
        several = numbers.labels.shape[1] > 1  # in units of their own: only what has no unit has a mean
        return {
            name: values.mean(axis=1) for name, values in found.items() if not several or name in ("r2", "spearman")
        }

    return of_targets


def class_measure(metrics: Metrics) -> Measure:
    """Return the function of draws that gives the metrics of each class, label or target, but for rankings."""
    if isinstance(metrics, ClassMetrics):
        return metrics.by_class
    return metrics.by_label if isinstance(metrics, LabelMetrics) else metrics.by_target


def estimates_of(
    metrics: Metrics, found: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
) -> dict[str, Estimate]:
    """Return estimates from values and draws of metrics of all samples together, in the order of `ORDER`."""
    estimates = {name: _estimate(name, float(value), draws) for name, (value, draws) in found.items()}
    if not isinstance(metrics, NumberMetrics):
        estimates |= {name: of_shares(metrics, name, estimates[name]) for name in SHARES if name in estimates}
    if ranks(metrics):
        estimates["ece"] = debiased_calibration_error(_gaps(metrics))
    task = {ClassMetrics: "multiclass", LabelMetrics: "multilabel", NumberMetrics: "regression"}[type(metrics)]
    return {name: estimates[name] for name in ORDER[task] if name in estimates}


def _estimate(
    metric: str, value: float, draws: NDArray[np.float64], ends: tuple[float, float] | None = None
) -> Estimate:
    """Return an estimate with the interval that holds best."""
    if metric in _BOUNDED:
        return bounded(value, draws)
    return Estimate(value, draws, ends)


def _ends_by_class(
    metrics: ClassMetrics | LabelMetrics, own: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
) -> dict[tuple[str, int], tuple[float, float]]:
    """Return Wilson's intervals of precision, recall and F1 by metric and class, which hold also if they are 0 or 1."""
    hits, given, labels = overlaps(metrics)
    ends = {}
    for metric, shared in (("precision", given), ("recall", labels), ("f1", given + labels - hits)):
        for number in np.flatnonzero(shared).tolist():
            value = float(own[metric][0][number])
            ends[metric, number] = (wilson_f1 if metric == "f1" else wilson)(value, int(shared[number]))
    return ends


def _counts(task: str, labels: NDArray[Any], classes: Sequence[str]) -> dict[str, int]:
    if task == "regression":
        return {}
    counts = np.bincount(labels, minlength=len(classes)) if task == "multiclass" else (labels > 0).sum(axis=0)
    return dict(zip(classes, counts.tolist(), strict=True))


def _gaps(metrics: Metrics) -> Gaps:
    assert not isinstance(metrics, NumberMetrics)
    return metrics.gaps


def _plain_ece(metrics: Metrics) -> float | None:
    if isinstance(metrics, LabelMetrics):
        return expected_calibration_error(metrics.predictions.reshape(-1), metrics.labels.reshape(-1))
    if isinstance(metrics, ClassMetrics) and metrics.probabilities:
        said = metrics.predictions[np.arange(len(metrics.labels)), metrics.given]
        return expected_calibration_error(said, metrics.labels == metrics.given)
    return None
