"""Decisions from probabilities: thresholds that reach a target recall or precision, and predictions of minimal cost."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from choral.core.errors import ConfigError
from choral.metrics.per_sample import f1_from_counts

_RULE = re.compile(r"(recall|precision)>=([0-9.]+)")


@dataclass(frozen=True)
class Threshold:
    """A probability threshold for one class or label, with its metrics on the samples it was chosen on.

    Attributes:
        value: in [0, 1]; the class is predicted where its probability is at least this.
        precision: 1 where it is never predicted.
        recall: share of its samples that are found.
        f1: harmonic mean of both.
    """

    value: float
    precision: float
    recall: float
    f1: float


def choose_threshold(labels: NDArray[np.bool_], probabilities: NDArray[np.floating], rule: str) -> Threshold:
    """Return the threshold that satisfies a rule; it lies halfway between two probabilities that occur.

    Args:
        labels: (N,) whether the class applies; at least once.
        probabilities: (N,) of the class.
        rule: f1: the highest F1. recall>=R: the highest precision among thresholds of at least this recall.
            precision>=P: the highest recall among thresholds of at least this precision. Ties go to the highest threshold.

    Raises:
        ConfigError: an unknown rule, no sample of the class, or no threshold that reaches the precision.
    """
    kind, target = parse_threshold_rule(rule)
    if not labels.any():
        raise ConfigError(f"--threshold {rule}: no validation sample has this class, so no threshold can be chosen")
    order = np.argsort(-probabilities, kind="stable")
    values = probabilities[order].astype(np.float64)
    run_ends = _run_ends(values)
    hits = np.cumsum(labels[order])[run_ends]
    predicted, actual = run_ends + 1, int(labels.sum())
    precision, recall = hits / predicted, hits / actual
    f1 = f1_from_counts(hits, predicted - hits, actual - hits)
    if kind == "f1":
        best = int(np.argmax(f1))
    else:
        constrained, maximized = (recall, precision) if kind == "recall" else (precision, recall)
        allowed = np.flatnonzero(constrained >= target - 1e-12)
        if not len(allowed):
            raise ConfigError(
                f"--threshold {rule}: no threshold reaches it on validation; the highest {kind} is {constrained.max():.3f}"
            )
        best = int(allowed[np.argmax(maximized[allowed])])
    value = _midpoint_below(values, int(run_ends[best]))
    return Threshold(value, float(precision[best]), float(recall[best]), float(f1[best]))


def parse_threshold_rule(rule: str) -> tuple[str, float]:
    """Return the kind of a rule (f1, recall, precision) and its target, 0 for f1; raises ConfigError if it is invalid."""
    match = _RULE.fullmatch(rule.replace(" ", ""))
    if rule == "f1":
        return "f1", 0.0
    try:
        target = float(match[2]) if match else 0.0
    except ValueError:
        target = 0.0
    if match is None or not 0 < target <= 1:
        raise ConfigError(
            f"--threshold: invalid rule '{rule}': expected f1, recall>=R or precision>=P, numbers from 0 to 1"
        )
    return match[1], target


def apply_threshold(probabilities: NDArray[np.floating], position: int, value: float) -> NDArray[np.int64]:
    """Return (N,) classes: the one at `position` if its probability is at least `value`, else the most probable other one."""
    others = probabilities.astype(np.float64)
    others[:, position] = -1.0
    classes: NDArray[np.int64] = np.where(probabilities[:, position] >= value, position, others.argmax(axis=1))
    return classes


def minimize_expected_cost(probabilities: NDArray[np.floating], costs: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the (N,) classes of least expected cost; ties go to the most probable class.

    Args:
        probabilities: (N, C), calibrated: the expectation is only as good as they are.
        costs: (C, C), cost of predicting the column's class for a sample of the row's class.
    """
    expected = probabilities.astype(np.float64) @ costs
    least = expected.min(axis=1, keepdims=True)
    candidates = np.where(expected <= least + 1e-12 * np.abs(least), probabilities, -1.0)
    classes: NDArray[np.int64] = candidates.argmax(axis=1)
    return classes


def choose_confidence_threshold(confidence: NDArray[np.floating], is_correct: NDArray[np.bool_], rule: str) -> float:
    """Return the confidence below which a prediction is flagged as unsure.

    Args:
        confidence: (N,) of the predictions on validation samples.
        is_correct: (N,).
        rule: a probability; accuracy>=A: the lowest threshold that leaves this accuracy above it; coverage>=C: the
            highest threshold that leaves this share of samples above it.

    Raises:
        ConfigError: an unknown rule, or an accuracy that is not reached.
    """
    kind, _, number = rule.replace(" ", "").rpartition(">=")
    try:
        target = float(number)
    except ValueError:
        target = -1.0
    if kind not in ("", "accuracy", "coverage") or not 0 <= target <= 1:
        raise ConfigError(f"--unsure-below: expected a probability, accuracy>=A or coverage>=C, got '{rule}'")
    if not kind:
        return target
    order = np.argsort(-confidence, kind="stable")
    values = confidence[order].astype(np.float64)
    run_ends = _run_ends(values)
    if kind == "coverage":
        best = int(np.flatnonzero((run_ends + 1) / len(values) >= target - 1e-12)[0])
    else:
        accuracy = np.cumsum(is_correct[order])[run_ends] / (run_ends + 1)
        allowed = np.flatnonzero(accuracy >= target - 1e-12)
        if not len(allowed):
            raise ConfigError(
                f"--unsure-below {rule}: not reached on validation; the most confident predictions reach {accuracy.max():.3f}"
            )
        best = int(allowed[-1])
    return _midpoint_below(values, int(run_ends[best]))


def _run_ends(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the last position of each run of equal values in a sorted array."""
    return np.append(np.flatnonzero(np.diff(values)), len(values) - 1)


def _midpoint_below(values: NDArray[np.float64], position: int) -> float:
    """Return the middle between a value of a descending array and the next one (0 after the last)."""
    below = values[position + 1] if position + 1 < len(values) else 0.0
    return float((values[position] + below) / 2)
