"""Combination rules: one prediction from those of the members.

Rules work on a (members, n, classes) stack: a block of a ledger (`Ledger.blocks`), so that memory does not grow with the
number of samples, or the predictions of several networks for new images. What a rule has to learn (weights, a
temperature) is fitted by `choral.ensembles.rule_fitting` and stored in a `Combiner`.

To add a rule:

1. write it here as a function of a stack, and call it in `Combiner._combine`, or in `__call__` if it votes; extend
   `gives_probabilities` if it gives none;
2. add its name to `RULES` in rule_fitting.py; if it has parameters, fit them there and return a `FittedRule`;
3. add it to `available_rules` and `fit_rule` in fitting_data.py, so that `choral score` has a row for it;
4. add it to deploy/bundle/combine_module.py, so that it is exported with the models, and to the texts of
   deploy/bundle/model_card.py; if nothing is fitted, also to policy_choice.py there, else to saved_combination.py;
5. add it to the help in cli/combine_verbs.py and to the table of README.md;
6. compare it with a few lines of NumPy in tests/ensembles/test_rules.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from choral.metrics.per_sample import top_class

MIN_PROBABILITY = float(np.finfo(np.float32).eps)  # probabilities are clipped here before taking logarithms
VOTE_TOLERANCE = 1e-9


@dataclass(frozen=True)
class MajorityVote:
    """A majority vote. It has no probabilities: a class without votes need not be impossible.

    Attributes:
        predictions: (n,) int64 winning class.
        tied: (n,) bool, where several classes had equally many votes and the mean probability decided.
    """

    predictions: NDArray[np.int64]
    tied: NDArray[np.bool_]


@dataclass(frozen=True)
class Combined:
    """The combined prediction of several members.

    Attributes:
        predictions: (n, classes) float32: probabilities; shares of votes for `hard`; numbers for regression. The argmax
            is the predicted class, even where votes are tied.
        tied: (n,) bool for rules that vote, else None.
    """

    predictions: NDArray[np.float32]
    tied: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Combiner:
    """A rule with all its parameters.

    Attributes:
        rule: soft, hard, geometric, mean, median, weighted, greedy, stack or boosting.
        task: multiclass, multilabel or regression.
        weights: of the members, for stack of the groups; empty for soft, hard, geometric, mean and median.
        biases: (classes,) of stack.
        groups: of stack: the positions of each group's members in the stack of predictions.
        temperature: divides the logarithms of the combined probabilities.
    """

    rule: str
    task: str
    weights: tuple[float, ...] = ()
    biases: tuple[float, ...] = ()
    groups: tuple[tuple[int, ...], ...] = ()
    temperature: float = 1.0

    @property
    def gives_probabilities(self) -> bool:
        """Whether its predictions are probabilities, which have a log loss and can have a temperature."""
        return self.task != "regression" and self.rule != "hard"

    def __call__(self, stack: NDArray[np.float32]) -> Combined:
        """Return the combined prediction of a (members, n, classes) float32 stack."""
        if self.rule == "hard":
            return vote_shares(stack)
        if self.rule == "boosting":
            combined = boosted_vote(stack, self.weights)
            if self.temperature == 1:
                return combined
            winners = top_class(combined.predictions)
            probabilities = apply_temperature(combined.predictions, self.temperature, self.task)
            return Combined(_raise_winners(probabilities, winners), combined.tied)
        return Combined(apply_temperature(self._combine(stack), self.temperature, self.task))

    def _combine(self, stack: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.rule == "median":
            return median_prediction(stack)
        if self.rule == "geometric":
            return geometric_mean(stack, self.task)
        if self.rule in ("weighted", "greedy"):
            return weighted_mean(stack, self.weights)
        if self.rule == "stack":
            return apply_stacking(group_means(stack, self.groups), self.weights, self.biases, self.task)
        assert self.rule in ("soft", "mean"), f"no rule {self.rule}"
        return soft_vote(stack)


def mean_rule_name(task: str) -> str:
    """Return the name of the rule that averages the members."""
    return "mean" if task == "regression" else "soft"


def soft_vote(stack: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean of the members' predictions: the soft vote of probabilities, or the mean of numbers.

    Args:
        stack: (members, n, classes) float32.

    Returns:
        (n, classes) float32; averaged in float64, so the order of the members does not matter.
    """
    mean: NDArray[np.float32] = stack.mean(axis=0, dtype=np.float64).astype(np.float32)
    return mean


