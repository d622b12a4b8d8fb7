"""The report of one predictor on one split: all metrics, by class, and confusions, as plain JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypedDict

import numpy as np

from choral.ensembles.score_rows import SEED, IntervalDict
from choral.metrics.estimate import Estimate
from choral.metrics.intervals import DRAWS, LEVEL, Interval
from choral.metrics.metric_report import MetricReport, compute_metric_report
from choral.scoring.predictor import Predictor

_LARGEST_CONFUSION = 100  # classes; with more, only the most frequent confusions are reported
_CONFUSIONS = 20


class Confusion(TypedDict):
    """Samples of one class that were predicted as another; `share` of the samples of the class."""

    label: str
    predicted: str
    count: int
    share: float


class PredictorReport(TypedDict):
    """Result of `build_predictor_report`; None: undefined."""

    name: str
    task: str
    split: str
    n: int
    skipped: int
    decided: bool  # with thresholds or costs of `choral calibrate`; else the most probable class, labels above one half
    classes: list[str]
    metrics: dict[str, IntervalDict | None]
    plain_ece: float | None  # standard estimate, biased upwards; `ece` in metrics is debiased
    bins: int
    by_class: dict[str, dict[str, IntervalDict | None]]
    counts: dict[str, int]
    confusion: list[list[int]] | None  # row true, column predicted
    confusions: list[Confusion]  # the most frequent
    dataset: str
    evaluation: str
    bootstrap: dict[str, float]


def build_predictor_report(predictor: Predictor) -> PredictorReport:
    """Return every metric of a predictor with a 95 % interval, overall and for each class, label or target."""
    ledger = predictor.ledger
    task = ledger.meta.task
    metrics = compute_metric_report(
        task,
        ledger.labels,
        predictor.predictions,
        ledger.classes,
        has_probabilities=predictor.gives_probabilities,
        decisions=predictor.decided,
        seed=SEED,
    )
    keep_matrix = metrics.confusion is not None and len(ledger.classes) <= _LARGEST_CONFUSION
    return PredictorReport(
        name=predictor.name,
        task=task,
        split=ledger.meta.split,
        n=len(ledger),
        skipped=ledger.meta.skipped,
        decided=predictor.decided is not None,
        classes=list(ledger.classes),
        metrics={name: interval_or_none(estimate.interval) for name, estimate in metrics.overall.items()},
        plain_ece=metrics.standard_ece,
        bins=metrics.bins,
        by_class={name: _intervals_or_none(own) for name, own in metrics.by_class.items()},
        counts=metrics.counts,
        confusion=metrics.confusion.tolist() if keep_matrix and metrics.confusion is not None else None,
        confusions=_list_confusions(metrics, ledger.classes),
        dataset=ledger.meta.dataset,
        evaluation=ledger.meta.evaluation,
        bootstrap={"draws": DRAWS, "level": LEVEL, "seed": SEED},
    )


def interval_or_none(interval: Interval) -> IntervalDict | None:
    """Return a value with its interval as plain JSON; None where one of the numbers is undefined."""
    if not all(map(math.isfinite, (interval.value, interval.low, interval.high))):
        return None
    return IntervalDict(value=interval.value, low=interval.low, high=interval.high)


def _intervals_or_none(estimates: Mapping[str, Estimate]) -> dict[str, IntervalDict | None]:
    return {name: interval_or_none(estimate.interval) for name, estimate in estimates.items()}


def _list_confusions(metrics: MetricReport, classes: Any) -> list[Confusion]:
    if metrics.confusion is None:
        return []
    wrong = metrics.confusion - np.diag(np.diag(metrics.confusion))
    found = []
    for place in np.argsort(-wrong, axis=None, kind="stable")[:_CONFUSIONS]:
        label, predicted = divmod(int(place), len(classes))
        if count := int(wrong[label, predicted]):
            share = count / int(metrics.confusion[label].sum())
            found.append(Confusion(label=classes[label], predicted=classes[predicted], count=count, share=share))
    return found
