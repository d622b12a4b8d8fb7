"""Compares classes and slices with all other samples; p values are adjusted for all comparisons of a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from choral.analysis.samples import SampleTable, SliceColumn
from choral.core.errors import ConfigError
from choral.data.shards.index import Index
from choral.ensembles.score_rows import IntervalDict
from choral.metrics.class_metrics import ClassMetrics
from choral.metrics.estimate import Estimate, bootstrap_metrics
from choral.metrics.intervals import LEVEL
from choral.metrics.metric_report import Metrics, class_metric_function
from choral.metrics.multilabel_metrics import MultilabelMetrics
from choral.metrics.multiple_comparisons import holm
from choral.metrics.per_sample import f1_from_counts
from choral.metrics.proportions import confusion_counts
from choral.metrics.regression_metrics import RegressionMetrics
from choral.metrics.reliability import wilson_f1_interval, wilson_interval
from choral.scoring.predictor import Predictor
from choral.scoring.slices import list_slice_columns, split_by_column

SIGNIFICANCE_LEVEL = 0.05
_MIN_SLICE = 5  # samples that at least two slices of a column must have for the column to be compared
_MIN_SHARE = 0.5  # of all samples that slices of that size must hold
_MAX_EXACT = 8  # samples of the smaller side up to which the rank-sum test is exact
_NOTES = {
    "accuracy": "Accuracy of each group against all other samples; p by Fisher's exact test",
    "loss": "Mean loss of each group against all other samples; p is the larger of Welch's t-test and the rank-sum test",
    "error": "Mean error of each group against all other samples; p is the larger of Welch's t-test and the rank-sum test",
}


@dataclass(frozen=True)
class Group:
    """Some samples, compared with all others by the mean of one number per sample; see `Groups.metric`.

    Attributes:
        column: of metadata; "class", "label" or "target" in the table of classes.
        value: of the column, or the class.
        n: samples.
        score, rest: mean of the group and of all other samples; None where undefined.
        difference: score minus rest.
        p: of no difference; None where nothing is compared.
        p_adjusted: after Holm's correction for all comparisons of the page.
        significant: whether p_adjusted is below 0.05.
        details: further metrics: precision, recall and f1 of a class or label; rmse, mae and r2 of a target.
    """

    column: str
    value: str
    n: int
    score: IntervalDict | None
    rest: IntervalDict | None
    difference: IntervalDict | None
    p: float | None
    p_adjusted: float | None
    significant: bool
    details: Mapping[str, IntervalDict | None]


@dataclass(frozen=True)
class Groups:
    """Classes and slices, each compared with all other samples.

    Attributes:
        metric: that is compared: accuracy (of a class, its recall), loss (multilabel) or error (regression); the mean of
            `SampleTable.right` or of `SampleTable.loss`.
        percent: whether the metric is displayed in percent.
        higher_is_better: of the metric.
        classes: a group for each class, label or target, in the order of the task; targets are not compared.
        slices: column to its groups.
        comparisons: tests of the page, for which p values are adjusted.
        left_out: columns that are not compared, and why.
        note: how groups were tested, in a sentence.
    """

    metric: str
    percent: bool
    higher_is_better: bool
    classes: tuple[Group, ...]
    slices: dict[str, tuple[Group, ...]]
    comparisons: int
    left_out: dict[str, str]
    note: str


def build_slices(
    index: Index, keys: Sequence[str], measures: Mapping[str, NDArray[np.float64]] | None = None
) -> tuple[dict[str, SliceColumn], dict[str, str]]:
    """Return the columns whose slices are worth comparing, and the reason for each column that is left out.

    Args:
        index: of the split.
        keys: (N,) samples of the split.
        measures: name to (N,) measured values of the images, sliced by quartiles; NaN is missing.
    """
    columns: dict[str, SliceColumn] = {}
    left_out: dict[str, str] = {}
    names = [name for name in list_slice_columns(index) if not (name == "label" and index.dataset.task == "multiclass")]
    for name in names:
        try:
            masks = split_by_column(index, keys, name)
        except ConfigError:
            left_out[name] = "holds neither text, numbers nor booleans"
            continue
        if reason := _reason_to_leave_out(masks, len(keys)):
            left_out[name] = reason
        else:
            columns[name] = _build_column(masks, len(keys))
    for name, values in (measures or {}).items():
        masks = quartile_masks(values)
        if not _reason_to_leave_out(masks, len(keys)):
            columns[name] = _build_column(masks, len(keys))
    return columns, left_out


def quartile_masks(values: NDArray[np.float64]) -> dict[str, NDArray[np.bool_]]:
    """Return (N,) masks of the quartiles of (N,) values, named by their smallest and largest value; NaN is in none."""
    ordered = np.sort(values[~np.isnan(values)])
    if not len(ordered):
        return {}
    ends = np.unique(ordered[[(len(ordered) * quarter + 3) // 4 - 1 for quarter in (1, 2, 3, 4)]])
    quartile = np.searchsorted(ends, values)
    masks = [quartile == number for number in range(len(ends))]
    ranges = [(float(values[mask].min()), float(values[mask].max())) for mask in masks]
    # 17 digits tell any two ranges apart.
    names = next(one for digits in range(3, 18) if len(set(one := _format_ranges(ranges, digits))) == len(ranges))
    return dict(zip(names, masks, strict=True))


def _format_ranges(ranges: Sequence[tuple[float, float]], digits: int) -> list[str]:
    return [f"{low:.{digits}g} to {high:.{digits}g}" for low, high in ranges]


def compare_groups(predictor: Predictor, samples: SampleTable, left_out: Mapping[str, str] | None = None) -> Groups:
    """Return classes and slices, each compared with all other samples.

    The comparison uses one number per sample, whether it is correct (multiclass) or its loss, so that thousands of groups
    take seconds. Two slices that are each the rest of the other count as one comparison.

    Args:
        predictor: whose predictions are analysed.
        samples: of the predictor, with slices.
        left_out: from `build_slices`.
    """
    task = predictor.ledger.meta.task
    metric = {"multiclass": "accuracy", "multilabel": "loss", "regression": "error"}[task]
    is_share = task == "multiclass"
    scores = samples.right.astype(np.float64) if is_share else samples.loss.astype(np.float64)
    comparison = _Comparison(scores, is_share)
    classes = _class_groups(predictor, samples, comparison)
    slices = {
        name: tuple(comparison.compare(name, value, column.codes == code) for code, value in enumerate(column.values))
        for name, column in samples.slices.items()
    }
    tests = [_group_by_test(groups) for groups in (classes, *slices.values())]
    adjusted = iter(_adjust_p_values(tests))
    comparisons = sum(test[0].p is not None for column in tests for test in column)
    return Groups(
        metric=metric,
        percent=is_share,
        higher_is_better=is_share,
        classes=next(adjusted),
        slices={column: next(adjusted) for column in slices},
        comparisons=comparisons,
        left_out=dict(left_out or {}),
        note=f"{_NOTES[metric]}, with Holm's correction for all {comparisons} comparisons of this page",
    )


class _Comparison:
    """Compares the mean score of some samples with that of all others.

    Args:
        scores: (N,) one number a sample.
        is_share: whether all scores are 0 or 1.
    """

    def __init__(self, scores: NDArray[np.float64], is_share: bool) -> None:
        self._scores, self._is_share = scores, is_share

    def compare(
        self, column: str, value: str, mask: NDArray[np.bool_], details: Mapping[str, IntervalDict | None] | None = None
    ) -> Group:
        """Return the group of the samples in a (N,) mask; its p value is not adjusted yet."""
        inside, outside = self._scores[mask], self._scores[~mask]
        score, rest = (self._estimate(values) for values in (inside, outside))
        difference = p = None
        if score is not None and rest is not None:
            gap = score.minus(rest)
            difference = IntervalDict(value=gap.value, low=gap.low, high=gap.high)
            p = _fisher_exact(inside, outside) if self._is_share else _mean_test(inside, outside)
        return Group(
            column=column,
            value=value,
            n=int(mask.sum()),
            score=_to_interval(score),
            rest=_to_interval(rest),
            difference=difference,
            p=p,
            p_adjusted=None,
            significant=False,
            details=dict(details or {}),
        )

    def _estimate(self, values: NDArray[np.float64]) -> Estimate | None:
        """Return the mean with Wilson's interval (losses: Student's t); None where there is no interval."""
        if len(values) < (1 if self._is_share else 2):
            return None
        mean, empty = float(values.mean()), np.empty(0)
        if self._is_share:
            return Estimate(mean, empty, wilson_interval(mean, len(values)), paired=False)
        from scipy.special import stdtrit  # a third of a second to import

        half = float(stdtrit(len(values) - 1, (1 + LEVEL) / 2) * values.std(ddof=1) / np.sqrt(len(values)))
        return Estimate(mean, empty, (mean - half, mean + half), paired=False)


def _class_groups(predictor: Predictor, samples: SampleTable, comparison: _Comparison) -> tuple[Group, ...]:
    """Return a group for each class or label, compared with the other samples; for regression one for each target, with its
    metrics alone, since a target covers all samples."""
    ledger = predictor.ledger
    metrics = predictor.build_metrics()
    if isinstance(metrics, RegressionMetrics):
        details = _target_details(metrics, len(ledger))
        return tuple(
            Group("target", name, len(ledger), None, None, None, None, None, False, details[number])
            for number, name in enumerate(ledger.classes)
        )
    details = class_details(metrics)
    if isinstance(metrics, MultilabelMetrics):
        column, masks = "label", [samples.labels[:, number] for number in range(len(ledger.classes))]
    else:
        column, masks = "class", [samples.labels == number for number in range(len(ledger.classes))]
    return tuple(
        comparison.compare(column, name, mask, detail)
        for name, mask, detail in zip(ledger.classes, masks, details, strict=True)
    )


def class_details(metrics: ClassMetrics | MultilabelMetrics) -> list[dict[str, IntervalDict | None]]:
    """Return precision, recall and F1 of each class or label with Wilson's intervals; None where undefined."""
    true_positives, predicted, labelled = confusion_counts(metrics)
    shares = {"precision": (true_positives, predicted), "recall": (true_positives, labelled)}
    f1 = f1_from_counts(true_positives, predicted - true_positives, labelled - true_positives)
    details: list[dict[str, IntervalDict | None]] = []
    for number in range(len(true_positives)):
        detail: dict[str, IntervalDict | None] = {}
        for metric, (hits, totals) in shares.items():
            total = int(totals[number])
            share = hits[number] / total if total else 0.0
            detail[metric] = _with_ends(share, wilson_interval(share, total)) if total else None
        union = int(predicted[number] + labelled[number] - true_positives[number])
        value = float(f1[number])
        detail["f1"] = _with_ends(value, wilson_f1_interval(value, union)) if union else None
        details.append(detail)
    return details


