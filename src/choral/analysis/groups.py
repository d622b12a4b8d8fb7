"""Classes and slices: which of them are worse than the rest, by more than chance, on a page that compares many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from choral.analysis.results import Group, Groups, SampleTable, Slicing
from choral.core.errors import ConfigError
from choral.data.shards.index import Index
from choral.ensembles.score_rows import Numbers
from choral.metrics.class_metrics import ClassMetrics
from choral.metrics.estimate import Estimate, resampled
from choral.metrics.intervals import LEVEL
from choral.metrics.metric_report import Metrics, class_measure
from choral.metrics.multilabel_metrics import LabelMetrics
from choral.metrics.multiple_comparisons import holm
from choral.metrics.per_sample import f1_of_counts
from choral.metrics.proportions import overlaps
from choral.metrics.regression_metrics import NumberMetrics
from choral.metrics.reliability import wilson, wilson_f1
from choral.scoring.predictor import Predictor
from choral.scoring.slices import columns_of, slices_of

SIGNIFICANT = 0.05
_LEAST = 5  # samples that two slices of a column must have each, for the column to be worth a table
_SHARE = 0.5  # of the samples that slices of at least so many must hold
_EXACT = 8  # samples: of no more, the rank-sum test counts cases instead of using a normal distribution
_NOTES = {
    "accuracy": "accuracy of each group against that of all others: p by Fisher's exact test",
    "loss": "mean loss of each group against that of all others: p the larger one of Welch's and the rank-sum test's",
    "error": "mean error of each group against that of all others: p the larger one of Welch's and the rank-sum test's",
}


def slicings(
    index: Index, keys: Sequence[str], measures: Mapping[str, NDArray[np.float64]] | None = None
) -> tuple[dict[str, Slicing], dict[str, str]]:
    """Return the samples by each column that makes slices worth comparing, and why other columns make none.

    Args:
        index: of the split.
        keys: (N,) of samples of it.
        measures: name to (N,) numbers that were measured of the images: slices by their quartiles; NaN is missing.
    """
    found: dict[str, Slicing] = {}
    left_out: dict[str, str] = {}
    columns = [name for name in columns_of(index) if not (name == "label" and index.dataset.task == "multiclass")]
    for column in columns:
        try:
            masks = slices_of(index, keys, column)
        except ConfigError:
            left_out[column] = "holds neither text, numbers nor truth values"
            continue
        if reason := _why_not(masks, len(keys)):
            left_out[column] = reason
        else:
            found[column] = _slicing(masks, len(keys))
    for name, values in (measures or {}).items():
        masks = quartiles(values)
        if not _why_not(masks, len(keys)):
            found[name] = _slicing(masks, len(keys))
    return found, left_out


def quartiles(values: NDArray[np.float64]) -> dict[str, NDArray[np.bool_]]:
    """Return slices of (N,) numbers by their quartiles, named by the least and largest in each; NaN is in none."""
    known = np.sort(values[~np.isnan(values)])
    if not len(known):
        return {}
    ends = np.unique(known[[(len(known) * quarter + 3) // 4 - 1 for quarter in (1, 2, 3, 4)]])
    place = np.searchsorted(ends, values)
    masks = [place == number for number in range(len(ends))]
    spans = [(float(values[mask].min()), float(values[mask].max())) for mask in masks]
    names = next(own for digits in range(3, 18) if len(set(own := _spans(spans, digits))) == len(spans))
    return dict(zip(names, masks, strict=True))


def _spans(spans: Sequence[tuple[float, float]], digits: int) -> list[str]:
    """Return names of spans; 17 digits tell any two apart."""
    return [f"{low:.{digits}g} to {high:.{digits}g}" for low, high in spans]


def groups_of(predictor: Predictor, samples: SampleTable, left_out: Mapping[str, str] | None = None) -> Groups:
    """Return classes and slices, each compared with all other samples.

    Compared is one number a sample, so that thousands of groups take seconds: whether it is right (multiclass), else its
    loss. Of two slices, each the rest of the other, the comparison counts once.

    Args:
        predictor: whose predictions are judged.
        samples: of it, with the slices.
        left_out: of `slicings`.
    """
    task = predictor.ledger.meta.task
    metric = {"multiclass": "accuracy", "multilabel": "loss", "regression": "error"}[task]
    shares = task == "multiclass"
    scores = samples.right.astype(np.float64) if shares else samples.loss.astype(np.float64)
    comparing = _Comparing(scores, shares)
    classes = _classes(predictor, samples, comparing)
    slices = {
        column: tuple(
            comparing.group(column, value, slicing.codes == code) for code, value in enumerate(slicing.values)
        )
        for column, slicing in samples.slices.items()
    }
    tests = [_tests(groups) for groups in (classes, *slices.values())]
    adjusted = iter(_adjusted(tests))
    comparisons = sum(own[0].p is not None for groups in tests for own in groups)
    return Groups(
        metric=metric,
        percent=shares,
        higher_is_better=shares,
        classes=next(adjusted),
        slices={column: next(adjusted) for column in slices},
        comparisons=comparisons,
        left_out=dict(left_out or {}),
        note=f"{_NOTES[metric]}, adjusted after Holm for all {comparisons} comparisons of this page",
    )


class _Comparing:
    """Means of one number a sample, of some samples against the others.

    Args:
        scores: (N,).
        shares: whether all are 0 or 1.
    """

    def __init__(self, scores: NDArray[np.float64], shares: bool) -> None:
        self._scores, self._shares = scores, shares

    def group(
        self, column: str, value: str, mask: NDArray[np.bool_], details: Mapping[str, Numbers | None] | None = None
    ) -> Group:
        """Return a group, p not yet adjusted."""
        own, rest = self._scores[mask], self._scores[~mask]
        one, other = (self._estimate(values) for values in (own, rest))
        difference = p = None
        if one is not None and other is not None:
            found = one.minus(other)
            difference = Numbers(value=found.value, low=found.low, high=found.high)
            p = _fisher(own, rest) if self._shares else _of_losses(own, rest)
        return Group(
            column=column,
            value=value,
            n=int(mask.sum()),
            score=_numbers(one),
            rest=_numbers(other),
            difference=difference,
            p=p,
            p_adjusted=None,
            significant=False,
            details=dict(details or {}),
        )

    def _estimate(self, values: NDArray[np.float64]) -> Estimate | None:
        """Return the mean with Wilson's interval, of losses Student's; None where there is no interval."""
        if len(values) < (1 if self._shares else 2):
            return None
        mean, empty = float(values.mean()), np.empty(0)
        if self._shares:
            return Estimate(mean, empty, wilson(mean, len(values)), paired=False)
        from scipy.special import stdtrit  # only where needed: it takes a third of a second to import

        half = float(stdtrit(len(values) - 1, (1 + LEVEL) / 2) * values.std(ddof=1) / np.sqrt(len(values)))
        return Estimate(mean, empty, (mean - half, mean + half), paired=False)


def _classes(predictor: Predictor, samples: SampleTable, comparing: _Comparing) -> tuple[Group, ...]:
    """Return a group of each class or label; a target is all samples, and compared with nothing."""
    ledger = predictor.ledger
    metrics = predictor.measured()
    details = _target_details(metrics, len(ledger)) if isinstance(metrics, NumberMetrics) else class_details(metrics)
    groups = []
    for number, name in enumerate(ledger.classes):
        if isinstance(metrics, NumberMetrics):
            groups.append(Group("target", name, len(ledger), None, None, None, None, None, False, details[number]))
        elif isinstance(metrics, LabelMetrics):
            groups.append(comparing.group("label", name, samples.labels[:, number], details[number]))
        else:
            groups.append(comparing.group("class", name, samples.labels == number, details[number]))
    return tuple(groups)


def class_details(metrics: ClassMetrics | LabelMetrics) -> list[dict[str, Numbers | None]]:
    """Return precision, recall and F1 of each class or label with Wilson's intervals; None where not defined."""
    hits, given, labels = overlaps(metrics)
    shares = {"precision": (hits, given), "recall": (hits, labels)}
    found: list[dict[str, Numbers | None]] = []
    for number in range(len(hits)):
        own: dict[str, Numbers | None] = {}
        for metric, (right, all_of) in shares.items():
            count = int(all_of[number])
            share = right[number] / count if count else 0.0
            own[metric] = _with_ends(share, wilson(share, count)) if count else None
        union = int(given[number] + labels[number] - hits[number])
        f1 = float(f1_of_counts(hits, given - hits, labels - hits)[number])
        own["f1"] = _with_ends(f1, wilson_f1(f1, union)) if union else None
        found.append(own)
    return found


