"""Rules that make one prediction from those of the members.

They work on a stack of (members, n, classes): a block of a ledger (`Ledger.blocks`), so that memory stays bounded
however many samples there are, or what several networks say about new images. What a rule has to know besides (weights, a
temperature) is fitted elsewhere, by `choral.ensembles.rule_fitting`, and held here by a `Combiner`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from choral.metrics.per_sample import top_class

SMALLEST = float(np.finfo(np.float32).eps)  # of a probability: below, logarithms take it for this, as the log loss does
SAME_VOTES = 1e-9


@dataclass(frozen=True)
class Votes:
    """A majority vote; it has no probabilities, for a class without a vote need not be impossible.

    Attributes:
        predictions: (n,) int64 the winning class.
        tied: (n,) bool, where classes had equally many votes, so that the mean probability decided.
    """

    predictions: NDArray[np.int64]
    tied: NDArray[np.bool_]


@dataclass(frozen=True)
class Said:
    """What the members say together.

    Attributes:
        predictions: (n, classes) float32 probabilities, of `hard` shares of votes, with regression numbers. The highest of
            a row is the class that is chosen, also where votes were tied.
        tied: (n,) bool of rules that vote, else None.
    """

    predictions: NDArray[np.float32]
    tied: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Combiner:
    """A rule with everything that it has to know.

    Attributes:
        rule: soft, hard, geometric, mean, median, weighted, greedy, stack or boosting.
        task: of the predictions.
        weights: of the members, with stack of the groups; of soft, hard, geometric, mean and median none.
        biases: (classes,) of stack.
        groups: of stack: the positions of each group's members in the stack of predictions.
        temperature: by which the logarithms of the combined probabilities are divided.
    """

    rule: str
    task: str
    weights: tuple[float, ...] = ()
    biases: tuple[float, ...] = ()
    groups: tuple[tuple[int, ...], ...] = ()
    temperature: float = 1.0

    @property
    def gives_probabilities(self) -> bool:
        """Whether its predictions are probabilities, so that they have a log loss and can have a temperature."""
        return self.task != "regression" and self.rule != "hard"

    def __call__(self, stack: NDArray[np.float32]) -> Said:
        """Return what the members say together, from a (members, n, classes) float32 stack of what each says."""
        if self.rule == "hard":
            return shares(stack)
        if self.rule == "boosting":
            said = boosted(stack, self.weights)
            if self.temperature == 1:
                return said
            winners = top_class(said.predictions)
            return Said(_leading(tempered(said.predictions, self.temperature, self.task), winners), said.tied)
        return Said(tempered(self._mixture(stack), self.temperature, self.task))

    def _mixture(self, stack: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.rule == "median":
            return median(stack)
        if self.rule == "geometric":
            return geometric(stack, self.task)
        if self.rule in ("weighted", "greedy"):
            return weighted(stack, self.weights)
        if self.rule == "stack":
            return stacked(group_means(stack, self.groups), self.weights, self.biases, self.task)
        return soft(stack)


def mean_rule(task: str) -> str:
    """Return what the mean over the members is called."""
    return "mean" if task == "regression" else "soft"


def soft(stack: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean of the members' predictions: of probabilities the soft vote, of numbers their mean.

    Args:
        stack: (members, n, classes) float32.

    Returns:
        (n, classes) float32; the mean is taken in float64, so that the order of the members cannot show.
    """
    mean: NDArray[np.float32] = stack.mean(axis=0, dtype=np.float64).astype(np.float32)
    return mean


def over_views(views: Iterable[NDArray[np.float32]], weights: Sequence[float] = ()) -> NDArray[np.float32]:
    """Return the mean over views of what members say, view by view, so that they are not held all at once.

    Args:
        views: (members, n, classes) float32 each.
        weights: of the views, 0 or more, summing to 1; none: all alike.
    """
    total, count = np.zeros(()), 0
    for values, weight in zip(views, weights or repeat(1.0), strict=False):
        total = total + weight * values.astype(np.float64)
        count += 1
    mean: NDArray[np.float32] = (total if weights else total / count).astype(np.float32)
    return mean


def weighted(stack: NDArray[np.float32], weights: Sequence[float]) -> NDArray[np.float32]:
    """Return the (n, classes) float32 sum of the members' predictions, each times its weight; summed in float64.

    Args:
        stack: (members, n, classes) float32.
        weights: (members,), 0 or more, summing to 1.
    """
    total = np.zeros(stack.shape[1:])
    for values, weight in zip(stack, weights, strict=True):
        if weight:
            total += weight * values.astype(np.float64)
    return total.astype(np.float32)


