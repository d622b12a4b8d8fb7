"""Evaluates calibration, sets and decisions on samples that nothing was fitted to or chosen on; results are plain JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from choral.ensembles.score_rows import SEED, interval_to_dict
from choral.metrics.calibration_error import expected_calibration_error
from choral.metrics.conformal import coverage_spread
from choral.metrics.estimate import Estimate, bootstrap_metrics
from choral.metrics.intervals import DRAWS, Interval, bootstrap, bootstrap_means, mean_interval
from choral.metrics.metric_report import build_estimates, build_metrics, overall_metric_function
from choral.metrics.per_sample import top_class
from choral.metrics.reliability import reliability_bins, wilson_interval
from choral.metrics.selective import bootstrap_aurc, compute_accuracy_coverage, compute_aurc
from choral.scoring.policy import PredictionPolicy

BINS = 10
_METRICS = ("accuracy", "log_loss", "brier", "ece")
COVERAGES = tuple(number / 100 for number in range(10, 101))
_MAX_RANKED = 10_000_000  # samples that all draws rank together: takes seconds; at least 200 draws are made
_SET_SIZES = 5  # larger sets are counted together


def evaluate_calibration(
    task: str, labels: NDArray[Any], before: NDArray[np.float32], after: NDArray[np.float32]
) -> dict[str, Any]:
    """Return metrics of uncalibrated and calibrated probabilities with their paired difference, bins, and curves.

    Args:
        task: multiclass or multilabel.
        labels: (N,) classes or (N, labels), of the scored samples.
        before, after: (N, classes) probabilities.
    """
    both = {"before": before, "after": after}
    found: dict[str, Any] = {"metrics": _compute_metrics(task, labels, both)}
    confidences_and_hits = {name: compute_confidences(task, labels, values) for name, values in both.items()}
    found["plain_ece"] = {name: expected_calibration_error(*pair) for name, pair in confidences_and_hits.items()}
    found["reliability"] = {
        name: [asdict(one) for one in reliability_bins(*pair, BINS)] for name, pair in confidences_and_hits.items()
    }
    if task == "multiclass":
        draws = int(np.clip(_MAX_RANKED // len(labels), 200, DRAWS))
        confidences, hits = (
            [pair[0] for pair in confidences_and_hits.values()],
            [pair[1] for pair in confidences_and_hits.values()],
        )
        drawn = bootstrap_aurc(confidences, hits, seed=SEED, draws=draws)
        areas = [
            Estimate(compute_aurc(*pair), column)
            for pair, column in zip(confidences_and_hits.values(), drawn.T, strict=True)
        ]
        found["metrics"]["aurc"] = _paired(*areas)
        curve = compute_accuracy_coverage(*confidences_and_hits["after"], COVERAGES, seed=SEED, draws=draws)
        found["selective"] = {
            name: np.round(getattr(curve, name), 6).tolist() for name in ("coverage", "accuracy", "low", "high")
        }
    return found


def compute_confidences(
    task: str, labels: NDArray[Any], probabilities: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the confidence of each decision and whether it is correct.

    Multiclass: the probability of the most probable class, (N,). Multilabel: the probability of each label, (N * labels,),
    and whether the label applies.
    """
    if task == "multilabel":
        return probabilities.reshape(-1), labels.reshape(-1) > 0
    return probabilities.max(axis=1), top_class(probabilities) == labels


def _compute_metrics(task: str, labels: NDArray[Any], both: Mapping[str, NDArray[np.float32]]) -> dict[str, Any]:
    """Return the metrics that calibration aims at, and the accuracy, which it may change."""
    estimates = []
    for values in both.values():
        metrics = build_metrics(task, labels, values)
        estimates.append(
            build_estimates(metrics, bootstrap_metrics(overall_metric_function(metrics), len(labels), seed=SEED))
        )
    before, after = estimates
    return {name: _paired(before[name], after[name]) for name in _METRICS if name in before}


def _paired(before: Estimate, after: Estimate) -> dict[str, Any]:
    """Return before, after and the difference, each with its interval."""
    unchanged = before.value == after.value and np.array_equal(before.draws, after.draws)
    difference = Interval(0.0, 0.0, 0.0) if unchanged else after.minus(before)
    found = {"before": before.interval, "after": after.interval, "difference": difference}
    return {name: interval_to_dict(interval) for name, interval in found.items()}


