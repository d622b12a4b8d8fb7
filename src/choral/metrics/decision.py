"""Decisions from probabilities: a threshold that reaches what is asked of it, or the answer of the least expected cost."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from choral.core.errors import ConfigError
from choral.metrics.per_sample import f1_of_counts

_RULE = re.compile(r"(recall|precision)>=([0-9.]+)")


@dataclass(frozen=True)
class Threshold:
    """A probability from which on a class or label is given, and what it comes to where it was chosen.

    Attributes:
        value: in [0, 1]; given is what is at least as probable.
        precision: share of those given that are right; 1 where none is given.
        recall: share of those that apply that are given.
        f1: their harmonic mean.
    """

    value: float
    precision: float
    recall: float
    f1: float


def choose_threshold(labels: NDArray[np.bool_], probabilities: NDArray[np.floating], rule: str) -> Threshold:
    """Return the threshold that a rule asks for; it lies in the middle between two probabilities that occur.

    Args:
        labels: (N,) whether the class applies; once at least.
        probabilities: (N,) of the class.
        rule: f1: the highest F1. recall>=R: the highest precision among those of at least this recall.
            precision>=P: the highest recall among those of at least this precision. Of equals the highest threshold.

    Raises:
        ConfigError: another rule; no sample to which it applies; no threshold reaches the precision.
    """
    kind, least = parse_rule(rule)
    if not labels.any():
        raise ConfigError(f"--threshold {rule}: no validation sample has the class, so that nothing can be chosen")
    order = np.argsort(-probabilities, kind="stable")
    values = probabilities[order].astype(np.float64)
    last = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)  # ends of runs of equal probabilities
    hits = np.cumsum(labels[order])[last]
    given, positive = last + 1, int(labels.sum())
    precision, recall = hits / given, hits / positive
    f1 = f1_of_counts(hits, given - hits, positive - hits)
    if kind == "f1":
        best = int(np.argmax(f1))
    else:
        own, other = (recall, precision) if kind == "recall" else (precision, recall)
        enough = np.flatnonzero(own >= least - 1e-12)
        if not len(enough):
            raise ConfigError(
                f"--threshold {rule}: no threshold reaches it on validation, where the highest {kind} is {own.max():.3f}"
            )
        best = int(enough[np.argmax(other[enough])])
    below = values[last[best] + 1] if last[best] + 1 < len(values) else 0.0
    value = (values[last[best]] + below) / 2
    return Threshold(float(value), float(precision[best]), float(recall[best]), float(f1[best]))


def parse_rule(rule: str) -> tuple[str, float]:
    """Return the kind of a rule and its number, f1 having none (0); ConfigError where it is none."""
    found = _RULE.fullmatch(rule.replace(" ", ""))
    if rule == "f1":
        return "f1", 0.0
    try:
        least = float(found[2]) if found else 0.0
    except ValueError:
        least = 0.0
    if found is None or not 0 < least <= 1:
        raise ConfigError(
            f"--threshold: '{rule}' is no rule: expected f1, recall>=R or precision>=P, numbers from 0 to 1"
        )
    return found[1], least


def with_threshold(probabilities: NDArray[np.floating], place: int, value: float) -> NDArray[np.int64]:
    """Return the (N,) class: the one at `place` where its probability is at least `value`, else the best of the others."""
    others = probabilities.astype(np.float64)
    others[:, place] = -1.0
    classes: NDArray[np.int64] = np.where(probabilities[:, place] >= value, place, others.argmax(axis=1))
    return classes


def least_cost(probabilities: NDArray[np.floating], costs: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the (N,) class of the least expected cost, of equals the most probable.

    Args:
        probabilities: (N, C); what they promise has to be true, so calibrated ones.
        costs: (C, C) of a sample of the class of the row when the class of the column is answered.
    """
    expected = probabilities.astype(np.float64) @ costs
    least = expected.min(axis=1, keepdims=True)
    among = np.where(expected <= least + 1e-12 * np.abs(least), probabilities, -1.0)
    classes: NDArray[np.int64] = among.argmax(axis=1)
    return classes


def sure_from(confidence: NDArray[np.floating], hit: NDArray[np.bool_], rule: str) -> float:
    """Return the confidence below which a prediction is to be called unsure.

    Args:
        confidence: (N,) of the predictions about validation samples.
        hit: (N,) whether they are right.
        rule: a probability; accuracy>=A: the lowest that leaves this accuracy to all that are surer; coverage>=C: the
            highest that leaves so large a share of samples.

    Raises:
        ConfigError: another rule, or an accuracy that is not reached.
    """
    kind, _, number = rule.replace(" ", "").rpartition(">=")
    try:
        least = float(number)
    except ValueError:
        least = -1.0
    if kind not in ("", "accuracy", "coverage") or not 0 <= least <= 1:
        raise ConfigError(f"--unsure-below: expected a probability, accuracy>=A or coverage>=C, got '{rule}'")
    if not kind:
        return least
    order = np.argsort(-confidence, kind="stable")
    values = confidence[order].astype(np.float64)
    last = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)
    if kind == "coverage":
        best = int(np.flatnonzero((last + 1) / len(values) >= least - 1e-12)[0])
    else:
        accuracy = np.cumsum(hit[order])[last] / (last + 1)
        enough = np.flatnonzero(accuracy >= least - 1e-12)
        if not len(enough):
            raise ConfigError(
                f"--unsure-below {rule}: not reached on validation, where the surest have {accuracy.max():.3f}"
            )
        best = int(enough[-1])
    below = values[last[best] + 1] if last[best] + 1 < len(values) else 0.0
    return float((values[last[best]] + below) / 2)
