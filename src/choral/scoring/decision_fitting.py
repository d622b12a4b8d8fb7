"""Fits what a policy does with calibrated probabilities: sets, thresholds and costs, on validation data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from choral.config.files import load_mapping
from choral.core.errors import ConfigError, did_you_mean
from choral.metrics.conformal import SCORES, conformal_quantile, conformal_scores
from choral.metrics.decision import choose_threshold
from choral.scoring.policy import Conformal, Decision

_COST = re.compile(r"(.+)->(.+)=([^=]+)")
RESIDUAL = "residual"


@dataclass(frozen=True)
class HeldOutPredictions:
    """Labelled predictions whose calibration was fitted to other folds, so that decisions can be fitted to them.

    Attributes:
        task, classes: of the predictions.
        labels: (n,) classes, (n, labels) 0 and 1, or (n, targets) numbers.
        predictions: (n, classes) float32.
    """

    task: str
    classes: tuple[str, ...]
    labels: NDArray[Any]
    predictions: NDArray[np.float32]


def fit_conformal(held_out: HeldOutPredictions, score: str, coverage: float, by_class: bool) -> Conformal:
    """Return conformal sets or intervals with a target coverage.

    Multiclass: one quantile, or with `by_class` one per class from its own samples (Vovk's label-conditional sets).
    Multilabel: one quantile per label from the samples to which it applies, so that the sets contain each applicable label
    with the target coverage. Regression: one quantile per target, of the absolute errors.

    Args:
        held_out: the samples that quantiles are computed from.
        score: lac, aps or raps; "": aps, or the only score of multilabel and regression.
        coverage: in (0, 1).
        by_class: multiclass only.

    Raises:
        ConfigError: the coverage is out of range, or the task does not have the score.
    """
    allowed = {"multiclass": SCORES, "multilabel": ("lac",), "regression": (RESIDUAL,)}[held_out.task]
    score = score or ("aps" if held_out.task == "multiclass" else allowed[0])
    if score not in allowed:
        raise ConfigError(
            f"--set: no score '{score}' for {held_out.task}.{did_you_mean(score, allowed)} There are: {', '.join(allowed)}"
        )
    if not 0 < coverage < 1:
        raise ConfigError(f"--coverage: expected a number between 0 and 1, such as 0.9, or none, got {coverage:g}")
    if by_class and held_out.task != "multiclass":
        raise ConfigError("--by-class: only for multiclass; each label or target has its own quantile anyway")
    labels, predictions = held_out.labels, held_out.predictions
    if held_out.task == "regression":
        residuals = np.abs(predictions.astype(np.float64) - labels)
        samples = [residuals[:, column] for column in range(residuals.shape[1])]
    else:
        scores = conformal_scores(predictions, score)
        if held_out.task == "multilabel":
            samples = [scores[labels[:, column] > 0, column] for column in range(scores.shape[1])]
        else:
            true_scores = scores[np.arange(len(labels)), labels]
            classes = range(scores.shape[1])
            samples = [true_scores[labels == number] for number in classes] if by_class else [true_scores]
    quantiles = tuple(conformal_quantile(one, coverage) for one in samples)
    return Conformal(score, coverage, quantiles, tuple(map(len, samples)))


def default_decision(task: str) -> Decision:
    """Return the decision without options: the most probable class, labels above one half, or the numbers."""
    return Decision({"multiclass": "argmax", "multilabel": "thresholds", "regression": "value"}[task])


def fit_decision(held_out: HeldOutPredictions, costs: str, thresholds: Sequence[str]) -> Decision:
    """Return a decision with costs, or with thresholds chosen by rules.

    Args:
        held_out: the samples that thresholds are chosen on.
        costs: a file or "true->predicted=10,...", see `parse_costs`; "": none.
        thresholds: RULE or CLASS:RULE each, see `choose_threshold`. Multiclass: exactly one class. Multilabel: a rule without
            a name is for all labels without a rule of their own; labels without any rule keep one half.

    Raises:
        ConfigError: both costs and thresholds, options that do not fit the task, unknown classes, or a rule that no
            threshold satisfies.
    """
    if not costs and not thresholds:
        return default_decision(held_out.task)
    if held_out.task == "regression":
        raise ConfigError("--cost, --threshold: only for multiclass and multilabel, not for regression")
    if costs and thresholds:
        raise ConfigError("--cost and --threshold: choose one; a cost matrix implies thresholds")
    if costs:
        if held_out.task != "multiclass":
            raise ConfigError("--cost: only for multiclass; use --threshold for labels")
        return Decision("costs", costs=tuple(map(tuple, parse_costs(costs, held_out.classes).tolist())))
    rules = _parse_rules(thresholds, held_out)
    chosen = {}
    for name, rule in rules.items():
        column = held_out.classes.index(name)
        applies = held_out.labels == column if held_out.task == "multiclass" else held_out.labels[:, column] > 0
        try:
            chosen[name] = choose_threshold(applies, held_out.predictions[:, column], rule).value
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error
    return Decision("thresholds", chosen, rules)


def _parse_rules(thresholds: Sequence[str], held_out: HeldOutPredictions) -> dict[str, str]:
    """Return the rule of each class or label that has one."""
    rules: dict[str, str] = {}
    for text in thresholds:
        name, _, rule = text.rpartition(":")
        if name:
            rules[_check_class(name, held_out.classes, "--threshold")] = rule
    unnamed = [text for text in thresholds if ":" not in text]
    if held_out.task == "multilabel":
        if len(unnamed) > 1:
            raise ConfigError(
                f"--threshold: {' and '.join(unnamed)}: only one rule can be for all labels; use LABEL:RULE"
            )
        return {name: rules.get(name, unnamed[0]) for name in held_out.classes} if unnamed else rules
    if unnamed or len(rules) != 1:
        example = f"{held_out.classes[-1]}:{(unnamed or ['f1'])[0]}"
        raise ConfigError(f"--threshold: name the one class that has a threshold, such as --threshold '{example}'")
    return rules


def parse_costs(text: str, classes: Sequence[str]) -> NDArray[np.float64]:
    """Return the (classes, classes) costs, true class (row) by predicted class (column).

    Args:
        text: a .yaml file, {true: {predicted: cost}}, or "true->predicted=10,true->predicted=0.5". Pairs that are not named
            cost 0 where the prediction is correct and 1 where it is wrong.
        classes: names.

    Raises:
        ConfigError: an unknown class, or a cost that is no finite number.
    """
    found: list[tuple[str, str, str]] = []
    if text.endswith((".yaml", ".yml")):
        for true, row in load_mapping(Path(text)).items():
            if not isinstance(row, Mapping):
                raise ConfigError(f"{text}: {true}: expected {{predicted class: cost}}")
            found += [(true, predicted, str(cost)) for predicted, cost in row.items()]
    else:
        for part in text.split(","):
            match = _COST.fullmatch(part.strip())
            if match is None:
                raise ConfigError(f"--cost: expected a .yaml file or TRUE->PREDICTED=NUMBER,..., got '{part}'")
            found.append((match[1].strip(), match[2].strip(), match[3]))
    costs = 1.0 - np.eye(len(classes))
    for true, predicted, cost in found:
        places = [classes.index(_check_class(name, classes, "--cost")) for name in (true, predicted)]
        try:
            costs[places[0], places[1]] = float(cost)
        except ValueError:
            raise ConfigError(f"--cost: {true}->{predicted}: expected a number, got '{cost}'") from None
    if not np.isfinite(costs).all():
        raise ConfigError("--cost: expected finite numbers")
    return costs


def _check_class(name: str, classes: Sequence[str], option: str) -> str:
    if name not in classes:
        raise ConfigError(f"{option}: no class '{name}'.{did_you_mean(name, classes)} There are: {', '.join(classes)}")
    return name