def evaluate_sets(policy: PredictionPolicy, labels: NDArray[Any], predictions: NDArray[np.float32]) -> dict[str, Any]:
    """Return the coverage and the sizes of the sets or intervals of a policy."""
    conformal = policy.conformal
    assert conformal is not None, "the caller checks that the policy has sets"
    spreads = [coverage_spread(samples, conformal.coverage) for samples in conformal.samples]
    found: dict[str, Any] = {
        "score": conformal.score,
        "coverage": conformal.coverage,
        "samples": list(conformal.samples),
        "expected": [list(one) for one in spreads],
    }
    if policy.task == "regression":
        widths = np.array(conformal.quantiles)
        covered_mask = np.abs(predictions.astype(np.float64) - labels) <= widths
        half = {
            name: width if math.isfinite(width) else None
            for name, width in zip(policy.classes, widths.tolist(), strict=True)
        }
        found |= {"half_width": half, "each": _compute_coverages(policy, covered_mask, np.ones_like(covered_mask))}
        return found
    sets = conformal.sets(predictions)
    sizes = sets.sum(axis=1)
    found["size"] = interval_to_dict(bootstrap(sizes.astype(np.float64), seed=SEED))
    counts = np.bincount(np.minimum(sizes, _SET_SIZES), minlength=_SET_SIZES + 1)
    found["sizes"] = {str(size) if size < _SET_SIZES else f"{size}+": int(count) for size, count in enumerate(counts)}
    if policy.task == "multilabel":
        return {**found, "each": _compute_coverages(policy, sets, labels > 0)}
    hits = sets[np.arange(len(labels)), labels]
    of_class = labels[:, None] == np.arange(len(policy.classes))
    covered = interval_to_dict(bootstrap(hits.astype(np.float64), seed=SEED))
    return {
        **found,
        "covered": covered,
        "each": _compute_coverages(policy, np.broadcast_to(hits[:, None], of_class.shape), of_class),
    }


def _compute_coverages(
    policy: PredictionPolicy, covered_mask: NDArray[np.bool_], counted: NDArray[np.bool_]
) -> dict[str, Any]:
    """Return the coverage of each class, label or target over the counted samples, with Wilson's interval."""
    return {
        name: _compute_share(covered_mask[counted[:, column], column]) for column, name in enumerate(policy.classes)
    }


def _compute_share(values: NDArray[np.bool_]) -> dict[str, Any] | None:
    """Return the share of true values with its interval; None where there is no sample."""
    if not len(values):
        return None
    value = float(values.mean())
    low, high = wilson_interval(value, len(values))
    return {"value": value, "low": low, "high": high, "n": len(values)}


def evaluate_decision(
    policy: PredictionPolicy, labels: NDArray[Any], predictions: NDArray[np.float32]
) -> dict[str, Any]:
    """Return the effect of a policy's decision, compared with the most probable class or labels above one half."""
    decision = policy.decision
    found: dict[str, Any] = {"kind": decision.kind}
    decided = policy.decide(predictions)
    if decision.kind == "costs":
        costs = np.array(decision.costs)
        most_probable = top_class(predictions)
        sample_costs = {
            name: costs[labels, classes] for name, classes in (("before", most_probable), ("after", decided))
        }
        draws = bootstrap_means(np.stack(list(sample_costs.values()), axis=1), seed=SEED)
        before, after = (mean_interval(values, draws[:, place]) for place, values in enumerate(sample_costs.values()))
        gain = mean_interval(sample_costs["after"] - sample_costs["before"], draws[:, 1] - draws[:, 0])
        found["cost"] = {
            "before": interval_to_dict(before),
            "after": interval_to_dict(after),
            "difference": interval_to_dict(gain),
        }
        found["confusion"] = {
            "before": _count_confusions(policy, labels, most_probable),
            "after": _count_confusions(policy, labels, decided),
        }
        found["costs"] = costs.tolist()
    elif decision.thresholds:
        multilabel = policy.task == "multilabel"
        found["thresholds"] = {}
        for name, value in decision.thresholds.items():
            column = policy.classes.index(name)
            if multilabel:
                applies, default, assigned = labels[:, column] > 0, predictions[:, column] > 0.5, decided[:, column]
            else:
                applies, default, assigned = (
                    classes == column for classes in (labels, top_class(predictions), decided)
                )
            found["thresholds"][name] = {
                "rule": (decision.rules or {})[name],
                "value": value,
                "before": _compute_precision_recall(applies, default),
                "after": _compute_precision_recall(applies, assigned),
            }
    return found


def evaluate_unsure(policy: PredictionPolicy, labels: NDArray[Any], predictions: NDArray[np.float32]) -> dict[str, Any]:
    """Return the share of sure predictions, and the accuracy of sure, unsure and all predictions."""
    decided = policy.decide(predictions)
    sure = predictions[np.arange(len(labels)), decided] >= (policy.unsure_below or 0)
    hit = decided == labels
    return {
        "below": policy.unsure_below,
        "answered": _compute_share(sure),
        "accuracy_sure": _compute_share(hit[sure]),
        "accuracy_unsure": _compute_share(hit[~sure]),
        "accuracy_all": _compute_share(hit),
    }


def _count_confusions(
    policy: PredictionPolicy, labels: NDArray[np.int64], decided: NDArray[np.int64]
) -> list[list[int]]:
    classes = len(policy.classes)
    return np.bincount(labels * classes + decided, minlength=classes**2).reshape(classes, classes).tolist()


def _compute_precision_recall(applies: NDArray[np.bool_], assigned: NDArray[np.bool_]) -> dict[str, Any]:
    return {"precision": _compute_share(applies[assigned]), "recall": _compute_share(assigned[applies])}
