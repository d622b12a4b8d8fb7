"""Rules that make one prediction from those of the members.

They work on a stack of (members, n, classes): a block of a ledger (`Ledger.blocks`), so that memory stays bounded
however many samples there are, or what several networks say about new images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from choral.score.metrics import top_class


@dataclass(frozen=True)
class Votes:
    """A majority vote; it has no probabilities, for a class without a vote need not be impossible.

    Attributes:
        predictions: (n,) int64 the winning class.
        tied: (n,) bool, where classes had equally many votes, so that the mean probability decided.
    """

    predictions: NDArray[np.int64]
    tied: NDArray[np.bool_]


def soft(stack: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean of the members' predictions: of probabilities the soft vote, of numbers their mean.

    Args:
        stack: (members, n, classes) float32.

    Returns:
        (n, classes) float32; the mean is taken in float64, so that the order of the members cannot show.
    """
    mean: NDArray[np.float32] = stack.mean(axis=0, dtype=np.float64).astype(np.float32)
    return mean


def median(stack: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the (n, targets) float32 median of the members' numbers, which one member far off cannot move far.

    Args:
        stack: (members, n, targets) float32.
    """
    middle: NDArray[np.float32] = np.median(stack, axis=0).astype(np.float32)
    return middle


def hard(stack: NDArray[np.float32]) -> Votes:
    """Return the majority vote: each member votes for its most probable class.

    Classes with equally many votes are told apart by their mean probability over all members; should that be equal
    too, the first class wins.

    Args:
        stack: (members, n, classes) float32.
    """
    _, count, classes = stack.shape
    ballots = top_class(stack) + np.arange(count) * classes  # (members, n) positions in the flattened (n, classes)
    votes = np.bincount(ballots.ravel(), minlength=count * classes).reshape(count, classes)
    leading = votes == votes.max(axis=1, keepdims=True)
    mean = stack.mean(axis=0, dtype=np.float64)
    return Votes(
        predictions=np.where(leading, mean, -1.0).argmax(axis=1),
        tied=leading.sum(axis=1) > 1,
    )
