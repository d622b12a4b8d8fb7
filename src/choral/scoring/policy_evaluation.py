"""What a calibration and a decision are worth on samples that nothing was fitted to or chosen on: plain JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from choral.ensembles.score_rows import SEED, numbers
from choral.metrics.calibration_error import expected_calibration_error
from choral.metrics.conformal import coverage_spread
from choral.metrics.estimate import Estimate, resampled
from choral.metrics.intervals import DRAWS, Interval, bootstrap, interval_of, resampled_means
from choral.metrics.metric_report import estimates_of, measured, overall_measure
from choral.metrics.per_sample import top_class
from choral.metrics.reliability import reliability_bins, wilson
from choral.metrics.selective import area_of, resampled_areas, selective_curve
from choral.scoring.policy import PredictionPolicy

BINS = 10
_SHOWN = ("accuracy", "log_loss", "brier", "ece")
COVERAGES = tuple(number / 100 for number in range(10, 101))
_RANKED = 10_000_000  # samples that are ranked in all draws together: seconds; 200 draws at least
_SET_SIZES = 5  # that are counted one by one


def before_and_after(
    task: str, labels: NDArray[Any], before: NDArray[np.float32], after: NDArray[np.float32]
) -> dict[str, Any]:
    """Return metrics of uncalibrated and calibrated probabilities with their paired difference, bins, and curves.

    Args:
        task: multiclass or multilabel.
        labels: (N,) or (N, labels) of what is scored.
        before, after: (N, classes) probabilities.
    """
    both = {"before": before, "after": after}
    found: dict[str, Any] = {"metrics": _metrics(task, labels, both)}
    sure = {name: decisions(task, labels, values) for name, values in both.items()}
    found["plain_ece"] = {name: expected_calibration_error(*pair) for name, pair in sure.items()}
    found["reliability"] = {name: [asdict(one) for one in reliability_bins(*pair, BINS)] for name, pair in sure.items()}
    if task == "multiclass":
        draws = int(np.clip(_RANKED // len(labels), 200, DRAWS))
        confidences, hits = [pair[0] for pair in sure.values()], [pair[1] for pair in sure.values()]
        drawn = resampled_areas(confidences, hits, seed=SEED, draws=draws)
        areas = [Estimate(area_of(*pair), column) for pair, column in zip(sure.values(), drawn.T, strict=True)]
        found["metrics"]["aurc"] = _paired(*areas)
        curve = selective_curve(*sure["after"], COVERAGES, seed=SEED, draws=draws)
        found["selective"] = {
            name: np.round(getattr(curve, name), 6).tolist() for name in ("coverage", "accuracy", "low", "high")
        }
    return found


def decisions(
    task: str, labels: NDArray[Any], probabilities: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return how sure each decision is and whether it is right.

    Multiclass: the (N,) probability of the most probable class. Multilabel: the (N labels,) probability of each label, and
    whether it applies.
    """
    if task == "multilabel":
        return probabilities.reshape(-1), labels.reshape(-1) > 0
    return probabilities.max(axis=1), top_class(probabilities) == labels


def _metrics(task: str, labels: NDArray[Any], both: Mapping[str, NDArray[np.float32]]) -> dict[str, Any]:
    """Return those of the card that calibration is about, and the accuracy, which it may change."""
    estimates = []
    for values in both.values():
        metrics = measured(task, labels, values)
        estimates.append(estimates_of(metrics, resampled(overall_measure(metrics), len(labels), seed=SEED)))
    before, after = estimates
    return {name: _paired(before[name], after[name]) for name in _SHOWN if name in before}


def _paired(before: Estimate, after: Estimate) -> dict[str, Any]:
    """Return before, after and the difference, each with its interval."""
    same = before.value == after.value and np.array_equal(before.draws, after.draws)  # nothing was changed
    difference = Interval(0.0, 0.0, 0.0) if same else after.minus(before)
    found = {"before": before.interval, "after": after.interval, "difference": difference}
    return {name: numbers(interval) for name, interval in found.items()}


