"""Tests whether validation images vary in a way that training did not cover, by undoing the variation.

That a network fails on perturbed images does not show that such images occur; every network fails upside down. What occurs
is in the validation data. Of each validation image there are the perturbed versions that were probed. The version on which
the network is most confident is chosen, without using the label. If accuracy rises, the data contain images that had to be
changed first. Where training covers the validation data, accuracy does not rise: the network is most confident on the image
as it is, or is misled, as by a 6 rotated until it is a 9. So a perturbation that changes labels is detected, not assumed.

The largest strength, and how much more confident the network must be to leave the original image, are chosen on four fifths
of the samples and evaluated on the rest, in five folds, so the gain is out of sample. Families are selected greedily, the one
with the largest gain first, each on top of those before: higher contrast also helps dark images, but not once they are
brightened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from choral.data.shards.splits import hash_keys
from choral.metrics.multiple_comparisons import holm
from choral.metrics.per_sample import correct, top_class

FOLDS = 5
SIGNIFICANCE_LEVEL = 0.05
_MARGINS = (0.0, 1.0, 2.0, 4.0)  # log odds by which a perturbed version must be more confident
_MIN_PROBABILITY = 1e-6

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ChangedImages:
    """Predictions on K perturbed versions of each of N images, from one family.

    Attributes:
        strengths: (K,) of the perturbations, above 0.
        log_odds: (K, N) confidence, see `compute_log_odds`.
        correctness: (K, N) 0 to 1, see `compute_correctness`.
    """

    strengths: Floats
    log_odds: Floats
    correctness: Floats


@dataclass(frozen=True)
class UndoResult:
    """The gain from one family, on top of the families selected before it.

    Attributes:
        family: of the perturbations that were applied.
        difference: (N,) gain in correctness of each sample, -1 to 1, out of sample.
        strength: up to which images are changed, chosen on all samples; 0: best not at all.
        p, p_adjusted: of an exact sign test of `difference`, without and with Holm's correction for all families tested.
    """

    family: str
    difference: Floats
    strength: float
    p: float
    p_adjusted: float

    @property
    def helps(self) -> bool:
        """Whether accuracy rises significantly."""
        return self.p_adjusted < SIGNIFICANCE_LEVEL and bool(self.difference.sum() > 0) and self.strength > 0


@dataclass(frozen=True)
class _State:
    """The version of each image selected so far: one row for the rules of each fold, the last for those of all samples."""

    log_odds: Floats  # (FOLDS + 1, N)
    correctness: Floats


@dataclass(frozen=True)
class _Rule:
    strength: float
    margin: float


def compute_log_odds(task: str, predictions: NDArray[np.float32]) -> Floats:
    """Return the (N,) log odds of the most probable class, or of each label's prediction, averaged over labels.

    Args:
        task: multiclass or multilabel; regression predictions have no confidence.
        predictions: (N, C) probabilities.
    """
    probability = predictions.max(axis=1) if task == "multiclass" else np.maximum(predictions, 1 - predictions)
    clipped = np.clip(probability.astype(np.float64), _MIN_PROBABILITY, 1 - _MIN_PROBABILITY)
    odds = np.log(clipped / (1 - clipped))
    log_odds: Floats = odds if task == "multiclass" else odds.mean(axis=1)
    return log_odds


def compute_correctness(task: str, labels: NDArray[np.int64], predictions: NDArray[np.float32]) -> Floats:
    """Return (N,) whether the class is correct (0 or 1), or the share of correct labels."""
    if task == "multiclass":
        return correct(labels, top_class(predictions))
    correctness: Floats = ((predictions > 0.5) == (labels > 0)).mean(axis=1)
    return correctness


def select_families(
    log_odds: Floats, correctness: Floats, families: Mapping[str, ChangedImages], keys: Sequence[str]
) -> tuple[list[UndoResult], dict[str, UndoResult]]:
    """Return the families whose perturbations raise accuracy significantly.

    Args:
        log_odds, correctness: (N,) of the unchanged images.
        families: name to predictions on perturbed versions.
        keys: (N,) of the samples; they determine the folds.

    Returns:
        The selected families, each on top of those before it; and the result of every family by itself.
    """
    fold = (hash_keys(keys, 0, "undone") % FOLDS).astype(np.int64)
    state = _State(np.tile(log_odds, (FOLDS + 1, 1)), np.tile(correctness, (FOLDS + 1, 1)))
    individual = _test_families(state, families, fold, len(families))
    selected: list[UndoResult] = []
    results, remaining = individual, dict(families)
    while True:
        best = max(results.values(), key=lambda one: (one.helps, one.difference.sum()), default=None)
        if best is None or not best.helps:
            return selected, individual
        selected.append(best)
        state = _apply_family(state, remaining.pop(best.family), fold)
        results = _test_families(state, remaining, fold, len(families))


def _test_families(
    state: _State, families: Mapping[str, ChangedImages], fold: NDArray[np.int64], comparisons: int
) -> dict[str, UndoResult]:
    """Return the gain from each family on top of a state; p values are adjusted for so many comparisons."""
    columns = np.arange(len(fold))
    differences, rules = {}, {}
    for name, images in families.items():
        after = _apply_family(state, images, fold)
        differences[name] = (after.correctness - state.correctness)[fold, columns]
        rules[name] = _choose_rule(state, images, np.ones(len(fold), np.bool_), FOLDS)
    values = {name: sign_test(difference) for name, difference in differences.items()}
    adjusted = dict(zip(values, holm(list(values.values()), comparisons), strict=True))
    return {
        name: UndoResult(name, differences[name], rules[name].strength, values[name], adjusted[name])
        for name in families
    }


def _apply_family(state: _State, images: ChangedImages, fold: NDArray[np.int64]) -> _State:
    """Return the state after one more family; each fold follows the rule chosen on the other folds."""
    log_odds, correctness = state.log_odds.copy(), state.correctness.copy()
    for number in range(FOLDS + 1):
        rule = _choose_rule(state, images, fold != number, number)
        if rule.strength > 0:
            best, result = _most_confident(images, rule.strength)
            switched = best > state.log_odds[number] + rule.margin
            log_odds[number] = np.where(switched, best, log_odds[number])
            correctness[number] = np.where(switched, result, correctness[number])
    return _State(log_odds, correctness)


def _choose_rule(state: _State, images: ChangedImages, samples: NDArray[np.bool_], number: int) -> _Rule:
    """Return the rule with the highest accuracy on some samples, of ties the mildest; strength 0: change no image."""
    best_gain, rule = 0.0, _Rule(0.0, 0.0)
    for strength in np.unique(images.strengths).tolist():
        log_odds, correctness = _most_confident(images, strength)
        for margin in _MARGINS[::-1]:
            switched = samples & (log_odds > state.log_odds[number] + margin)
            gain = float((correctness - state.correctness[number])[switched].sum())
            if gain > best_gain:
                best_gain, rule = gain, _Rule(strength, margin)
    return rule


def _most_confident(images: ChangedImages, strength: float) -> tuple[Floats, Floats]:
    """Return (N,) log odds and (N,) correctness of each image's most confident version up to a strength."""
    allowed = np.flatnonzero(images.strengths <= strength)
    best = images.log_odds[allowed].argmax(axis=0)
    columns = np.arange(images.log_odds.shape[1])
    return images.log_odds[allowed][best, columns], images.correctness[allowed][best, columns]


def sign_test(difference: Floats) -> float:
    """Return the two-sided p value of an exact sign test: as many differences above 0 as below."""
    from scipy.stats import binomtest  # a second of imports

    above, below = int((difference > 0).sum()), int((difference < 0).sum())
    return float(binomtest(above, above + below).pvalue) if above + below else 1.0
