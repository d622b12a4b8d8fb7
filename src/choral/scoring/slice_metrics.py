"""Metrics of slices: of the samples that share a value of their metadata, each compared with all the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from choral.ensembles.score_rows import SEED, Numbers
from choral.metrics.estimate import Estimate, p_of, resampled
from choral.metrics.intervals import DRAWS, LEVEL, Interval
from choral.metrics.metric_report import ORDER, Metrics, estimates_of, ranks
from choral.metrics.multiple_comparisons import holm
from choral.metrics.proportions import RANKED, SHARES
from choral.metrics.ranking import affordable_draws
from choral.metrics.regression_metrics import NumberMetrics
from choral.metrics.small_sample_intervals import of_few
from choral.scoring.predictor import Predictor
from choral.scoring.predictor_report import defined

_FEW = 200  # samples: of fewer, a difference has to be more than chance gives slices of this size, too
_CHUNK = 1 << 21  # samples in draws that are held at a time
_WORK = 100_000_000  # numbers that are ranked in each draw; with more, rankings of slices would take minutes


class SliceMetric(TypedDict):
    """A metric of one slice.

    `difference` is to the rest, None where one of the two is not defined; `p` that of no difference, from the end of the
    interval that is nearer to it as of a normal distribution, and of few samples no smaller than that of a permutation
    test; `p_adjusted` after Holm's correction for all slices.
    """

    score: Numbers | None
    rest: Numbers | None
    difference: Numbers | None
    p: float | None
    p_adjusted: float | None


class SliceJson(TypedDict):
    """One slice: samples, and metrics by name; of several targets "METRIC TARGET"."""

    name: str
    n: int
    metrics: dict[str, SliceMetric]


class SlicesJson(TypedDict):
    """What `slices_json` returns."""

    name: str
    task: str
    split: str
    column: str
    n: int
    overall: dict[str, Numbers | None]
    slices: list[SliceJson]
    comparisons: int  # of slices with the rest, a metric; of two slices they are one and the same
    left_out: list[str]  # metrics whose rankings of so many slices and classes would take minutes
    bootstrap: dict[str, float]


def slices_json(predictor: Predictor, slices: Mapping[str, NDArray[np.bool_]], column: str) -> SlicesJson:
    """Return the metrics of each slice and its difference to the rest, with 95 % intervals on the same draws of samples.

    Samples are drawn from the whole split, so that also the size of a slice varies, as it would in other samples of the kind.
    Of few samples intervals are wider than the draws say, see `choral.metrics.small_sample_intervals`.

    Args:
        predictor: whose predictions are judged.
        slices: name to an (N,) mask over the ledger's samples, none of them empty. Of very many or large ones
            metrics that need a ranking are left out, and named.
        column: that they are by.
    """
    ledger = predictor.ledger
    masks = [np.ones(len(ledger), dtype=np.bool_), *slices.values(), *(~mask for mask in slices.values())]
    ranked = _numbers(predictor, slices) <= _WORK
    overall, *found_of = _estimates(predictor, [mask for mask in masks if mask.any()], ranked)
    own = dict(zip(slices, found_of[: len(slices)], strict=True))
    rest = dict(zip(slices, found_of[len(slices) :] or [{}], strict=True))
    comparisons = 1 if len(slices) == 2 else len(slices) if len(slices) > 2 else 0
    found = {
        name: {metric: _compared(estimate, rest[name].get(metric)) for metric, estimate in metrics.items()}
        for name, metrics in own.items()
    }
    for name, mask in slices.items():
        count = min(int(mask.sum()), int((~mask).sum()))
        if 0 < count < _FEW:
            for metric, gaps in _gaps_by_chance(predictor, count).items():
                _beyond_chance(found[name][metric], gaps)
    for metric in overall:
        _adjust([metrics[metric] for metrics in found.values()], comparisons)
    return SlicesJson(
        name=predictor.name,
        task=ledger.meta.task,
        split=ledger.meta.split,
        column=column,
        n=len(ledger),
        overall={metric: defined(estimate.interval) for metric, estimate in overall.items()},
        slices=[SliceJson(name=name, n=int(mask.sum()), metrics=found[name]) for name, mask in slices.items()],
        comparisons=comparisons,
        left_out=[] if ranked else _left_out(predictor),
        bootstrap={"draws": DRAWS, "level": LEVEL, "seed": SEED},
    )


def _numbers(predictor: Predictor, slices: Mapping[str, NDArray[np.bool_]]) -> int:
    """Return how many numbers the rankings of all slices, and of what is not in them, look at in a draw."""
    return predictor.predictions.size * (len(slices) + 1)


def _left_out(predictor: Predictor) -> list[str]:
    """Return the metrics that need a ranking."""
    if not ranks(predictor.measured()):
        return []
    return [metric for metric in ORDER[predictor.ledger.meta.task] if metric in RANKED]


def _estimates(predictor: Predictor, masks: Sequence[NDArray[np.bool_]], ranked: bool) -> list[dict[str, Estimate]]:
    """Return the metrics of some samples, for each mask, on the same draws of all samples.

    Args:
        predictor: whose predictions are judged.
        masks: (N,) each.
        ranked: with those that need a ranking.
    """
    ledger = predictor.ledger
    parts = [(predictor.measured(mask), np.flatnonzero(mask)) for mask in masks]

    def measure(times: NDArray[np.int64], ranking: bool) -> dict[str, NDArray[np.float64]]:
        return {
            f"{number} {name}": values
            for number, (metrics, rows) in enumerate(parts)
            for name, values in _measured(metrics, times[:, rows], ranking, ledger.classes).items()
        }

    found = resampled(lambda times: measure(times, False), len(ledger), seed=SEED)
    if ranked and ranks(parts[0][0]):
        draws = affordable_draws(predictor.predictions.size * len(masks))
        found |= resampled(lambda times: measure(times, True), len(ledger), seed=SEED, draws=draws)
    result: list[dict[str, Estimate]] = []
    for number, (metrics, rows) in enumerate(parts):
        own = {name.partition(" ")[2]: values for name, values in found.items() if name.startswith(f"{number} ")}
        if isinstance(metrics, NumberMetrics):
            estimates = {name: Estimate(float(value), draws) for name, (value, draws) in own.items()}
        else:
            estimates = estimates_of(metrics, own)
        if len(rows) < len(ledger):
            estimates = {name: of_few(metrics, name.partition(" ")[0], one) for name, one in estimates.items()}
        result.append(estimates)
    return result


def _measured(
    metrics: Metrics, times: NDArray[np.int64], ranking: bool, targets: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    if not isinstance(metrics, NumberMetrics):
        if not ranking:
            return metrics.sums(times)
        return {name: values for name, values in metrics.rankings(times).items() if not name.endswith("/class")}
    return {
        metric if len(targets) == 1 else f"{metric} {target}": values[:, number]
        for metric, values in metrics.by_target(times).items()
        for number, target in enumerate(targets)
    }


def _compared(own: Estimate, rest: Estimate | None) -> SliceMetric:
    difference = defined(own.minus(rest)) if rest is not None else None
    p = None
    if difference is not None:
        p = p_of(Interval(**difference))
    return SliceMetric(
        score=defined(own.interval),
        rest=defined(rest.interval) if rest is not None else None,
        difference=difference,
        p=p,
        p_adjusted=None,
    )


def _gaps_by_chance(predictor: Predictor, count: int) -> dict[str, NDArray[np.float64]]:
    """Return how far so many samples, chosen at random, are from all the others: name of a metric to (draws,) of either sign.

    Of metrics that are means of anything but shares. Few losses, or errors of numbers, have no hard sample among them more
    often than not, and their spread says nothing of it: of slices of two samples an interval made of it leaves out the
    truth in a third.

    Args:
        predictor: whose predictions are judged.
        count: samples of the slice, or of the rest where these are fewer.
    """
    total = len(predictor.ledger)
    metrics, targets = predictor.measured(), predictor.ledger.classes
    random = np.random.default_rng(SEED)
    step = max(1, _CHUNK // total)
    drawn: dict[str, list[NDArray[np.float64]]] = {}
    for start in range(0, DRAWS, step):
        times = np.zeros((min(step, DRAWS - start), total), dtype=np.int64)
        for row in times:
            row[random.choice(total, count, replace=False, shuffle=False)] = 1
        one, other = (_measured(metrics, part, False, targets) for part in (times, 1 - times))
        for name, values in one.items():
            if name.partition(" ")[0] not in SHARES:
                drawn.setdefault(name, []).append(values - other[name])
    return {name: np.concatenate(parts) for name, parts in drawn.items()}


def _beyond_chance(cell: SliceMetric, gaps: NDArray[np.float64]) -> None:
    """Make an interval no narrower, and a p value no smaller, than chance says; see `_gaps_by_chance`."""
    found, far = cell["difference"], np.abs(gaps[np.isfinite(gaps)])
    if found is None or cell["p"] is None or not len(far):
        return
    value, half = found["value"], round(float(np.quantile(far, LEVEL)), 12)
    cell["difference"] = Numbers(
        value=value, low=min(found["low"], value - half), high=max(found["high"], value + half)
    )
    cell["p"] = max(cell["p"], (1 + int((far >= abs(value) - 1e-12).sum())) / (1 + len(far)))


def _adjust(cells: list[SliceMetric], comparisons: int) -> None:
    """Fill in p values after Holm's correction."""
    known = [cell for cell in cells if cell["p"] is not None]
    for cell, p in zip(known, holm([cell["p"] or 0.0 for cell in known], comparisons), strict=True):
        cell["p_adjusted"] = p