def judged_sets(answering: PredictionPolicy, labels: NDArray[Any], predictions: NDArray[np.float32]) -> dict[str, Any]:
    """Return how often the sets or intervals of an answer hold the truth, and how large they are."""
    conformal = answering.conformal
    assert conformal is not None, "there are sets"
    spreads = [coverage_spread(samples, conformal.coverage) for samples in conformal.samples]
    found: dict[str, Any] = {
        "score": conformal.score,
        "coverage": conformal.coverage,
        "samples": list(conformal.samples),
        "expected": [list(one) for one in spreads],
    }
    if answering.task == "regression":
        widths = np.array(conformal.quantiles)
        held = np.abs(predictions.astype(np.float64) - labels) <= widths
        half = {
            name: width if math.isfinite(width) else None
            for name, width in zip(answering.classes, widths.tolist(), strict=True)
        }
        found |= {"half_width": half, "each": _each(answering, held, np.ones_like(held))}
        return found
    sets = conformal.sets(predictions)
    sizes = sets.sum(axis=1)
    found["size"] = numbers(bootstrap(sizes.astype(np.float64), seed=SEED))
    counts = np.bincount(np.minimum(sizes, _SET_SIZES), minlength=_SET_SIZES + 1)
    found["sizes"] = {str(size) if size < _SET_SIZES else f"{size}+": int(count) for size, count in enumerate(counts)}
    if answering.task == "multilabel":
        return {**found, "each": _each(answering, sets, labels > 0)}
    own = sets[np.arange(len(labels)), labels]
    of_class = labels[:, None] == np.arange(len(answering.classes))
    covered = numbers(bootstrap(own.astype(np.float64), seed=SEED))
    return {
        **found,
        "covered": covered,
        "each": _each(answering, np.broadcast_to(own[:, None], of_class.shape), of_class),
    }


def _each(answering: PredictionPolicy, held: NDArray[np.bool_], counted: NDArray[np.bool_]) -> dict[str, Any]:
    """Return of each class, label or target the share of the samples counted that is covered, with Wilson's interval."""
    return {name: _share(held[counted[:, column], column]) for column, name in enumerate(answering.classes)}


def _share(held: NDArray[np.bool_]) -> dict[str, Any] | None:
    """Return a share with its interval; None of no sample."""
    if not len(held):
        return None
    value = float(held.mean())
    low, high = wilson(value, len(held))
    return {"value": value, "low": low, "high": high, "n": len(held)}


def judged_decision(
    answering: PredictionPolicy, labels: NDArray[Any], predictions: NDArray[np.float32]
) -> dict[str, Any]:
    """Return what the decision of an answer comes to, beside the most probable class, or labels above one half."""
    decision = answering.decision
    found: dict[str, Any] = {"kind": decision.kind}
    decided = answering.decide(predictions)
    if decision.kind == "costs":
        costs = np.array(decision.costs)
        likeliest = top_class(predictions)
        own = {name: costs[labels, classes] for name, classes in (("before", likeliest), ("after", decided))}
        drawn = resampled_means(np.stack(list(own.values()), axis=1), seed=SEED)
        before, after = (interval_of(values, drawn[:, place]) for place, values in enumerate(own.values()))
        gain = interval_of(own["after"] - own["before"], drawn[:, 1] - drawn[:, 0])
        found["cost"] = {"before": numbers(before), "after": numbers(after), "difference": numbers(gain)}
        found["confusion"] = {
            "before": _confusion(answering, labels, likeliest),
            "after": _confusion(answering, labels, decided),
        }
        found["costs"] = costs.tolist()
    elif decision.thresholds:
        multilabel = answering.task == "multilabel"
        found["thresholds"] = {}
        for name, value in decision.thresholds.items():
            column = answering.classes.index(name)
            if multilabel:
                applies, plain, given = labels[:, column] > 0, predictions[:, column] > 0.5, decided[:, column]
            else:
                applies, plain, given = (own == column for own in (labels, top_class(predictions), decided))
            found["thresholds"][name] = {
                "rule": (decision.rules or {})[name],
                "value": value,
                "before": _precision_recall(applies, plain),
                "after": _precision_recall(applies, given),
            }
    return found


def judged_unsure(
    answering: PredictionPolicy, labels: NDArray[Any], predictions: NDArray[np.float32]
) -> dict[str, Any]:
    """Return how many answers are called unsure, and how many of the others and of these are right."""
    decided = answering.decide(predictions)
    sure = predictions[np.arange(len(labels)), decided] >= (answering.unsure_below or 0)
    hit = decided == labels
    return {
        "below": answering.unsure_below,
        "answered": _share(sure),
        "accuracy_sure": _share(hit[sure]),
        "accuracy_unsure": _share(hit[~sure]),
        "accuracy_all": _share(hit),
    }


def _confusion(answering: PredictionPolicy, labels: NDArray[np.int64], decided: NDArray[np.int64]) -> list[list[int]]:
    classes = len(answering.classes)
    return np.bincount(labels * classes + decided, minlength=classes**2).reshape(classes, classes).tolist()


def _precision_recall(applies: NDArray[np.bool_], given: NDArray[np.bool_]) -> dict[str, Any]:
    return {"precision": _share(applies[given]), "recall": _share(given[applies])}
