"""What rules have to know, learned from predictions of samples that are not scored: validation, or out-of-fold ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from choral.core.errors import DataError
from choral.data.shards.splits import key_hashes
from choral.ensembles.member_predictions import MemberPredictions
from choral.ensembles.member_weights import (
    Rivals,
    greedy_accuracy,
    greedy_log_loss,
    greedy_squared_error,
    least_log_loss,
    least_squared_error,
)
from choral.ensembles.rules import SMALLEST, Combiner, log_scores, soft
from choral.ensembles.stacking import FOLDS, LARGEST, fit_stack
from choral.ensembles.temperature import Calibration, Temperature

RULES = {
    "multiclass": ("soft", "hard", "geometric", "weighted", "greedy", "stack", "boosting"),
    "multilabel": ("soft", "geometric", "weighted", "greedy", "stack"),
    "regression": ("mean", "median", "weighted", "greedy"),
}
CRITERIA = {"multiclass": ("log_loss", "accuracy"), "multilabel": ("log_loss",), "regression": ("squared_error",)}
PICKS = 100


@dataclass(frozen=True)
class Fit:
    """A rule that is ready, and what it learned from what.

    Attributes:
        combiner: the rule.
        names: of what its weights belong to: members, or the groups of a stack.
        on: the split that the weights were fitted on, "held-out" of out-of-fold predictions, "rounds" of boosting, "given" by
            the user; "" of rules without weights.
        samples: of them, so many.
        by: what the weights make least.
        loss: what that comes to; None where nothing was fitted.
        strength: of a stack's penalty.
        calibrated: how the temperature was fitted; None where it was not.
    """

    combiner: Combiner
    names: tuple[str, ...] = ()
    on: str = ""
    samples: int = 0
    by: str = ""
    loss: float | None = None
    strength: float | None = None
    calibrated: Temperature | None = None

    @property
    def weights(self) -> dict[str, float]:
        """Name to weight; empty of rules without."""
        return dict(zip(self.names, self.combiner.weights, strict=True))


@dataclass(frozen=True)
class Evidence:
    """What weights are fitted to, and the calibration of the mean; from one pass over a panel.

    Attributes:
        panel: that it is of.
        truths: (n, members) probabilities of what is true, at least 1.2e-7: of multilabel a row for each sample and label; of
            regression none.
        gram: of regression: (members, members) mean products of errors, in standard deviations of each target.
        rivals: of multiclass, where asked for.
        calibration: of the mean, where asked for.
    """

    panel: MemberPredictions
    truths: NDArray[np.floating]
    gram: NDArray[np.float64]
    rivals: Rivals | None = None
    calibration: Calibration | None = None


def plain(rule: str, task: str) -> Fit:
    """Return a rule that has nothing to learn: soft, hard, geometric, mean or median."""
    return Fit(Combiner(rule, task))


def evidence_of(panel: MemberPredictions, *, rivals: bool = False, calibrate: bool = False) -> Evidence:
    """Read a panel once.

    Args:
        panel: of the samples to fit on.
        rivals: collect what the accuracy of weighted means depends on.
        calibrate: collect the mean over the members, for its temperature.

    Raises:
        DataError: it has no sample.
    """
    members, classes, count = len(panel.members), len(panel.ledger.classes), len(panel.ledger)
    if not count:
        raise DataError(f"{panel.ledger.path}: holds no sample, nothing can be fitted")
    regression = panel.task == "regression"
    scale = np.maximum(panel.ledger.labels.std(axis=0, dtype=np.float64), 1e-12) if regression else np.ones(1)
    gram, found = np.zeros((members, members)), []
    per = {"multiclass": 1, "multilabel": classes, "regression": 0}[panel.task]
    truths = np.empty((count * per, members), dtype=np.float64 if per == 1 else np.float32)
    calibration = Calibration(panel.task, count, classes) if calibrate else None
    start = 0
    for labels, stack in panel.blocks():
        if regression:
            errors = ((stack.astype(np.float64) - labels) / scale).reshape(members, -1)
            gram += errors @ errors.T / (count * classes)
        else:
            block = _of_truth(labels, stack, panel.task)
            truths[start : start + len(block)] = np.maximum(block, SMALLEST)
            start += len(block)
        if rivals:
            found.append(Rivals.of(stack, labels))
        if calibration is not None:
            calibration.add(labels, soft(stack))
    return Evidence(panel, truths, gram, Rivals.joined(found) if rivals else None, calibration)


def fit_weights(rule: str, evidence: Evidence, by: str = "", picks: int = PICKS) -> Fit:
    """Return the rule weighted or greedy, fitted.

    Args:
        rule: weighted or greedy.
        evidence: with rivals where `by` is accuracy.
        by: one of `CRITERIA`; "": the first of the task. Of weighted it is always that.
        picks: of greedy: so many at most.
    """
    panel = evidence.panel
    by = by or CRITERIA[panel.task][0]
    if by == "squared_error":
        found = least_squared_error(evidence.gram) if rule == "weighted" else greedy_squared_error(evidence.gram, picks)
    elif rule == "weighted":
        found = least_log_loss(evidence.truths)
    elif by == "accuracy":
        assert evidence.rivals is not None, "accuracy needs the rivals"
        found = greedy_accuracy(evidence.rivals, evidence.truths, picks)
    else:
        found = greedy_log_loss(evidence.truths, picks)
    combiner = Combiner(rule, panel.task, tuple(found.values.tolist()))
    return Fit(combiner, panel.members, panel.ledger.meta.split, len(panel.ledger), by, found.loss)


def fit_stacking(held_out: MemberPredictions, members: Sequence[str], groups: Mapping[str, Sequence[str]]) -> Fit:
    """Return the rule stack, fitted on out-of-fold predictions.

    Where there are more than fifty million numbers, as many samples as have so many are taken, by a hash of their keys.

    Args:
        held_out: whose members are the groups; those none of whose members will be combined are left out.
        members: that will be combined, in the order of their stack.
        groups: to the members of the run that belong to each; columns "MEMBER.1" and so on are of MEMBER.

    Raises:
        DataError: no group has such a member, or there is no sample.
    """
    ledger = held_out.ledger
    if not len(ledger):
        raise DataError(f"{ledger.path}: holds no sample, nothing can be fitted")
    places = {
        group: tuple(number for number, name in enumerate(members) if _owner(name, groups.get(group, ())))
        for group in held_out.members
    }
    places = {group: own for group, own in places.items() if own}
    if not places:
        raise DataError(f"{ledger.path}: holds nothing of {', '.join(members)}; evaluate again")
    held_out = replace(held_out, own=tuple(places))
    count, classes = len(ledger), len(ledger.classes)
    most = max(1, LARGEST // (len(held_out.members) * classes))
    hashes = key_hashes(ledger.keys, 0, "stack")
    kept = np.sort(np.argsort(hashes, kind="stable")[:most]) if most < count else np.arange(count)
    features = np.empty((len(held_out.members), len(kept), classes), dtype=np.float32)
    start = filled = 0
    for _, stack in held_out.blocks():
        rows = kept[filled : np.searchsorted(kept, start + stack.shape[1])] - start
        features[:, filled : filled + len(rows)] = log_scores(stack[:, rows], held_out.task)
        start, filled = start + stack.shape[1], filled + len(rows)
    folds = (key_hashes(ledger.keys, 0, "folds of stack") % np.uint64(FOLDS)).astype(np.int64)
    found = fit_stack(features, ledger.labels[kept], folds[kept], held_out.task)
    combiner = Combiner(
        "stack", held_out.task, tuple(found.weights.tolist()), tuple(found.biases.tolist()), tuple(places.values())
    )
    by = "log_loss"
    return Fit(combiner, held_out.members, ledger.meta.split, len(kept), by, found.loss, found.strength)


def boosting_of(members: Sequence[str], alphas: Mapping[str, float], task: str) -> Fit:
    """Return the rule boosting.

    Args:
        members: that will be combined.
        alphas: what the vote of each counts.
        task: multiclass.

    Raises:
        DataError: a member is none of the rounds.
    """
    for name in members:
        if name not in alphas:
            raise DataError(
                f"boosting: '{name}' is no round of this run's boosting, which has {', '.join(alphas)}; evaluate again"
            )
    return Fit(Combiner("boosting", task, tuple(alphas[name] for name in members)), tuple(members), "rounds")


def given_weights(members: Sequence[str], weights: Mapping[str, float], task: str) -> Fit:
    """Return the rule weighted with the user's own weights, of every member one; they have been checked."""
    values = tuple(weights[name] for name in members)
    return Fit(Combiner("weighted", task, values), tuple(members), "given")


def with_temperature(fit: Fit, panel: MemberPredictions) -> Fit:
    """Return a rule that gives probabilities with the temperature of the least log loss on a panel."""
    calibration = Calibration(panel.task, len(panel.ledger), len(panel.ledger.classes))
    for labels, stack in panel.blocks():
        calibration.add(labels, fit.combiner(stack).predictions)
    found = calibration.fit()
    return replace(fit, combiner=replace(fit.combiner, temperature=found.value), calibrated=found)


def _of_truth(labels: NDArray[Any], stack: NDArray[np.float32], task: str) -> NDArray[np.float32]:
    if task == "multiclass":
        own: NDArray[np.float32] = stack[:, np.arange(len(labels)), labels].T
        return own
    return np.where(labels > 0, stack, 1 - stack).reshape(len(stack), -1).T


def _owner(column: str, members: Sequence[str]) -> bool:
    """Whether a column is of one of the members, or of one of their snapshots."""
    before, _, number = column.rpartition(".")
    return column in members or (number.isdigit() and before in members)
