"""Do validation images vary in a way that training did not show? Undo the change, and see whether answers get better.

That a network fails on changed images says nothing about whether such images come: every network fails upside down. What
comes is seen in validation data: of each image there are the changed versions that were probed; the one that the network is
surest of is chosen, without a look at the label, and if more answers are right then, images came that had to be changed
first. Where training covers what validation shows, nothing gets better so: the network is surest of the image as it is, or is
led astray, as by a 6 that is turned until it is a 9. So a change that alters labels is found, not assumed.

How far images may be changed, and how much surer the network must be to leave an image as it is, is chosen on four fifths
of the samples and judged on the last one, five times over: the gain is that of samples that chose nothing. Families
are taken up one after the other, the one that mends most first, each judged on top of the ones before: dark images are also
seen better with more contrast, but not once they are lit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from choral.data.shards.splits import key_hashes
from choral.metrics.multiple_comparisons import holm
from choral.metrics.per_sample import correct, top_class

FOLDS = 5
LEVEL = 0.05
_MARGINS = (0.0, 1.0, 2.0, 4.0)  # log odds by which a changed image must be surer
_SMALLEST = 1e-6

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Choices:
    """The versions of each image that one family of changes offers.

    Attributes:
        strengths: (K,) of the changes, above 0.
        sureness: (K, N) how sure the network is of each, see `sureness_of`.
        right: (K, N) how right its answers are, 0 to 1.
    """

    strengths: Floats
    sureness: Floats
    right: Floats


@dataclass(frozen=True)
class Undone:
    """What one family of changes mends, on top of what was undone before.

    Attributes:
        family: of the changes that images were shown with.
        difference: (N,) how much more right each answer is, -1 to 1; rules were chosen on other samples.
        strength: up to which images are changed, chosen on all samples; 0: better not at all.
        p, p_adjusted: that of an exact test of signs of `difference`, without and with Holm's correction for all families
            that were tried.
    """

    family: str
    difference: Floats
    strength: float
    p: float
    p_adjusted: float

    @property
    def mends(self) -> bool:
        """Whether answers get better, significantly."""
        return self.p_adjusted < LEVEL and bool(self.difference.sum() > 0) and self.strength > 0


@dataclass(frozen=True)
class _State:
    """What each image is taken for so far, once for the rules of each fold and once for those of all samples."""

    sureness: Floats  # (FOLDS + 1, N)
    right: Floats


@dataclass(frozen=True)
class _Rule:
    strength: float
    margin: float


def sureness_of(task: str, predictions: NDArray[np.float32]) -> Floats:
    """Return (N,) how sure predictions are: the log odds of the most probable class, the mean over labels of each one's.

    Args:
        task: multiclass or multilabel; numbers do not say how sure they are.
        predictions: (N, C) of it.
    """
    likely = predictions.max(axis=1) if task == "multiclass" else np.maximum(predictions, 1 - predictions)
    share = np.clip(likely.astype(np.float64), _SMALLEST, 1 - _SMALLEST)
    odds = np.log(share / (1 - share))
    found: Floats = odds if task == "multiclass" else odds.mean(axis=1)
    return found


def rightness_of(task: str, labels: NDArray[np.int64], predictions: NDArray[np.float32]) -> Floats:
    """Return (N,) whether the class is right, or the share of labels that are."""
    if task == "multiclass":
        return correct(labels, top_class(predictions))
    found: Floats = ((predictions > 0.5) == (labels > 0)).mean(axis=1)
    return found


def undo(
    sureness: Floats, right: Floats, families: Mapping[str, Choices], keys: Sequence[str]
) -> tuple[list[Undone], dict[str, Undone]]:
    """Return what families of changes mend.

    Args:
        sureness, right: (N,) of the images as they are.
        families: what each offers instead.
        keys: (N,) of the samples; they decide which fold a sample is in.

    Returns:
        those that mend something, each on top of the ones before it, and, of every family, what it mends by itself.
    """
    fold = (key_hashes(keys, 0, "undone") % FOLDS).astype(np.int64)
    state = _State(np.tile(sureness, (FOLDS + 1, 1)), np.tile(right, (FOLDS + 1, 1)))
    alone = _tried(state, families, fold, len(families))
    taken: list[Undone] = []
    found, left = alone, dict(families)
    while True:
        best = max(found.values(), key=lambda one: (one.mends, one.difference.sum()), default=None)
        if best is None or not best.mends:
            return taken, alone
        taken.append(best)
        state = _applied(state, left.pop(best.family), fold)
        found = _tried(state, left, fold, len(families))


def _tried(
    state: _State, families: Mapping[str, Choices], fold: NDArray[np.int64], comparisons: int
) -> dict[str, Undone]:
    """Return what each family mends on top of a state; p values are adjusted for so many comparisons."""
    at = np.arange(len(fold))
    differences, rules = {}, {}
    for name, choices in families.items():
        found = _applied(state, choices, fold)
        differences[name] = (found.right - state.right)[fold, at]
        rules[name] = _rule(state, choices, np.ones(len(fold), np.bool_), FOLDS)
    values = {name: sign_test(difference) for name, difference in differences.items()}
    adjusted = dict(zip(values, holm(list(values.values()), comparisons), strict=True))
    return {
        name: Undone(name, differences[name], rules[name].strength, values[name], adjusted[name]) for name in families
    }


def _applied(state: _State, choices: Choices, fold: NDArray[np.int64]) -> _State:
    """Return what images are taken for after one more family, by the rules that the other folds would choose."""
    sureness, right = state.sureness.copy(), state.right.copy()
    for number in range(FOLDS + 1):
        rule = _rule(state, choices, fold != number, number)
        if rule.strength > 0:
            best, answer = _surest(choices, rule.strength)
            moved = best > state.sureness[number] + rule.margin
            sureness[number] = np.where(moved, best, sureness[number])
            right[number] = np.where(moved, answer, right[number])
    return _State(sureness, right)


def _rule(state: _State, choices: Choices, chosen: NDArray[np.bool_], number: int) -> _Rule:
    """Return the rule under which most of some samples are right, of equal ones the mildest; strength 0: to change none."""
    best, rule = 0.0, _Rule(0.0, 0.0)
    for strength in np.unique(choices.strengths).tolist():
        surest, answer = _surest(choices, strength)
        for margin in _MARGINS[::-1]:
            moved = chosen & (surest > state.sureness[number] + margin)
            gain = float((answer - state.right[number])[moved].sum())
            if gain > best:
                best, rule = gain, _Rule(strength, margin)
    return rule


def _surest(choices: Choices, strength: float) -> tuple[Floats, Floats]:
    """Return (N,) sureness and (N,) rightness of the version of each image up to a strength that is surest."""
    allowed = np.flatnonzero(choices.strengths <= strength)
    at = choices.sureness[allowed].argmax(axis=0)
    columns = np.arange(choices.sureness.shape[1])
    return choices.sureness[allowed][at, columns], choices.right[allowed][at, columns]


def sign_test(difference: Floats) -> float:
    """Return the exact p value, two-sided, of as many numbers above 0 as below."""
    from scipy.stats import binomtest  # a second of imports

    above, below = int((difference > 0).sum()), int((difference < 0).sum())
    return float(binomtest(above, above + below).pvalue) if above + below else 1.0
