"""What a calibration and a decision are worth on samples that nothing was fitted to or chosen on: plain JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from choral.assess.answer import Answering
from choral.ensemble.rows import SEED, numbers
from choral.score.calibration_error import expected_calibration_error
from choral.score.conformal import coverage_spread
from choral.score.debiased_calibration import Gaps, absolute_gaps, debiased_calibration_error
from choral.score.intervals import bootstrap, interval_around, interval_of, resampled_counts, resampled_means
from choral.score.metrics import correct, label_log_losses, log_losses, top_class
from choral.score.reliability import reliability_bins, wilson
from choral.score.selective import area_of, resampled_areas, selective_curve

BINS = 10
COVERAGES = tuple(number / 100 for number in range(10, 101))
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
    found: dict[str, Any] = {"metrics": _means(task, labels, both)}
    sure = {name: decisions(task, labels, values) for name, values in both.items()}
    confidences, hits = [pair[0] for pair in sure.values()], [pair[1] for pair in sure.values()]
    found["metrics"]["ece"] = _calibration_errors(task, labels, both)
    found["plain_ece"] = {name: expected_calibration_error(*pair) for name, pair in sure.items()}
    found["reliability"] = {name: [asdict(one) for one in reliability_bins(*pair, BINS)] for name, pair in sure.items()}
    if task == "multiclass":
        areas = resampled_areas(confidences, hits, seed=SEED)
        found["metrics"]["aurc"] = _paired([area_of(*pair) for pair in sure.values()], areas)
        curve = selective_curve(*sure["after"], COVERAGES, seed=SEED)
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


def _means(task: str, labels: NDArray[Any], both: Mapping[str, NDArray[np.float32]]) -> dict[str, Any]:
    """Return the metrics that are means of one number a sample."""
    columns: dict[str, list[NDArray[np.float64]]] = {}
    for values in both.values():
        if task == "multilabel":
            columns.setdefault("log_loss", []).append(label_log_losses(labels > 0, values))
            columns.setdefault("brier", []).append(((values.astype(np.float64) - labels) ** 2).mean(axis=1))
        else:
            true = np.arange(values.shape[1]) == labels[:, None]
            columns.setdefault("accuracy", []).append(correct(labels, top_class(values)))
            columns.setdefault("log_loss", []).append(log_losses(labels, values))
            columns.setdefault("brier", []).append(((values.astype(np.float64) - true) ** 2).sum(axis=1))
    drawn = resampled_means(np.stack([one for pair in columns.values() for one in pair], axis=1), seed=SEED)
    return {
        name: _paired([math.fsum(one) / len(one) for one in pair], drawn[:, 2 * place : 2 * place + 2])
        for place, (name, pair) in enumerate(columns.items())
    }


def _calibration_errors(task: str, labels: NDArray[Any], both: Mapping[str, NDArray[np.float32]]) -> dict[str, Any]:
    """Return the debiased calibration error before and after."""
    gaps = []
    for values in both.values():
        sure, right = (values, labels > 0) if task == "multilabel" else decisions(task, labels, values)
        gaps.append(Gaps.of(sure, right))
    drawn = [
        np.stack([absolute_gaps(one, times.astype(np.float64)) for one in gaps], axis=1)
        for times in resampled_counts(len(labels), seed=SEED)
    ]
    before, after = (
        debiased_calibration_error(one, column) for one, column in zip(gaps, np.concatenate(drawn).T, strict=True)
    )
    return {
        "before": numbers(before.interval),
        "after": numbers(after.interval),
        "difference": numbers(after.minus(before)),
    }


def _paired(values: list[float], drawn: NDArray[np.float64]) -> dict[str, Any]:
    """Return before, after and the difference, each with its interval, from (draws, 2) of both."""
    before, after = (interval_around(value, drawn[:, place]) for place, value in enumerate(values))
    gain = interval_around(values[1] - values[0], drawn[:, 1] - drawn[:, 0])
    return {"before": numbers(before), "after": numbers(after), "difference": numbers(gain)}


def judged_sets(answering: Answering, labels: NDArray[Any], predictions: NDArray[np.float32]) -> dict[str, Any]:
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


def _each(answering: Answering, held: NDArray[np.bool_], counted: NDArray[np.bool_]) -> dict[str, Any]:
    """Return of each class, label or target the share of the samples counted that is covered, with Wilson's interval."""
    return {name: _share(held[counted[:, column], column]) for column, name in enumerate(answering.classes)}


def _share(held: NDArray[np.bool_]) -> dict[str, Any] | None:
    """Return a share with its interval; None of no sample."""
    if not len(held):
        return None
    value = float(held.mean())
    low, high = wilson(value, len(held))
    return {"value": value, "low": low, "high": high, "n": len(held)}


def judged_decision(answering: Answering, labels: NDArray[Any], predictions: NDArray[np.float32]) -> dict[str, Any]:
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


def judged_unsure(answering: Answering, labels: NDArray[Any], predictions: NDArray[np.float32]) -> dict[str, Any]:
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


def _confusion(answering: Answering, labels: NDArray[np.int64], decided: NDArray[np.int64]) -> list[list[int]]:
    classes = len(answering.classes)
    return np.bincount(labels * classes + decided, minlength=classes**2).reshape(classes, classes).tolist()


def _precision_recall(applies: NDArray[np.bool_], given: NDArray[np.bool_]) -> dict[str, Any]:
    return {"precision": _share(applies[given]), "recall": _share(given[applies])}
