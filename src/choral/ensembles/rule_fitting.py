"""Fitting of combination rules, to predictions of samples that are not scored: validation, or out-of-fold predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from choral.core.errors import DataError
from choral.data.shards.splits import hash_keys
from choral.ensembles.member_predictions import MemberPredictions
from choral.ensembles.member_weights import (
    CandidateClasses,
    greedy_accuracy,
    greedy_log_loss,
    greedy_squared_error,
    min_log_loss_weights,
    min_squared_error_weights,
)
from choral.ensembles.rules import MIN_PROBABILITY, Combiner, log_scores, soft_vote
from choral.ensembles.stacking import FOLDS, LARGEST, fit_stacking
from choral.ensembles.temperature import Temperature, TemperatureFitter

RULES = {
    "multiclass": ("soft", "hard", "geometric", "weighted", "greedy", "stack", "boosting"),
    "multilabel": ("soft", "geometric", "weighted", "greedy", "stack"),
    "regression": ("mean", "median", "weighted", "greedy"),
}
CRITERIA = {"multiclass": ("log_loss", "accuracy"), "multilabel": ("log_loss",), "regression": ("squared_error",)}
MAX_PICKS = 100


@dataclass(frozen=True)
class FittedRule:
    """A rule that is ready to use, and how it was fitted.

    Attributes:
        combiner: the rule with its parameters.
        names: what its weights belong to: members, or for stack groups of members.
        fitted_on: the split that the weights were fitted on, "held-out" for out-of-fold predictions, "rounds" for boosting,
            "given" if the user set them; "" for rules without weights.
        samples: number of samples that they were fitted on.
        criterion: what the weights minimise.
        loss: its minimum; None if nothing was fitted.
        strength: of the penalty, for stack.
        temperature_fit: how the temperature was fitted; None if it was not.
    """

    combiner: Combiner
    names: tuple[str, ...] = ()
    fitted_on: str = ""
    samples: int = 0
    criterion: str = ""
    loss: float | None = None
    strength: float | None = None
    temperature_fit: Temperature | None = None

    @property
    def weights(self) -> dict[str, float]:
        """Name to weight; empty for rules without weights."""
        return dict(zip(self.names, self.combiner.weights, strict=True))


@dataclass(frozen=True)
class FittingStatistics:
    """Sufficient statistics for fitting weights and a temperature, from one pass over member predictions.

    Attributes:
        member_predictions: what they were computed from.
        true_probabilities: (n, members) probability that each member gives to the truth, at least 1.2e-7: the label's; for
            multilabel one row for each sample and label; for regression none.
        error_gram: regression: (members, members) mean products of errors, in standard deviations of each target.
        candidates: multiclass, on request: the classes that a weighted mean can predict.
        temperature_fitter: on request: the mean over the members, for fitting its temperature.
    """

    member_predictions: MemberPredictions
    true_probabilities: NDArray[np.floating]
    error_gram: NDArray[np.float64]
    candidates: CandidateClasses | None = None
    temperature_fitter: TemperatureFitter | None = None


def unfitted_rule(rule: str, task: str) -> FittedRule:
    """Return a rule without parameters: soft, hard, geometric, mean or median."""
    return FittedRule(Combiner(rule, task))


def compute_statistics(
    member_predictions: MemberPredictions, *, candidates: bool = False, calibrate: bool = False
) -> FittingStatistics:
    """Return the statistics of member predictions, reading them once.

    Args:
        member_predictions: of the samples to fit on.
        candidates: collect what the accuracy of weighted means depends on.
        calibrate: collect the mean over the members, for its temperature.

    Raises:
        DataError: there is no sample.
    """
    ledger, task = member_predictions.ledger, member_predictions.task
    members, classes, count = len(member_predictions.members), len(ledger.classes), len(ledger)
    if not count:
        raise DataError(f"{ledger.path}: holds no samples, so nothing can be fitted")
    regression = task == "regression"
    scale = np.maximum(ledger.labels.std(axis=0, dtype=np.float64), 1e-12) if regression else np.ones(1)
    error_gram, found = np.zeros((members, members)), []
    rows_per_sample = {"multiclass": 1, "multilabel": classes, "regression": 0}[task]
    dtype = np.float64 if rows_per_sample == 1 else np.float32
    true_probabilities = np.empty((count * rows_per_sample, members), dtype=dtype)
    fitter = TemperatureFitter(task, count, classes) if calibrate else None
    start = 0
    for labels, stack in member_predictions.blocks():
        if regression:
            errors = ((stack.astype(np.float64) - labels) / scale).reshape(members, -1)
            error_gram += errors @ errors.T / (count * classes)
        else:
            block = _true_probabilities(labels, stack, task)
            true_probabilities[start : start + len(block)] = np.maximum(block, MIN_PROBABILITY)
            start += len(block)
        if candidates:
            found.append(CandidateClasses.from_stack(stack, labels))
        if fitter is not None:
            fitter.add(labels, soft_vote(stack))
    merged = CandidateClasses.concatenate(found) if candidates else None
    return FittingStatistics(member_predictions, true_probabilities, error_gram, merged, fitter)


def fit_weights(
    rule: str, statistics: FittingStatistics, criterion: str = "", max_picks: int = MAX_PICKS
) -> FittedRule:
    """Return the rule weighted or greedy, fitted.

    Args:
        rule: weighted or greedy.
        statistics: with candidates if the criterion is accuracy.
        criterion: one of `CRITERIA`; "": the first of the task, which weighted always uses.
        max_picks: upper limit of members that greedy selects.
    """
    fitted_to = statistics.member_predictions
    criterion = criterion or CRITERIA[fitted_to.task][0]
    if criterion == "squared_error":
        gram = statistics.error_gram
        found = min_squared_error_weights(gram) if rule == "weighted" else greedy_squared_error(gram, max_picks)
    elif rule == "weighted":
        found = min_log_loss_weights(statistics.true_probabilities)
    elif criterion == "accuracy":
        assert statistics.candidates is not None, "accuracy needs the candidate classes"
        found = greedy_accuracy(statistics.candidates, statistics.true_probabilities, max_picks)
    else:
        found = greedy_log_loss(statistics.true_probabilities, max_picks)
    combiner = Combiner(rule, fitted_to.task, tuple(found.values.tolist()))
    split, samples = fitted_to.ledger.meta.split, len(fitted_to.ledger)
    return FittedRule(combiner, fitted_to.members, split, samples, criterion, found.loss)


def fit_stacking_rule(
    held_out: MemberPredictions, members: Sequence[str], groups: Mapping[str, Sequence[str]]
) -> FittedRule:
    """Return the rule stack, fitted to out-of-fold predictions.

    Above fifty million numbers it is fitted to a subset of the samples of that size, chosen by a hash of their keys.

    Args:
        held_out: its members are the groups; groups without any member to combine are left out.
        members: to combine, in the order of their stack.
        groups: group to the members of the run that belong to it; columns "MEMBER.1" and so on belong to MEMBER.

    Raises:
        DataError: no group has such a member, or there is no sample.
    """
    ledger = held_out.ledger
    if not len(ledger):
        raise DataError(f"{ledger.path}: holds no samples, so nothing can be fitted")
    positions = {
        group: tuple(number for number, name in enumerate(members) if _belongs_to(name, groups.get(group, ())))
        for group in held_out.members
    }
    positions = {group: of_group for group, of_group in positions.items() if of_group}
    if not positions:
        raise DataError(f"{ledger.path}: has no predictions of {', '.join(members)}; evaluate again")
    held_out = replace(held_out, ledger_members=tuple(positions))
    count, classes = len(ledger), len(ledger.classes)
    most = max(1, LARGEST // (len(held_out.members) * classes))
    hashes = hash_keys(ledger.keys, 0, "stack")
    kept = np.sort(np.argsort(hashes, kind="stable")[:most]) if most < count else np.arange(count)
    features = np.empty((len(held_out.members), len(kept), classes), dtype=np.float32)
    start = filled = 0
    for _, stack in held_out.blocks():
        rows = kept[filled : np.searchsorted(kept, start + stack.shape[1])] - start
        features[:, filled : filled + len(rows)] = log_scores(stack[:, rows], held_out.task)
        start, filled = start + stack.shape[1], filled + len(rows)
    folds = (hash_keys(ledger.keys, 0, "folds of stack") % np.uint64(FOLDS)).astype(np.int64)
    found = fit_stacking(features, ledger.labels[kept], folds[kept], held_out.task)
    weights, biases = tuple(found.weights.tolist()), tuple(found.biases.tolist())
    combiner = Combiner("stack", held_out.task, weights, biases, tuple(positions.values()))
    split, criterion = ledger.meta.split, "log_loss"
    return FittedRule(combiner, held_out.members, split, len(kept), criterion, found.loss, found.strength)


def boosting_rule(members: Sequence[str], alphas: Mapping[str, float], task: str) -> FittedRule:
    """Return the rule boosting.

    Args:
        members: to combine.
        alphas: member to the weight of its vote.
        task: multiclass.

    Raises:
        DataError: a member is not a boosting round of the run.
    """
    for name in members:
        if name not in alphas:
            raise DataError(
                f"boosting: '{name}' is not one of this run's boosting rounds, {', '.join(alphas)}; evaluate again"
            )
    weights = tuple(alphas[name] for name in members)
    return FittedRule(Combiner("boosting", task, weights), tuple(members), "rounds")


def weighted_rule(members: Sequence[str], weights: Mapping[str, float], task: str) -> FittedRule:
    """Return the rule weighted with weights set by the user, one for every member; they have been checked."""
    values = tuple(weights[name] for name in members)
    return FittedRule(Combiner("weighted", task, values), tuple(members), "given")


def fit_temperature(rule: FittedRule, member_predictions: MemberPredictions) -> FittedRule:
    """Return a rule that gives probabilities with the temperature of least log loss on these predictions."""
    ledger = member_predictions.ledger
    fitter = TemperatureFitter(member_predictions.task, len(ledger), len(ledger.classes))
    for labels, stack in member_predictions.blocks():
        fitter.add(labels, rule.combiner(stack).predictions)
    found = fitter.fit()
    return replace(rule, combiner=replace(rule.combiner, temperature=found.value), temperature_fit=found)


def _true_probabilities(labels: NDArray[Any], stack: NDArray[np.float32], task: str) -> NDArray[np.float32]:
    """Return the (rows, members) probabilities that the members give to the truth."""
    if task == "multiclass":
        of_label: NDArray[np.float32] = stack[:, np.arange(len(labels)), labels].T
        return of_label
    return np.where(labels > 0, stack, 1 - stack).reshape(len(stack), -1).T


def _belongs_to(column: str, members: Sequence[str]) -> bool:
    """Whether a column holds one of the members, or one of their snapshots."""
    member, _, number = column.rpartition(".")
    return column in members or (number.isdigit() and member in members)
