"""What a report of diversity is made of."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray


class Pairs(TypedDict):
    """One number for each two members.

    `matrix` is symmetric, in the order of the members; None where it is not defined (a member that is always right, or always
    wrong, has no correlation), and `mean` is over the pairs that have one.
    """

    mean: float | None
    matrix: list[list[float | None]]


class Step(TypedDict):
    """One point of the curve: ensembles of `members` members.

    `value`, `spread` (standard deviation), `low` and `high` are over `subsets` of the `possible` subsets; `independent` is
    what so many independent members would reach.
    """

    members: int
    value: float
    spread: float
    low: float
    high: float
    subsets: int
    possible: int
    independent: float


class Diversity(TypedDict):
    """What `diversity_of` returns: plain JSON.

    Errors are rates of wrong decisions (multiclass: samples; multilabel: labels of samples), of regression mean squared
    errors, in which case the fields about votes are None.
    """

    task: str
    view: str
    unit: str  # of the errors
    metric: str  # of the curve: accuracy, label_accuracy or rmse
    n: int  # decisions
    members: list[str]
    errors: list[float]
    mean_error: float
    error: float  # of the soft vote, or of the mean
    hard_error: float | None
    disagreement: Pairs  # shares of decisions; of regression, root mean squared differences
    error_correlation: Pairs
    wrong_together: list[int] | None  # decisions on which 0, 1, ... all members are wrong
    independent_error: float  # of as many independent members of the mean error, by majority
    independent_error_unequal: float | None  # the same of independent members with these members' own errors
    independent_members: float | None  # of the mean error, that would have the measured error; None: no number would
    curve: list[Step]


def pairs(matrix: NDArray[np.float64]) -> Pairs:
    """Return a symmetric (members, members) matrix as plain JSON; NaN means that a pair has no number."""
    upper = matrix[np.triu_indices(len(matrix), 1)]
    known = upper[np.isfinite(upper)]
    rows = [[float(value) if np.isfinite(value) else None for value in row] for row in matrix]
    return Pairs(mean=float(known.mean()) if len(known) else None, matrix=rows)


def step(values: Sequence[float], members: int, size: int, independent: float, value: float | None = None) -> Step:
    """Return the point of the curve for `size` of `members` members, from the scores of its subsets.

    `value` is their mean, unless it is given.
    """
    found = np.array(values)
    return Step(
        members=size,
        value=float(found.mean()) if value is None else value,
        spread=float(found.std()),
        low=float(found.min()),
        high=float(found.max()),
        subsets=len(found),
        possible=comb(members, size),
        independent=independent,
    )
