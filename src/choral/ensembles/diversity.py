"""What an ensemble gains over its members, and why: correlation of errors, and what independent members would reach.

Everything is read from the ledger block by block, in memory that does not grow with the number of samples. The result
depends on the ledger alone: counts are exact, and if there are too many subsets of members, the same ones are drawn at
every call.

- A member is wrong on a sample or it is not; the *correlation of errors* of two members is that of these indicators (the
  phi coefficient). Their *disagreement* is the share of samples on which they predict different classes.
- `choral.metrics.independent_members` computes what independent members would reach, and how many of them reach the
  measured error.
- The *curve* is the accuracy of the soft vote against the number of members: the mean over subsets of each size.

For multilabel, each label of each sample is one decision, correct or wrong. For regression see `regression_diversity`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from choral.ensembles.diversity_report import DiversityReport, curve_point, pairwise_matrix
from choral.ensembles.rules import hard_vote, soft_vote
from choral.ensembles.score_rows import scored_views
from choral.ensembles.subsets import choose_subsets
from choral.inference.ledger import Ledger
from choral.metrics.independent_members import equivalent_independent_members, majority_error, unequal_majority_error
from choral.metrics.per_sample import top_class

MIN_SUBSETS, MAX_SUBSETS = 10, 200  # of a size
_MAX_WORK = 10_000_000_000  # probabilities read for the curve: a few seconds
_MARGIN = 1e-6  # relative margin that rules out ties of float32 means


@dataclass
class _Counts:
    """Counts that are summed over the blocks."""

    decisions: int
    both_wrong: NDArray[np.int64]  # (members, members); the diagonal: wrong
    disagreements: NDArray[np.int64]  # (members, members)
    wrong_together: NDArray[np.int64]  # (members + 1,)
    hard_wrong: int
    correct: dict[tuple[int, ...], int] = field(default_factory=dict)  # soft vote of each subset

    @classmethod
    def zeros(cls, members: int, subsets: Sequence[tuple[int, ...]]) -> _Counts:
        square = np.zeros((members, members), np.int64)
        return cls(0, square, square.copy(), np.zeros(members + 1, np.int64), 0, dict.fromkeys(subsets, 0))

    def add(self, predicted: NDArray[Any], truth: NDArray[Any]) -> None:
        """Count the members' (members, n) predictions against the (n,) truth."""
        wrong = predicted != truth
        as_float = wrong.astype(np.float64)  # counts below 2**53 are exact, and BLAS is fast
        self.both_wrong += np.rint(as_float @ as_float.T).astype(np.int64)
        for number, of_member in enumerate(predicted):
            self.disagreements[number] += (predicted != of_member).sum(axis=1)
        self.wrong_together += np.bincount(wrong.sum(axis=0), minlength=len(self.wrong_together))
        self.decisions += len(truth)


