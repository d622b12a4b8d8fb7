"""Compares two predictors: paired differences of every metric, McNemar's test, and the samples that only one gets right.

McNemar 1947, "Note on the sampling error of the difference between correlated proportions or percentages",
https://doi.org/10.1007/BF02295996: if two predictors are equally accurate, each has half of the samples that only one of
them gets right. The test is exact, by the binomial distribution. For regression, the same test is a sign test of which
prediction is closer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from choral.core.errors import DataError
from choral.ensembles.score_rows import SEED, IntervalDict
from choral.metrics.estimate import Estimate
from choral.metrics.metric_report import MetricReport, compute_metric_report
from choral.metrics.per_sample import multilabel_log_losses
from choral.scoring.predictor import Predictor
from choral.scoring.predictor_report import interval_or_none
from choral.scoring.stored_predictor import METRICS, StoredPredictions, compute_estimates

CLASS_METRICS = {"multiclass": "recall", "multilabel": "average_precision", "regression": "rmse"}
"""The metric that classes, labels or targets are compared by."""
_MAX_CHANGED_REGRESSION = 100  # samples


class MetricComparison(TypedDict):
    """A metric of both predictors, and its difference, second minus first; None: undefined."""

    name: str
    metric: str
    n: int
    a: IntervalDict | None
    b: IntervalDict | None
    difference: IntervalDict | None


class GroupComparison(MetricComparison):
    """A metric of a class or slice, with the number of samples that only b (gained) or only a (lost) gets right."""

    gained: int
    lost: int


class OutcomeCounts(TypedDict):
    """Samples by which predictor is right (regression: closer), and the exact test of only_a against only_b."""

    test: str
    both: int
    only_a: int
    only_b: int
    neither: int
    p_value: float


class ChangedSample(TypedDict):
    """A sample that only one predictor gets right or, for regression, whose errors differ most."""

    key: str
    label: Any
    a: Any
    b: Any
    better: str  # a or b
    shift: float  # gain of b: in probability; multilabel: in log loss; regression: in errors divided by the spread


class Comparison(TypedDict):
    """Result of `compare_predictors`: plain JSON."""

    task: str
    split: str
    dataset: str
    n: int
    a: str
    b: str
    metrics: list[MetricComparison]
    sides: OutcomeCounts
    classes: list[GroupComparison]
    column: str
    slices: list[GroupComparison]
    changed: list[ChangedSample]


def check_comparable(a: Predictor, b: Predictor, names: tuple[str, str]) -> None:
    """Refuse to compare predictors of different samples.

    Raises:
        DataError: samples, labels, classes, task, data set or split differ; the message says which.
    """
    one, other = a.ledger, b.ledger
    reason = ""
    if one.meta.task != other.meta.task or one.classes != other.classes:
        tasks = "; ".join(f"{ledger.meta.task}: {_abbreviate(ledger.classes)}" for ledger in (one, other))
        reason = f"their tasks or classes differ ({tasks})"
    elif one.meta.dataset != other.meta.dataset:
        reason = f"the fingerprints of their data differ ({one.meta.dataset[:12]} and {other.meta.dataset[:12]})"
    elif one.meta.split != other.meta.split:
        reason = f"they were evaluated on different splits ({one.meta.split} and {other.meta.split})"
    elif one.keys != other.keys or not np.array_equal(one.labels, other.labels):
        common = len(set(one.keys) & set(other.keys))
        reason = f"they were evaluated on {len(one)} and {len(other)} samples, of which {common} are the same"
    if reason:
        raise DataError(
            f"{names[0]} and {names[1]} cannot be compared: {reason}; the data would contribute to the difference. "
            "Evaluate both on the same shards"
        )


def compare_predictors(
    a: Predictor,
    b: Predictor,
    names: tuple[str, str],
    column: str = "",
    slices: Mapping[str, NDArray[np.bool_]] | None = None,
) -> Comparison:
    """Return how a second predictor differs from a first one on the same samples.

    Args:
        a, b: the first and the second.
        names: of both in the result.
        column, slices: name of a metadata column, and a mask over the samples for each of its values; none: no slices.

    Raises:
        DataError: the samples differ.
    """
    check_comparable(a, b, names)
    ledger = a.ledger
    task, labels = ledger.meta.task, ledger.labels
    decisions = (a.decisions, b.decisions)
    winners, reports = _find_winners(task, labels, decisions), (_compute_report(a), _compute_report(b))
    return Comparison(
        task=task,
        split=ledger.meta.split,
        dataset=ledger.meta.dataset,
        n=len(ledger),
        a=names[0],
        b=names[1],
        metrics=_compare_metrics(reports),
        sides=_count_outcomes(task, labels, decisions, winners),
        classes=_compare_classes(a, b, reports),
        column=column,
        slices=[_compare_slice(name, mask, a, b, winners) for name, mask in (slices or {}).items()],
        changed=_list_changed(a, b, winners),
    )


def _compare_metrics(reports: tuple[MetricReport, MetricReport]) -> list[MetricComparison]:
    one, other = (report.overall for report in reports)
    return [
        _compare_estimates(metric, metric, reports[0].count, one[metric], other[metric])
        for metric in one
        if metric in other
    ]


def _compare_classes(a: Predictor, b: Predictor, reports: tuple[MetricReport, MetricReport]) -> list[GroupComparison]:
    """Return the comparison of each class, label or target, by its most informative metric (`CLASS_METRICS`)."""
    ledger = a.ledger
    task, labels, metric = ledger.meta.task, ledger.labels, CLASS_METRICS[ledger.meta.task]
    one, other = reports
    winners = _find_output_winners(task, labels, (a.decisions, b.decisions))
    parts = []
    for number, name in enumerate(ledger.classes):
        of_class = winners[labels == number] if task == "multiclass" else winners[:, number]
        count = len(ledger) if task == "regression" else one.counts[name]
        pair = _compare_estimates(name, metric, count, one.by_class[name][metric], other.by_class[name][metric])
        parts.append(GroupComparison(**pair, gained=int((of_class > 0).sum()), lost=int((of_class < 0).sum())))
    return parts


def _compare_slice(
    name: str, mask: NDArray[np.bool_], a: Predictor, b: Predictor, winners: NDArray[np.int8]
) -> GroupComparison:
    task = a.ledger.meta.task
    metric, labels = METRICS[task][0], a.ledger.labels[mask]
    records = {key: StoredPredictions.of(predictor).select(mask) for key, predictor in (("a", a), ("b", b))}
    found = compute_estimates(task, labels, records)[metric]
    pair = _compare_estimates(name, metric, int(mask.sum()), found["a"], found["b"])
    return GroupComparison(**pair, gained=int((winners[mask] > 0).sum()), lost=int((winners[mask] < 0).sum()))


def _compare_estimates(name: str, metric: str, count: int, one: Estimate, other: Estimate) -> MetricComparison:
    return MetricComparison(
        name=name,
        metric=metric,
        n=count,
        a=interval_or_none(one.interval),
        b=interval_or_none(other.interval),
        difference=interval_or_none(other.minus(one)),
    )


def _compute_report(predictor: Predictor) -> MetricReport:
    ledger = predictor.ledger
    return compute_metric_report(
        ledger.meta.task,
        ledger.labels,
        predictor.predictions,
        ledger.classes,
        has_probabilities=predictor.gives_probabilities,
        decisions=predictor.decided,
        seed=SEED,
    )


def _find_output_winners(
    task: str, labels: NDArray[Any], decisions: tuple[NDArray[Any], NDArray[Any]]
) -> NDArray[np.int8]:
    """Return 1 where only the second is right (regression: is closer), -1 where only the first is, else 0.

    The shape is (N,), or (N, labels or targets).
    """
    if task == "regression":
        errors = [abs(values.astype(np.float64) - labels) for values in decisions]
        return _signs(errors[0], errors[1])
    right = [_is_correct(labels, values) for values in decisions]
    return _signs(right[1], right[0])


def _find_winners(task: str, labels: NDArray[Any], decisions: tuple[NDArray[Any], NDArray[Any]]) -> NDArray[np.int8]:
    """Return the (N,) winners of whole samples, as `_find_output_winners` does.

    A multilabel sample is right if all labels are; regression compares mean errors, each divided by the target's spread.
    """
    if task == "multiclass":
        return _find_output_winners(task, labels, decisions)
    if task == "multilabel":
        right: list[NDArray[np.bool_]] = [np.all(_is_correct(labels, values), axis=1) for values in decisions]
        return _signs(right[1], right[0])
    return _signs(_compute_relative_errors(labels, decisions[0]), _compute_relative_errors(labels, decisions[1]))


def _signs(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.int8]:
    """Return 1 where the first is larger, -1 where it is smaller, else 0."""
    return (one > other).astype(np.int8) - (one < other).astype(np.int8)


def _is_correct(labels: NDArray[Any], decisions: NDArray[Any]) -> NDArray[np.bool_]:
    right: NDArray[np.bool_] = decisions == (labels > 0 if labels.ndim == 2 else labels)
    return right


def _compute_relative_errors(labels: NDArray[Any], decisions: NDArray[Any]) -> NDArray[np.float64]:
    spread = labels.std(axis=0, dtype=np.float64)
    errors: NDArray[np.float64] = (abs(decisions.astype(np.float64) - labels) / np.where(spread > 0, spread, 1)).mean(
        axis=1
    )
    return errors


def _count_outcomes(
    task: str, labels: NDArray[Any], decisions: tuple[NDArray[Any], NDArray[Any]], winners: NDArray[np.int8]
) -> OutcomeCounts:
    from scipy.stats import binomtest  # takes a second to import

    only_a, only_b = int((winners < 0).sum()), int((winners > 0).sum())
    same = winners == 0
    if task == "regression":
        both, test = int(same.sum()), "sign test, exact"
    else:
        right = _is_correct(labels, decisions[0])
        both, test = int((same & (right if right.ndim == 1 else right.all(axis=1))).sum()), "McNemar, exact"
    p_value = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    neither = int(same.sum()) - both
    return OutcomeCounts(test=test, both=both, only_a=only_a, only_b=only_b, neither=neither, p_value=p_value)


def _list_changed(a: Predictor, b: Predictor, winners: NDArray[np.int8]) -> list[ChangedSample]:
    """Return the samples that only one predictor gets right, those of the first one first, by decreasing shift."""
    task, labels, keys = a.ledger.meta.task, a.ledger.labels, a.ledger.keys
    predictions, decisions = (a.predictions, b.predictions), (a.decisions, b.decisions)
    if task == "multiclass":
        one, other = (values[np.arange(len(labels)), labels].astype(np.float64) for values in predictions)
    elif task == "multilabel":
        one, other = (-multilabel_log_losses(labels > 0, values) for values in predictions)
    else:
        one, other = (-_compute_relative_errors(labels, values) for values in predictions)
    shift = other - one
    rows = np.flatnonzero(winners)
    order = rows[np.lexsort((-abs(shift[rows]), winners[rows]))]
    if task == "regression":  # every sample has a winner; list the largest shifts only
        order = order[np.argsort(-abs(shift[order]), kind="stable")][:_MAX_CHANGED_REGRESSION]
    return [
        ChangedSample(
            key=keys[row],
            label=_to_plain(task, a.ledger.classes, labels[row]),
            a=_to_plain(task, a.ledger.classes, decisions[0][row]),
            b=_to_plain(task, a.ledger.classes, decisions[1][row]),
            better="b" if winners[row] > 0 else "a",
            shift=round(float(shift[row]), 6),
        )
        for row in order.tolist()
    ]


def _to_plain(task: str, classes: Sequence[str], label: Any) -> Any:
    if task == "multiclass":
        return classes[int(label)]
    if task == "multilabel":
        return [name for name, value in zip(classes, label, strict=True) if value > 0]
    return {name: round(float(value), 6) for name, value in zip(classes, label, strict=True)}


def _abbreviate(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"