def average_views(views: Iterable[NDArray[np.float32]], weights: Sequence[float] = ()) -> NDArray[np.float32]:
    """Return the mean over views of the members' predictions, holding one view at a time.

    Args:
        views: (members, n, classes) float32 each.
        weights: one a view, 0 or more, summing to 1; empty: equal.
    """
    total, count = np.zeros(()), 0
    for values, weight in zip(views, weights or repeat(1.0), strict=False):
        total = total + weight * values.astype(np.float64)
        count += 1
    mean: NDArray[np.float32] = (total if weights else total / count).astype(np.float32)
    return mean


def weighted_mean(stack: NDArray[np.float32], weights: Sequence[float]) -> NDArray[np.float32]:
    """Return the (n, classes) float32 weighted sum of the members' predictions, summed in float64.

    Args:
        stack: (members, n, classes) float32.
        weights: (members,), 0 or more, summing to 1.
    """
    total = np.zeros(stack.shape[1:])
    for values, weight in zip(stack, weights, strict=True):
        if weight:
            total += weight * values.astype(np.float64)
    return total.astype(np.float32)


def median_prediction(stack: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the (n, targets) float32 median of the members' numbers, which is robust to an outlier.

    Args:
        stack: (members, n, targets) float32.
    """
    middle: NDArray[np.float32] = np.median(stack, axis=0).astype(np.float32)
    return middle


def geometric_mean(stack: NDArray[np.float32], task: str) -> NDArray[np.float32]:
    """Return the (n, classes) float32 geometric mean of the members' probabilities, normalised to sum to 1.

    This equals the softmax (multilabel: sigmoid) of the mean logits, except that probabilities are clipped at 1.2e-7. A
    member that considers a class nearly impossible has more influence than in the arithmetic mean.

    Args:
        stack: (members, n, classes) float32 probabilities.
        task: multilabel: each label and its absence are two classes.
    """
    total = np.zeros(stack.shape[1:])
    for probabilities in stack:
        total += log_scores(probabilities, task)
    return probabilities_from_scores((total / len(stack)).astype(np.float32), task)


def hard_vote(stack: NDArray[np.float32]) -> MajorityVote:
    """Return the majority vote: each member votes for its most probable class.

    Ties go to the class with the highest mean probability over all members, then to the first class.

    Args:
        stack: (members, n, classes) float32.
    """
    return _resolve_vote(_count_votes(stack, [1.0] * len(stack)), stack)


def vote_shares(stack: NDArray[np.float32]) -> Combined:
    """Return each class's share of the votes of `hard_vote`; the winner of a tie gets the next float32 above.

    Args:
        stack: (members, n, classes) float32.
    """
    votes = _count_votes(stack, [1.0] * len(stack))
    vote = _resolve_vote(votes, stack)
    return Combined(_raise_winners((votes / len(stack)).astype(np.float32), vote.predictions), vote.tied)


def boosted_vote(stack: NDArray[np.float32], alphas: Sequence[float]) -> Combined:
    """Return the weighted vote of boosting rounds (SAMME).

    Zhu et al. 2009, "Multi-class AdaBoost", https://doi.org/10.4310/SII.2009.v2.n3.a8: the class with the highest sum of
    alphas wins; the softmax of the sums are its probabilities (at which the loss that SAMME minimises has its minimum).
    Ties are resolved as in `hard_vote`.

    Args:
        stack: (members, n, classes) float32.
        alphas: (members,) weight of each member's vote.
    """
    votes = _count_votes(stack, alphas)
    vote = _resolve_vote(votes, stack)
    powers = np.exp(votes - votes.max(axis=1, keepdims=True))
    probabilities = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return Combined(_raise_winners(probabilities, vote.predictions), vote.tied)


def group_means(stack: NDArray[np.float32], groups: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """Return the (groups, n, classes) float32 means over the members of each group."""
    return np.stack([soft_vote(stack[list(group)]) for group in groups])


def apply_stacking(
    stack: NDArray[np.float32], weights: Sequence[float], biases: Sequence[float], task: str
) -> NDArray[np.float32]:
    """Return the probabilities of a logistic regression on log probabilities.

    Args:
        stack: (groups, n, classes) float32 probabilities.
        weights: (groups,) multiply the log probabilities (multilabel: logits).
        biases: (classes,) are added.
        task: multiclass: a softmax over the classes; multilabel: a sigmoid of each.

    Returns:
        (n, classes) float32.
    """
    scores = np.broadcast_to(np.asarray(biases, dtype=np.float32), stack.shape[1:]).copy()
    for probabilities, weight in zip(stack, weights, strict=True):
        scores += np.float32(weight) * log_scores(probabilities, task)
    return probabilities_from_scores(scores, task)


def apply_temperature(predictions: NDArray[np.float32], temperature: float, task: str) -> NDArray[np.float32]:
    """Return probabilities with their logarithms (multilabel: logits) divided by the temperature; unchanged at 1.

    Guo et al. 2017, "On calibration of modern neural networks", https://arxiv.org/abs/1706.04599. A temperature above 1
    makes predictions less confident, below 1 more; the most probable class does not change.
    """
    if temperature == 1:
        return predictions
    return probabilities_from_scores(log_scores(predictions, task) / np.float32(temperature), task)


def log_scores(probabilities: NDArray[np.float32], task: str) -> NDArray[np.float32]:
    """Return log probabilities, for multilabel logits; probabilities (multilabel: also 1 - p) are clipped at 1.2e-7."""
    logs: NDArray[np.float32] = np.log(np.maximum(probabilities, np.float32(MIN_PROBABILITY)))
    if task == "multilabel":
        logs -= np.log(np.maximum(1 - probabilities, np.float32(MIN_PROBABILITY)))
    return logs


def probabilities_from_scores(scores: NDArray[np.float32], task: str) -> NDArray[np.float32]:
    """Return the softmax, for multilabel the sigmoid, of (n, classes) scores; the scores may be overwritten."""
    if task == "multilabel":
        result: NDArray[np.float32] = (1 / (1 + np.exp(-scores.astype(np.float64)))).astype(np.float32)
        return result
    scores -= scores.max(axis=1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=1, keepdims=True)
    return scores


def _count_votes(stack: NDArray[np.float32], weights: Sequence[float]) -> NDArray[np.float64]:
    """Return the (n, classes) weighted sums of the members' votes."""
    _, count, classes = stack.shape
    votes = np.zeros((count, classes))
    for vote, weight in zip(top_class(stack), weights, strict=True):
        votes[np.arange(count), vote] += weight
    return votes


def _resolve_vote(votes: NDArray[np.float64], stack: NDArray[np.float32]) -> MajorityVote:
    leading = votes >= votes.max(axis=1, keepdims=True) - VOTE_TOLERANCE
    tied = leading.sum(axis=1) > 1
    winners: NDArray[np.int64] = leading.argmax(axis=1)
    mean = stack[:, tied].mean(axis=0, dtype=np.float64)
    winners[tied] = np.where(leading[tied], mean, -1.0).argmax(axis=1)
    return MajorityVote(winners, tied)


def _raise_winners(values: NDArray[np.float32], winners: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the values; where the winner is not the argmax, its value becomes the next float32 above the maximum."""
    rows = np.arange(len(values))
    tied_rows = np.flatnonzero(top_class(values) != winners)
    above = np.nextafter(values[tied_rows].max(axis=1), np.float32(2))
    values[rows[tied_rows], winners[tied_rows]] = above
    return values
