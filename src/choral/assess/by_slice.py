"""Metrics of slices: of the samples that share a value of their metadata, each compared with all the others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from choral.assess.card import defined
from choral.assess.predictor import Predictor
from choral.ensemble.rows import SEED, Numbers
from choral.score.card import Metrics, estimates_of, measured, ranks
from choral.score.estimate import Estimate, resampled
from choral.score.intervals import DRAWS, LEVEL
from choral.score.number_metrics import NumberMetrics
from choral.score.ranking import affordable_draws

_WORK = 100_000_000  # numbers that are ranked in each draw; with more, rankings of slices would take minutes
_DEVIATIONS = float(
    ndtri((1 + LEVEL) / 2)
)  # from the middle of an interval to its end, were it of a normal distribution


class SliceMetric(TypedDict):
    """A metric of one slice.

    `difference` is to the rest, None where one of the two is not defined; `p` that of no difference, from the end of the
    interval that is nearer to it as of a normal distribution; `p_adjusted` after Holm's correction for all slices.
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
    bootstrap: dict[str, float]


def slices_json(predictor: Predictor, slices: Mapping[str, NDArray[np.bool_]], column: str) -> SlicesJson:
    """Return the metrics of each slice and its difference to the rest, with 95 % intervals on the same draws of samples.

    Samples are drawn from the whole split, so that also the size of a slice varies, as it would in other samples of the kind.

    Args:
        predictor: whose predictions are judged.
        slices: name to an (N,) mask over the ledger's samples, none of them empty. Of very many or large ones there are
            no metrics that need a ranking.
        column: that they are by.
    """
    ledger = predictor.ledger
    masks = [np.ones(len(ledger), dtype=np.bool_), *slices.values(), *(~mask for mask in slices.values())]
    overall, *found_of = _estimates(
        predictor, [mask for mask in masks if mask.any()], _numbers(predictor, slices) <= _WORK
    )
    own = dict(zip(slices, found_of[: len(slices)], strict=True))
    rest = dict(zip(slices, found_of[len(slices) :] or [{}], strict=True))
    comparisons = 1 if len(slices) == 2 else len(slices) if len(slices) > 2 else 0
    found = {
        name: {metric: _compared(estimate, rest[name].get(metric)) for metric, estimate in metrics.items()}
        for name, metrics in own.items()
    }
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
        bootstrap={"draws": DRAWS, "level": LEVEL, "seed": SEED},
    )


def _numbers(predictor: Predictor, slices: Mapping[str, NDArray[np.bool_]]) -> int:
    """Return how many numbers the rankings of all slices, and of what is not in them, look at in a draw."""
    return predictor.predictions.size * (len(slices) + 1)


def _estimates(predictor: Predictor, masks: Sequence[NDArray[np.bool_]], ranked: bool) -> list[dict[str, Estimate]]:
    """Return the metrics of some samples, for each mask, on the same draws of all samples.

    Args:
        predictor: whose predictions are judged.
        masks: (N,) each.
        ranked: with those that need a ranking.
    """
    ledger = predictor.ledger
    parts = [(_metrics(predictor, mask), np.flatnonzero(mask)) for mask in masks]

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
    for number, (metrics, _) in enumerate(parts):
        own = {name.partition(" ")[2]: values for name, values in found.items() if name.startswith(f"{number} ")}
        if isinstance(metrics, NumberMetrics):
            result.append({name: Estimate(float(value), draws) for name, (value, draws) in own.items()})
        else:
            result.append(estimates_of(metrics, own))
    return result


def _metrics(predictor: Predictor, mask: NDArray[np.bool_]) -> Metrics:
    ledger, probabilities = predictor.ledger, predictor.gives_probabilities
    return measured(
        ledger.meta.task,
        ledger.labels[mask],
        predictor.predictions[mask],
        probabilities=probabilities,
        decided=None if predictor.decided is None else predictor.decided[mask],
    )


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
        value = difference["value"]
        spread = abs(value - difference["low" if value > 0 else "high"]) / _DEVIATIONS
        p = 2 * float(ndtr(-abs(value) / spread)) if spread > 0 else float(value == 0)
    return SliceMetric(
        score=defined(own.interval),
        rest=defined(rest.interval) if rest is not None else None,
        difference=difference,
        p=p,
        p_adjusted=None,
    )


def _adjust(cells: list[SliceMetric], comparisons: int) -> None:
    """Fill in p values after Holm 1979, "A simple sequentially rejective multiple test procedure"."""
    known = sorted((cell for cell in cells if cell["p"] is not None), key=lambda cell: cell["p"] or 0.0)
    largest = 0.0
    for place, cell in enumerate(known):
        p = cell["p"]
        assert p is not None and math.isfinite(p)
        largest = max(largest, min(1.0, p * max(1, comparisons - place)))
        cell["p_adjusted"] = largest