def _target_details(metrics: Metrics, count: int) -> list[dict[str, IntervalDict | None]]:
    values = bootstrap_metrics(class_metric_function(metrics), count)
    targets = next(iter(values.values()))[0].shape[0]
    return [
        {name: _to_interval(Estimate(float(value[one]), draws[:, one])) for name, (value, draws) in values.items()}
        for one in range(targets)
    ]


def _to_interval(estimate: Estimate | None) -> IntervalDict | None:
    if estimate is None:
        return None
    interval = estimate.interval
    is_finite = np.isfinite([interval.value, interval.low, interval.high]).all()
    return IntervalDict(value=interval.value, low=interval.low, high=interval.high) if is_finite else None


def _with_ends(value: float, ends: tuple[float, float]) -> IntervalDict:
    return IntervalDict(value=float(value), low=float(ends[0]), high=float(ends[1]))


def _fisher_exact(inside: NDArray[np.float64], outside: NDArray[np.float64]) -> float:
    """Return the two-sided p value of Fisher's exact test; a hundredth of the time of SciPy's for large counts."""
    from scipy.special import gammaln

    count, others, positive = len(inside), len(outside), int(inside.sum() + outside.sum())
    possible = np.arange(max(0, positive - others), min(count, positive) + 1)
    log_ways = -(gammaln(possible + 1) + gammaln(count - possible + 1))
    log_ways -= gammaln(positive - possible + 1) + gammaln(others - positive + possible + 1)
    weights = np.exp(log_ways - log_ways.max())
    observed = weights[int(inside.sum()) - possible[0]]
    return float(min(1.0, weights[weights <= observed * (1 + 1e-7)].sum() / weights.sum()))


