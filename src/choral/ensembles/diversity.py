"""How much an ensemble gains over its members, and why: how alike their errors are, and what independent ones would give.

All of it is read from the ledger, a block of samples at a time, in memory that does not grow with the samples. It is a
function of the ledger alone: counts are exact, and where there are too many subsets of members, the same ones are drawn at
every call.

- A member is wrong on a sample or it is not; the *correlation of errors* of two members is that of these indicators
  (the phi coefficient). Their *disagreement* is the share of samples on which they decide differently.
- `choral.metrics.independent_members` says what independent members would reach, and how many of them the measured error is worth.
- The *curve* is the accuracy of the soft vote against the number of members: the mean over subsets of each size.

Of multilabel, each label of each sample is one decision, right or wrong. Of regression see `number_diversity`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from choral.ensembles.diversity_rows import Diversity, pairs, step
from choral.ensembles.rules import hard, soft
from choral.ensembles.score_rows import scored_views
from choral.ensembles.subsets import subsets_of
from choral.inference.ledger import Ledger
from choral.metrics.independent_members import independent_members, majority_error, unequal_majority_error
from choral.metrics.per_sample import top_class

FEWEST, MOST = 10, 200  # subsets of a size
_WORK = 10_000_000_000  # probabilities looked at for the curve: some seconds
_MARGIN = 1e-6  # by which a class must stay below another in every member, so that float32 means cannot tie


@dataclass
class _Counts:
    """What is added up over the blocks."""

    decisions: int
    both_wrong: NDArray[np.int64]  # (members, members); the diagonal: wrong
    differ: NDArray[np.int64]  # (members, members)
    together: NDArray[np.int64]  # (members + 1,)
    hard_wrong: int
    right: dict[tuple[int, ...], int] = field(default_factory=dict)  # soft vote of each subset

    @classmethod
    def none(cls, members: int, subsets: Sequence[tuple[int, ...]]) -> _Counts:
        square = np.zeros((members, members), np.int64)
        return cls(0, square, square.copy(), np.zeros(members + 1, np.int64), 0, dict.fromkeys(subsets, 0))

    def add(self, decided: NDArray[Any], truth: NDArray[Any]) -> None:
        """Count what members decided, (members, n), against the (n,) truth."""
        wrong = decided != truth
        as_float = wrong.astype(np.float64)  # counts below 2**53 are exact, and BLAS is fast
        self.both_wrong += np.rint(as_float @ as_float.T).astype(np.int64)
        for number, own in enumerate(decided):
            self.differ[number] += (decided != own).sum(axis=1)
        self.together += np.bincount(wrong.sum(axis=0), minlength=len(self.together))
        self.decisions += len(truth)


def diversity_of(ledger: Ledger) -> Diversity | None:
    """Return how diverse the members of a ledger of multiclass or multilabel are, and what that is worth.

    Only one view is looked at: the identity, where the ledger has it. A single member has no diversity: None.
    """
    members, view = len(ledger.members), scored_views(ledger)[0][0]
    if members < 2:
        return None
    single = ledger.meta.task == "multiclass"
    work = len(ledger) * len(ledger.classes) * members
    most = int(np.clip(_WORK // max(work, 1), FEWEST, MOST))
    sizes = {size: subsets_of(members, size, most) for size in range(1, members + 1)}
    counts = _Counts.none(members, [subset for subsets in sizes.values() for subset in subsets])
    start = 0
    for stack in ledger.blocks(view):
        labels = ledger.labels[start : start + stack.shape[1]]
        start += len(labels)
        (_add_classes if single else _add_labels)(counts, stack, labels)
    return _result(ledger, view, counts, sizes)


def _add_classes(counts: _Counts, stack: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
    decided = top_class(stack)
    counts.add(decided, labels)
    counts.hard_wrong += int((hard(stack).predictions != labels).sum())
    settled_wrong, open_rows, rivals = _rivals(stack, labels)
    always_right = len(labels) - settled_wrong - len(open_rows)
    sample, rival = np.nonzero(rivals)
    own = stack[:, open_rows, labels[open_rows]]
    theirs, first = stack[:, open_rows[sample], rival], rival < labels[open_rows[sample]]  # among equals the first wins
    for subset in counts.right:
        chosen = list(subset)
        of_label, of_rival = soft(own[chosen])[sample], soft(theirs[chosen])
        beaten = np.zeros(len(open_rows), np.bool_)
        beaten[sample[(of_rival > of_label) | (first & (of_rival == of_label))]] = True
        counts.right[subset] += always_right + int((~beaten).sum())


def _rivals(stack: NDArray[np.float32], labels: NDArray[np.int64]) -> tuple[int, NDArray[np.int64], NDArray[np.bool_]]:
    """Return what is left to be decided by which members are asked; of a thousand classes, little.

    A class can win against the label in a soft vote of some members only if one of them gives it as much as the label, and
    wins in all of them if every member gives it more.

    Args:
        stack: (members, n, classes) float32.
        labels: (n,) int64.

    Returns:
        The number of samples that every subset gets wrong; the (k,) rows of those that some might get wrong and some
        right; and (k, classes) bool, the classes that can win in these. The others are right in every subset.
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


def _add_labels(counts: _Counts, stack: NDArray[np.float32], labels: NDArray[np.float32]) -> None:
    truth = (labels > 0).ravel()
    counts.add((stack > 0.5).reshape(len(stack), -1), truth)
    for subset in counts.right:
        counts.right[subset] += int(((soft(stack[list(subset)]) > 0.5).ravel() == truth).sum())


def _result(ledger: Ledger, view: str, counts: _Counts, sizes: dict[int, list[tuple[int, ...]]]) -> Diversity:
    members, n, single = len(ledger.members), counts.decisions, ledger.meta.task == "multiclass"
    errors = (np.diag(counts.both_wrong) / n).tolist()
    mean = int(np.trace(counts.both_wrong)) / (n * members)
    error = 1 - counts.right[tuple(range(members))] / n
    curve = [
        step([counts.right[subset] / n for subset in subsets], members, size, 1 - majority_error(mean, size))
        for size, subsets in sizes.items()
    ]
    return Diversity(
        task=ledger.meta.task,
        view=view,
        unit="share of samples" if single else "share of labels of samples",
        metric="accuracy" if single else "label_accuracy",
        n=n,
        members=list(ledger.members),
        errors=errors,
        mean_error=mean,
        error=error,
        hard_error=counts.hard_wrong / n if single else None,
        disagreement=pairs(counts.differ / n),
        error_correlation=pairs(_phi(counts.both_wrong, n)),
        wrong_together=counts.together.tolist(),
        independent_error=majority_error(mean, members),
        independent_error_unequal=unequal_majority_error(errors),
        independent_members=independent_members(error, mean),
        curve=curve,
    )


def _phi(both: NDArray[np.int64], n: int) -> NDArray[np.float64]:
    """Return the correlations of indicators of which `both` counts how often two are 1 together; NaN for constant ones."""
    ones = np.diag(both).astype(np.float64)
    spread = np.sqrt(ones * (n - ones))
    with np.errstate(invalid="ignore", divide="ignore"):
        phi: NDArray[np.float64] = (n * both.astype(np.float64) - np.outer(ones, ones)) / np.outer(spread, spread)
    return phi
