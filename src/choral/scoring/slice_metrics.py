"""Metrics of slices (samples that share a metadata value), each compared with the rest of the samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from choral.ensembles.score_rows import SEED, IntervalDict
from choral.metrics.estimate import Estimate, bootstrap_metrics, difference_p_value
from choral.metrics.intervals import DRAWS, LEVEL, Interval
from choral.metrics.metric_report import METRIC_NAMES, Metrics, build_estimates, has_rankings
from choral.metrics.multiple_comparisons import holm
from choral.metrics.proportions import PROPORTION_METRICS, RANKING_METRICS
from choral.metrics.ranking import affordable_draws
from choral.metrics.regression_metrics import RegressionMetrics
from choral.metrics.small_sample_intervals import widen_for_small_sample
from choral.scoring.predictor import Predictor
from choral.scoring.predictor_report import interval_or_none

_SMALL_SLICE = 200  # samples; below, differences are also tested against random slices of the same size
_CHUNK = 1 << 21  # sample counts of draws that are in memory together
_MAX_RANKED = 100_000_000  # numbers per draw; ranking more would take minutes


class SliceMetric(TypedDict):
    """A metric of one slice.

    `difference` is slice minus rest, None where one of them is undefined. `p` is the p value of no difference, from the end
    of the interval nearer to 0 under a normal distribution; with few samples it is at least that of a permutation test.
    `p_adjusted` has Holm's correction for all slices.
    """

    score: IntervalDict | None
    rest: IntervalDict | None
    difference: IntervalDict | None
    p: float | None
    p_adjusted: float | None


class SliceRow(TypedDict):
    """One slice: number of samples, and metrics by name; with several targets by "METRIC TARGET"."""

    name: str
    n: int
    metrics: dict[str, SliceMetric]


class SliceReport(TypedDict):
    """Result of `compute_slice_metrics`: plain JSON."""

    name: str
    task: str
    split: str
    column: str
    n: int
    overall: dict[str, IntervalDict | None]
    slices: list[SliceRow]
    comparisons: int  # of a slice with the rest, per metric; two slices make one comparison
    left_out: list[str]  # ranking metrics that would take minutes with so many slices and classes
    bootstrap: dict[str, float]


def compute_slice_metrics(predictor: Predictor, slices: Mapping[str, NDArray[np.bool_]], column: str) -> SliceReport:
    """Return the metrics of each slice and its differences to the rest, with 95 % intervals on the same bootstrap draws.

    Samples are drawn from the whole split, so the size of a slice varies between draws, as it would between data sets.
    Intervals of few samples are wider than those of the draws, see `choral.metrics.small_sample_intervals`.

    Args:
        predictor: to evaluate.
        slices: name to a non-empty (N,) mask over the ledger's samples. With very many or large slices, metrics that need a
            ranking are left out and listed.
        column: that defines the slices.
    """
    ledger = predictor.ledger
    masks = [np.ones(len(ledger), dtype=np.bool_), *slices.values(), *(~mask for mask in slices.values())]
    ranked = _count_ranked_numbers(predictor, slices) <= _MAX_RANKED
    overall, *estimates = _estimate_masks(predictor, [mask for mask in masks if mask.any()], ranked)
    by_slice = dict(zip(slices, estimates[: len(slices)], strict=True))
    rest = dict(zip(slices, estimates[len(slices) :] or [{}], strict=True))
    comparisons = 1 if len(slices) == 2 else len(slices) if len(slices) > 2 else 0
    found = {
        name: {metric: _compare_with_rest(estimate, rest[name].get(metric)) for metric, estimate in metrics.items()}
        for name, metrics in by_slice.items()
    }
    for name, mask in slices.items():
        count = min(int(mask.sum()), int((~mask).sum()))
        if 0 < count < _SMALL_SLICE:
            for metric, differences in _draw_random_differences(predictor, count).items():
                _widen_to_random_differences(found[name][metric], differences)
    for metric in overall:
        _adjust_p_values([metrics[metric] for metrics in found.values()], comparisons)
    return SliceReport(
        name=predictor.name,
        task=ledger.meta.task,
        split=ledger.meta.split,
        column=column,
        n=len(ledger),
        overall={metric: interval_or_none(estimate.interval) for metric, estimate in overall.items()},
        slices=[SliceRow(name=name, n=int(mask.sum()), metrics=found[name]) for name, mask in slices.items()],
        comparisons=comparisons,
        left_out=[] if ranked else _list_left_out(predictor),
        bootstrap={"draws": DRAWS, "level": LEVEL, "seed": SEED},
    )


def _count_ranked_numbers(predictor: Predictor, slices: Mapping[str, NDArray[np.bool_]]) -> int:
    """Return how many numbers are ranked per draw, for all slices and their complements."""
    return predictor.predictions.size * (len(slices) + 1)


def _list_left_out(predictor: Predictor) -> list[str]:
    """Return the metrics that need a ranking."""
    if not has_rankings(predictor.build_metrics()):
        return []
    return [metric for metric in METRIC_NAMES[predictor.ledger.meta.task] if metric in RANKING_METRICS]


def _estimate_masks(
    predictor: Predictor, masks: Sequence[NDArray[np.bool_]], ranked: bool
) -> list[dict[str, Estimate]]:
    """Return the metrics of the samples of each mask, on the same draws of all samples.

    Args:
        predictor: to evaluate.
        masks: (N,) each.
        ranked: whether to include metrics that need a ranking.
    """
    ledger = predictor.ledger
    parts = [(predictor.build_metrics(mask), np.flatnonzero(mask)) for mask in masks]

    def measure(times: NDArray[np.int64], ranking: bool) -> dict[str, NDArray[np.float64]]:
        return {
            f"{number} {name}": values
            for number, (metrics, rows) in enumerate(parts)
            for name, values in _compute_by_name(metrics, times[:, rows], ranking, ledger.classes).items()
        }

    found = bootstrap_metrics(lambda times: measure(times, False), len(ledger), seed=SEED)
    if ranked and has_rankings(parts[0][0]):
        draws = affordable_draws(predictor.predictions.size * len(masks))
        found |= bootstrap_metrics(lambda times: measure(times, True), len(ledger), seed=SEED, draws=draws)
    result: list[dict[str, Estimate]] = []
    for number, (metrics, rows) in enumerate(parts):
        own = {name.partition(" ")[2]: values for name, values in found.items() if name.startswith(f"{number} ")}
        if isinstance(metrics, RegressionMetrics):
            estimates = {name: Estimate(float(value), draws) for name, (value, draws) in own.items()}
        else:
            estimates = build_estimates(metrics, own)
        if len(rows) < len(ledger):
            estimates = {
                name: widen_for_small_sample(metrics, name.partition(" ")[0], one) for name, one in estimates.items()
            }
        result.append(estimates)
    return result


def _compute_by_name(
    metrics: Metrics, times: NDArray[np.int64], ranking: bool, targets: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    if not isinstance(metrics, RegressionMetrics):
        if not ranking:
            return metrics.compute_overall(times)
        return {name: values for name, values in metrics.compute_rankings(times).items() if not name.endswith("/class")}
    return {
        metric if len(targets) == 1 else f"{metric} {target}": values[:, number]
        for metric, values in metrics.compute_by_target(times).items()
        for number, target in enumerate(targets)
    }


def _compare_with_rest(own: Estimate, rest: Estimate | None) -> SliceMetric:
    difference = interval_or_none(own.minus(rest)) if rest is not None else None
    p = None
    if difference is not None:
        p = difference_p_value(Interval(**difference))
    return SliceMetric(
        score=interval_or_none(own.interval),
        rest=interval_or_none(rest.interval) if rest is not None else None,
        difference=difference,
        p=p,
        p_adjusted=None,
    )


def _draw_random_differences(predictor: Predictor, count: int) -> dict[str, NDArray[np.float64]]:
    """Return differences between random slices of a size and the rest: metric to (draws,) signed differences.

    Only for metrics that are means of losses or errors, not of proportions. A few losses usually include no hard sample, and
    their spread does not show that one could occur: for slices of two samples, an interval from their spread misses the
    true value in a third of cases.

    Args:
        predictor: to evaluate.
        count: samples of the slice, or of the rest if that is smaller.
    """
    total = len(predictor.ledger)
    metrics, targets = predictor.build_metrics(), predictor.ledger.classes
    random = np.random.default_rng(SEED)
    step = max(1, _CHUNK // total)
    drawn: dict[str, list[NDArray[np.float64]]] = {}
    for start in range(0, DRAWS, step):
        times = np.zeros((min(step, DRAWS - start), total), dtype=np.int64)
        for row in times:
            row[random.choice(total, count, replace=False, shuffle=False)] = 1
        one, other = (_compute_by_name(metrics, part, False, targets) for part in (times, 1 - times))
        for name, values in one.items():
            if name.partition(" ")[0] not in PROPORTION_METRICS:
                drawn.setdefault(name, []).append(values - other[name])
    return {name: np.concatenate(parts) for name, parts in drawn.items()}


def _widen_to_random_differences(cell: SliceMetric, differences: NDArray[np.float64]) -> None:
    """Widen an interval and raise a p value to those of random slices of the same size, see `_draw_random_differences`."""
    found, far = cell["difference"], np.abs(differences[np.isfinite(differences)])
    if found is None or cell["p"] is None or not len(far):
        return
    value, half = found["value"], round(float(np.quantile(far, LEVEL)), 12)
    cell["difference"] = IntervalDict(
        value=value, low=min(found["low"], value - half), high=max(found["high"], value + half)
    )
    cell["p"] = max(cell["p"], (1 + int((far >= abs(value) - 1e-12).sum())) / (1 + len(far)))


def _adjust_p_values(cells: list[SliceMetric], comparisons: int) -> None:
    """Fill in p values with Holm's correction."""
    tested = [cell for cell in cells if cell["p"] is not None]
    for cell, p in zip(tested, holm([cell["p"] or 0.0 for cell in tested], comparisons), strict=True):
        cell["p_adjusted"] = p