def _mean_test(inside: NDArray[np.float64], outside: NDArray[np.float64]) -> float:
    """Return a p value that is valid for few samples and for means dominated by a few large losses."""
    from scipy.stats import mannwhitneyu, ttest_ind

    if np.ptp(inside) == 0 and np.ptp(outside) == 0:
        return 1.0 if inside[0] == outside[0] else float(mannwhitneyu(inside, outside).pvalue)
    few = min(len(inside), len(outside)) <= _MAX_EXACT
    ranks = mannwhitneyu(inside, outside, method="auto" if few else "asymptotic").pvalue
    return float(max(ranks, ttest_ind(inside, outside, equal_var=False).pvalue))


def _group_by_test(groups: Sequence[Group]) -> list[tuple[Group, ...]]:
    """Return the groups of one column by test: two groups that are each the rest of the other share one."""
    compared = [group for group in groups if group.p is not None]
    complementary = len(compared) == len(groups) == 2 and groups[0].rest == groups[1].score
    return [tuple(compared)] if complementary else [(group,) for group in groups]


def _adjust_p_values(columns: Sequence[Sequence[tuple[Group, ...]]]) -> list[tuple[Group, ...]]:
    """Return the groups of each column with p values adjusted for the tests of all columns."""
    values = [test[0].p for tests in columns for test in tests if test[0].p is not None]
    adjusted = iter(holm(values))
    return [
        tuple(
            group if p is None else replace(group, p_adjusted=p, significant=p < SIGNIFICANCE_LEVEL)
            for test in tests
            for p in [None if test[0].p is None else next(adjusted)]
            for group in test
        )
        for tests in columns
    ]


def _reason_to_leave_out(masks: Mapping[str, NDArray[np.bool_]], count: int) -> str:
    """Return why a column's slices are not worth a table; "" where they are."""
    sizes = [int(mask.sum()) for mask in masks.values()]
    if len(sizes) < 2:
        return "has only one value"
    large = [size for name, size in zip(masks, sizes, strict=True) if size >= _MIN_SLICE and not name.startswith("(")]
    if len(large) < 2 or sum(large) < _MIN_SHARE * count:
        return f"has too few samples per value: less than half are in slices of at least {_MIN_SLICE}"
    return ""


def _build_column(masks: Mapping[str, NDArray[np.bool_]], count: int) -> SliceColumn:
    codes = np.full(count, -1, np.int16)
    for number, mask in enumerate(masks.values()):
        codes[mask] = number
    if (codes < 0).any():
        codes[codes < 0] = len(masks)
        return SliceColumn((*masks, "(missing)"), codes)
    return SliceColumn(tuple(masks), codes)