def compute_diversity(ledger: Ledger) -> DiversityReport | None:
    """Return the diversity of the members of a multiclass or multilabel ledger, and what it gains; None for a single member.

    One view is used: the identity, if the ledger has it.
    """
    members, view = len(ledger.members), scored_views(ledger)[0][0]
    if members < 2:
        return None
    multiclass = ledger.meta.task == "multiclass"
    work = len(ledger) * len(ledger.classes) * members
    limit = int(np.clip(_MAX_WORK // max(work, 1), MIN_SUBSETS, MAX_SUBSETS))
    by_size = {size: choose_subsets(members, size, limit) for size in range(1, members + 1)}
    counts = _Counts.zeros(members, [subset for subsets in by_size.values() for subset in subsets])
    start = 0
    for stack in ledger.blocks(view):
        labels = ledger.labels[start : start + stack.shape[1]]
        start += len(labels)
        (_count_multiclass if multiclass else _count_multilabel)(counts, stack, labels)
    return _build_report(ledger, view, counts, by_size)


def _count_multiclass(counts: _Counts, stack: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
    counts.add(top_class(stack), labels)
    counts.hard_wrong += int((hard_vote(stack).predictions != labels).sum())
    always_wrong, undecided, rivals = _find_undecided(stack, labels)
    always_correct = len(labels) - always_wrong - len(undecided)
    sample, rival = np.nonzero(rivals)
    label_stack = stack[:, undecided, labels[undecided]]
    rival_stack = stack[:, undecided[sample], rival]
    wins_ties = rival < labels[undecided[sample]]  # ties go to the first class
    for subset in counts.correct:
        chosen = list(subset)
        of_label, of_rival = soft_vote(label_stack[chosen])[sample], soft_vote(rival_stack[chosen])
        beaten = np.zeros(len(undecided), np.bool_)
        beaten[sample[(of_rival > of_label) | (wins_ties & (of_rival == of_label))]] = True
        counts.correct[subset] += always_correct + int((~beaten).sum())


def _find_undecided(
    stack: NDArray[np.float32], labels: NDArray[np.int64]
) -> tuple[int, NDArray[np.int64], NDArray[np.bool_]]:
    """Return the samples whose soft vote depends on the subset of members; with a thousand classes these are few.

    A class can beat the label in the soft vote of some members only if one of them gives it at least the label's
    probability, and beats it in every subset if each member gives it more.

    Args:
        stack: (members, n, classes) float32.
        labels: (n,) int64.

    Returns:
        The number of samples that every subset gets wrong; the (k,) rows of undecided samples; and (k, classes) bool, the
        classes that can win in them. All other samples are correct in every subset.
    """
    everywhere, somewhere = np.ones(stack.shape[1:], np.bool_), np.zeros(stack.shape[1:], np.bool_)
    rows = np.arange(len(labels))
    for probabilities in stack:
        of_label = probabilities[rows, labels][:, None]
        everywhere &= probabilities > of_label * (1 + _MARGIN)
        somewhere |= probabilities >= of_label * (1 - _MARGIN)
    somewhere[rows, labels] = False
    wrong = everywhere.any(axis=1)
    undecided = np.flatnonzero(somewhere.any(axis=1) & ~wrong)
    return int(wrong.sum()), undecided, somewhere[undecided]


def _count_multilabel(counts: _Counts, stack: NDArray[np.float32], labels: NDArray[np.float32]) -> None:
    truth = (labels > 0).ravel()
    counts.add((stack > 0.5).reshape(len(stack), -1), truth)
    for subset in counts.correct:
        counts.correct[subset] += int(((soft_vote(stack[list(subset)]) > 0.5).ravel() == truth).sum())


def _build_report(
    ledger: Ledger, view: str, counts: _Counts, by_size: dict[int, list[tuple[int, ...]]]
) -> DiversityReport:
    members, n, multiclass = len(ledger.members), counts.decisions, ledger.meta.task == "multiclass"
    errors = (np.diag(counts.both_wrong) / n).tolist()
    mean_error = int(np.trace(counts.both_wrong)) / (n * members)
    error = 1 - counts.correct[tuple(range(members))] / n
    curve = [
        curve_point(
            [counts.correct[subset] / n for subset in subsets], members, size, 1 - majority_error(mean_error, size)
        )
        for size, subsets in by_size.items()
    ]
    return DiversityReport(
        task=ledger.meta.task,
        view=view,
        unit="share of samples" if multiclass else "share of labels of samples",
        metric="accuracy" if multiclass else "label_accuracy",
        n=n,
        members=list(ledger.members),
        errors=errors,
        mean_error=mean_error,
        error=error,
        hard_error=counts.hard_wrong / n if multiclass else None,
        disagreement=pairwise_matrix(counts.disagreements / n),
        error_correlation=pairwise_matrix(_phi_coefficients(counts.both_wrong, n)),
        wrong_together=counts.wrong_together.tolist(),
        independent_error=majority_error(mean_error, members),
        independent_error_unequal=unequal_majority_error(errors),
        independent_members=equivalent_independent_members(error, mean_error),
        curve=curve,
    )


def _phi_coefficients(both: NDArray[np.int64], n: int) -> NDArray[np.float64]:
    """Return the (members, members) correlations of n indicators; NaN for constant ones.

    Args:
        both: (members, members) how often two indicators are 1 together.
        n: number of observations.
    """
    ones = np.diag(both).astype(np.float64)
    deviation = np.sqrt(ones * (n - ones))
    with np.errstate(invalid="ignore", divide="ignore"):
        phi: NDArray[np.float64] = (n * both.astype(np.float64) - np.outer(ones, ones)) / np.outer(deviation, deviation)
    return phi