def _target_details(metrics: Metrics, count: int) -> list[dict[str, Numbers | None]]:
    found = resampled(class_measure(metrics), count)
    targets = next(iter(found.values()))[0].shape[0]
    details: list[dict[str, Numbers | None]] = []
    for number in range(targets):
        estimates = {name: Estimate(float(value[number]), draws[:, number]) for name, (value, draws) in found.items()}
        details.append({name: _numbers(estimate) for name, estimate in estimates.items()})
    return details


def _numbers(estimate: Estimate | None) -> Numbers | None:
    if estimate is None:
        return None
    found = estimate.interval
    defined = np.isfinite([found.value, found.low, found.high]).all()
    return Numbers(value=found.value, low=found.low, high=found.high) if defined else None


def _with_ends(value: float, ends: tuple[float, float]) -> Numbers:
    return Numbers(value=float(value), low=float(ends[0]), high=float(ends[1]))


def _fisher(own: NDArray[np.float64], rest: NDArray[np.float64]) -> float:
    """Return the two-sided p value of Fisher's exact test; a hundredth of the time of scipy's for large counts."""
    from scipy.special import gammaln

    count, others, right = len(own), len(rest), int(own.sum() + rest.sum())
    possible = np.arange(max(0, right - others), min(count, right) + 1)
    ways = -(gammaln(possible + 1) + gammaln(count - possible + 1))
    ways -= gammaln(right - possible + 1) + gammaln(others - right + possible + 1)
    shares = np.exp(ways - ways.max())
    observed = shares[int(own.sum()) - possible[0]]
    return float(min(1.0, shares[shares <= observed * (1 + 1e-7)].sum() / shares.sum()))