def median(stack: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the (n, targets) float32 median of the members' numbers, which one member far off cannot move far.

    Args:
        stack: (members, n, targets) float32.
    """
    middle: NDArray[np.float32] = np.median(stack, axis=0).astype(np.float32)
    return middle


def geometric(stack: NDArray[np.float32], task: str) -> NDArray[np.float32]:
    """Return the (n, classes) float32 geometric mean of the members' probabilities, divided by its sum.

    The softmax (multilabel: the sigmoid) of the mean of the members' logits is the same, but that here no probability is
    taken for less than 1.2e-7. A member that holds a class for nearly impossible weighs more than in the arithmetic mean.

    Args:
        stack: (members, n, classes) float32 probabilities.
        task: multilabel: of each label and its absence.
    """
    total = np.zeros(stack.shape[1:])
    for probabilities in stack:
        total += log_scores(probabilities, task)
    return probabilities_of((total / len(stack)).astype(np.float32), task)


def hard(stack: NDArray[np.float32]) -> Votes:
    """Return the majority vote: each member votes for its most probable class.

    Classes with equally many votes are told apart by their mean probability over all members; should that be equal
    too, the first class wins.

    Args:
        stack: (members, n, classes) float32.
    """
    return _decided(_votes(stack, [1.0] * len(stack)), stack)


def shares(stack: NDArray[np.float32]) -> Said:
    """Return each class's share of the votes of `hard`; where votes are tied, the winner's is the next float32 above.

    Args:
        stack: (members, n, classes) float32.
    """
    votes = _votes(stack, [1.0] * len(stack))
    decided = _decided(votes, stack)
    return Said(_leading((votes / len(stack)).astype(np.float32), decided.predictions), decided.tied)


def boosted(stack: NDArray[np.float32], alphas: Sequence[float]) -> Said:
    """Return what rounds of boosting say together: votes, each counted as much as its round is worth.

    Zhu et al. 2009, "Multi-class AdaBoost", https://doi.org/10.4310/SII.2009.v2.n3.a8: the class of the highest sum of
    alphas wins, and the softmax of these sums are its probabilities (the loss that SAMME minimises has its minimum there).
    Equal sums are told apart as in `hard`.

    Args:
        stack: (members, n, classes) float32.
        alphas: (members,) what the vote of each member counts.
    """
    votes = _votes(stack, alphas)
    decided = _decided(votes, stack)
    powers = np.exp(votes - votes.max(axis=1, keepdims=True))
    probabilities = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return Said(_leading(probabilities, decided.predictions), decided.tied)


def group_means(stack: NDArray[np.float32], groups: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """Return the (groups, n, classes) float32 means over the members of each group."""
    return np.stack([soft(stack[list(group)]) for group in groups])


def stacked(
    stack: NDArray[np.float32], weights: Sequence[float], biases: Sequence[float], task: str
) -> NDArray[np.float32]:
    """Return the probabilities of a logistic regression on the logarithms of several probabilities.

    Args:
        stack: (groups, n, classes) float32 probabilities.
        weights: (groups,) that the log probabilities (multilabel: the logits) are multiplied with.
        biases: (classes,) that are added.
        task: multiclass: a softmax over the classes; multilabel: a sigmoid of each.

    Returns:
        (n, classes) float32.
    """
    scores = np.broadcast_to(np.asarray(biases, dtype=np.float32), stack.shape[1:]).copy()
    for probabilities, weight in zip(stack, weights, strict=True):
        scores += np.float32(weight) * log_scores(probabilities, task)
    return probabilities_of(scores, task)


def tempered(predictions: NDArray[np.float32], temperature: float, task: str) -> NDArray[np.float32]:
    """Return probabilities whose logarithms (multilabel: logits) are divided by the temperature; of 1, as they were.

    Guo et al. 2017, "On calibration of modern neural networks", https://arxiv.org/abs/1706.04599. Above 1, predictions
    become less sure, below 1 surer; which class is the most probable does not change.
    """
    if temperature == 1:
        return predictions
    return probabilities_of(log_scores(predictions, task) / np.float32(temperature), task)


def log_scores(probabilities: NDArray[np.float32], task: str) -> NDArray[np.float32]:
    """Return logarithms, of multilabel logits; probabilities below (multilabel: or above 1 -) 1.2e-7 are taken for that."""
    logs: NDArray[np.float32] = np.log(np.maximum(probabilities, np.float32(SMALLEST)))
    if task == "multilabel":
        logs -= np.log(np.maximum(1 - probabilities, np.float32(SMALLEST)))
    return logs


def probabilities_of(scores: NDArray[np.float32], task: str) -> NDArray[np.float32]:
    """Return the softmax over the classes, of multilabel the sigmoid, of (n, classes) scores, which are overwritten."""
    if task == "multilabel":
        result: NDArray[np.float32] = (1 / (1 + np.exp(-scores.astype(np.float64)))).astype(np.float32)
        return result
    scores -= scores.max(axis=1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=1, keepdims=True)
    return scores


def _votes(stack: NDArray[np.float32], worth: Sequence[float]) -> NDArray[np.float64]:
    """Return (n, classes): the sum of what the votes for each class are worth."""
    _, count, classes = stack.shape
    votes = np.zeros((count, classes))
    for ballot, value in zip(top_class(stack), worth, strict=True):
        votes[np.arange(count), ballot] += value
    return votes


def _decided(votes: NDArray[np.float64], stack: NDArray[np.float32]) -> Votes:
    leading = votes >= votes.max(axis=1, keepdims=True) - SAME_VOTES
    tied = leading.sum(axis=1) > 1
    winners: NDArray[np.int64] = leading.argmax(axis=1)
    mean = stack[:, tied].mean(axis=0, dtype=np.float64)
    winners[tied] = np.where(leading[tied], mean, -1.0).argmax(axis=1)
    return Votes(winners, tied)


def _leading(values: NDArray[np.float32], winners: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the values, with that of each row's winner raised to the next float32 where another is as high."""
    rows = np.arange(len(values))
    short = np.flatnonzero(top_class(values) != winners)
    above = np.nextafter(values[short].max(axis=1), np.float32(2))
    values[rows[short], winners[short]] = above
    return values
