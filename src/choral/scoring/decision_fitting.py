"""What is decided with calibrated probabilities: sets, thresholds and costs, chosen on validation data."""

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
class Evidence:
    """Labelled predictions that nothing was fitted to: calibrated by maps of other folds.

    Attributes:
        task, classes: of the predictions.
        labels: (n,) classes, (n, labels) 0 and 1, or (n, targets) numbers.
        predictions: (n, classes) float32.
    """

    task: str
    classes: tuple[str, ...]
    labels: NDArray[Any]
    predictions: NDArray[np.float32]


def conformal_of(evidence: Evidence, score: str, coverage: float, by_class: bool) -> Conformal:
    """Return sets or intervals of a coverage.

    Multiclass: one quantile, or with `by_class` one of each class, from its own samples (Vovk's label-conditional sets).
    Multilabel: the sets hold each label that applies with the coverage, from the samples to which it applies. Regression:
    each target's interval, by the absolute errors.

    Args:
        evidence: that quantiles are of.
        score: lac, aps, raps; "": aps, of multilabel and regression what there is.
        coverage: in (0, 1).
        by_class: of multiclass.

    Raises:
        ConfigError: a coverage outside, or a score that is none of the task.
    """
    usual = {"multiclass": SCORES, "multilabel": ("lac",), "regression": (RESIDUAL,)}[evidence.task]
    score = score or ("aps" if evidence.task == "multiclass" else usual[0])
    if score not in usual:
        raise ConfigError(
            f"--set: no score '{score}' of task {evidence.task}.{did_you_mean(score, usual)} There are: {', '.join(usual)}"
        )
    if not 0 < coverage < 1:
        raise ConfigError(f"--coverage: expected a number between 0 and 1, such as 0.9, or none, got {coverage:g}")
    if by_class and evidence.task != "multiclass":
        raise ConfigError("--by-class: is for classes; of labels and numbers, each has its own quantile as it is")
    labels, predictions = evidence.labels, evidence.predictions
    if evidence.task == "regression":
        residuals = np.abs(predictions.astype(np.float64) - labels)
        samples = [residuals[:, column] for column in range(residuals.shape[1])]
    else:
        scores = conformal_scores(predictions, score)
        if evidence.task == "multilabel":
            samples = [scores[labels[:, column] > 0, column] for column in range(scores.shape[1])]
        else:
            own = scores[np.arange(len(labels)), labels]
            samples = [own[labels == number] for number in range(scores.shape[1])] if by_class else [own]
    quantiles = tuple(conformal_quantile(one, coverage) for one in samples)
    return Conformal(score, coverage, quantiles, tuple(map(len, samples)))


def plain_decision(task: str) -> Decision:
    """Return the decision where none is asked for: the most probable class, labels above one half, or the numbers."""
    return Decision({"multiclass": "argmax", "multilabel": "thresholds", "regression": "value"}[task])


def decision_of(evidence: Evidence, costs: str, thresholds: Sequence[str]) -> Decision:
    """Return the decision that is asked for, its thresholds chosen.

    Args:
        evidence: that thresholds are chosen on.
        costs: a file or "true->predicted=10,...", see `costs_of`; "": none.
        thresholds: RULE or CLASS:RULE each, of multiclass one class alone; see `choose_threshold`. Of multilabel, a rule
            without a name is for all labels that have none of their own; labels without any keep one half.

    Raises:
        ConfigError: costs and thresholds together, what the task has not, unknown classes, or a rule that is not reached.
    """
    if not costs and not thresholds:
        return plain_decision(evidence.task)
    if evidence.task == "regression":
        raise ConfigError("--cost, --threshold: are for classes and labels; of numbers nothing is decided")
    if costs and thresholds:
        raise ConfigError("--cost and --threshold: choose one: a cost matrix says where thresholds lie")
    if costs:
        if evidence.task != "multiclass":
            raise ConfigError("--cost: is for classes; of labels choose thresholds")
        return Decision("costs", costs=tuple(map(tuple, costs_of(costs, evidence.classes).tolist())))
    rules = _rules(thresholds, evidence)
    chosen = {}
    for name, rule in rules.items():
        column = evidence.classes.index(name)
        applies = evidence.labels == column if evidence.task == "multiclass" else evidence.labels[:, column] > 0
        try:
            chosen[name] = choose_threshold(applies, evidence.predictions[:, column], rule).value
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error
    return Decision("thresholds", chosen, rules)


def _rules(thresholds: Sequence[str], evidence: Evidence) -> dict[str, str]:
    """Return the rule of each class or label that has one."""
    rules: dict[str, str] = {}
    for text in thresholds:
        name, _, rule = text.rpartition(":")
        if name:
            rules[_known(name, evidence.classes, "--threshold")] = rule
    plain = [text for text in thresholds if ":" not in text]
    if evidence.task == "multilabel":
        if len(plain) > 1:
            raise ConfigError(
                f"--threshold: {' and '.join(plain)}: one rule for all labels; name labels with LABEL:RULE"
            )
        return {name: rules.get(name, plain[0]) for name in evidence.classes} if plain else rules
    if plain or len(rules) != 1:
        example = f"{evidence.classes[-1]}:{(plain or ['f1'])[0]}"
        raise ConfigError(f"--threshold: name the one class that has a threshold: --threshold '{example}'")
    return rules


def costs_of(text: str, classes: Sequence[str]) -> NDArray[np.float64]:
    """Return the (classes, classes) cost of a sample of the row's class when the column's is answered.

    Args:
        text: a .yaml file, {true: {predicted: cost}}, or "true->predicted=10,true->predicted=0.5". What is not named costs
            0 where it is right and 1 where it is wrong.
        classes: names.

    Raises:
        ConfigError: an unknown class, or what is no number.
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
        places = [classes.index(_known(name, classes, "--cost")) for name in (true, predicted)]
        try:
            costs[places[0], places[1]] = float(cost)
        except ValueError:
            raise ConfigError(f"--cost: {true}->{predicted}: expected a number, got '{cost}'") from None
    if not np.isfinite(costs).all():
        raise ConfigError("--cost: expected finite numbers")
    return costs


def _known(name: str, classes: Sequence[str], option: str) -> str:
    if name not in classes:
        raise ConfigError(f"{option}: no class '{name}'.{did_you_mean(name, classes)} There are: {', '.join(classes)}")
    return name