def _of_losses(own: NDArray[np.float64], rest: NDArray[np.float64]) -> float:
    """Return a p value that holds for few samples as well as for means that a few large losses make."""
    from scipy.stats import mannwhitneyu, ttest_ind

    if np.ptp(own) == 0 and np.ptp(rest) == 0:
        return 1.0 if own[0] == rest[0] else float(mannwhitneyu(own, rest).pvalue)
    few = min(len(own), len(rest)) <= _EXACT
    ranks = mannwhitneyu(own, rest, method="auto" if few else "asymptotic").pvalue
    return float(max(ranks, ttest_ind(own, rest, equal_var=False).pvalue))


def _tests(groups: Sequence[Group]) -> list[tuple[Group, ...]]:
    """Return the groups of one column by the comparison that they make: two that part all samples make one together."""
    compared = [group for group in groups if group.p is not None]
    both = len(compared) == len(groups) == 2 and groups[0].rest == groups[1].score
    return [tuple(compared)] if both else [(group,) for group in groups]


def _adjusted(columns: Sequence[Sequence[tuple[Group, ...]]]) -> list[tuple[Group, ...]]:
    """Return the groups of each column with the p values that count the comparisons of all of them."""
    values = [own[0].p for tests in columns for own in tests if own[0].p is not None]
    adjusted = iter(holm(values))
    return [
        tuple(
            group if p is None else replace(group, p_adjusted=p, significant=p < SIGNIFICANT)
            for own in tests
            for p in [None if own[0].p is None else next(adjusted)]
            for group in own
        )
        for tests in columns
    ]


def _why_not(masks: Mapping[str, NDArray[np.bool_]], count: int) -> str:
    """Return why slices are not worth a table; "" where they are."""
    sizes = [int(mask.sum()) for mask in masks.values()]
    if len(sizes) < 2:
        return "has one value"
    large = [size for name, size in zip(masks, sizes, strict=True) if size >= _LEAST and not name.startswith("(")]
    if len(large) < 2 or sum(large) < _SHARE * count:
        return f"has few samples a value: less than half are in slices of at least {_LEAST}"
    return ""


def _slicing(masks: Mapping[str, NDArray[np.bool_]], count: int) -> Slicing:
    codes = np.full(count, -1, np.int16)
    for number, mask in enumerate(masks.values()):
        codes[mask] = number
    if (codes < 0).any():
        codes[codes < 0] = len(masks)
        return Slicing((*masks, "(missing)"), codes)
    return Slicing(tuple(masks), codes)
