"""The JSON of a diversity report."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray


class PairwiseMatrix(TypedDict):
    """One number for each pair of members.

    `matrix` is symmetric, in the order of the members; entries are None where undefined (a member that is always
    correct, or always wrong, has no correlation). `mean` is over the defined pairs.
    """

    mean: float | None
    matrix: list[list[float | None]]


class CurvePoint(TypedDict):
    """One point of the curve: ensembles of `members` members.

    `value`, `spread` (standard deviation), `low` and `high` are over `subsets` of the `possible` subsets; `independent`
    is the score of as many independent members.
    """

    members: int
    value: float
    spread: float
    low: float
    high: float
    subsets: int
    possible: int
    independent: float


class DiversityReport(TypedDict):
    """The result of `compute_diversity`, as plain JSON.

    Errors are rates of wrong decisions (multiclass: samples; multilabel: labels of samples). For regression they are
    mean squared errors, and the fields about votes are None.
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
    disagreement: PairwiseMatrix  # shares of decisions; for regression root mean squared differences
    error_correlation: PairwiseMatrix
    wrong_together: list[int] | None  # decisions on which 0, 1, ... all members are wrong
    independent_error: float  # majority vote of as many independent members, all with the mean error
    independent_error_unequal: float | None  # the same, each with its own error
    independent_members: float | None  # how many with the mean error would reach `error`; None: no number would
    curve: list[CurvePoint]


def pairwise_matrix(matrix: NDArray[np.float64]) -> PairwiseMatrix:
    """Return a symmetric (members, members) matrix as plain JSON; NaN becomes None."""
    upper = matrix[np.triu_indices(len(matrix), 1)]
    defined = upper[np.isfinite(upper)]
    rows = [[float(value) if np.isfinite(value) else None for value in row] for row in matrix]
    return PairwiseMatrix(mean=float(defined.mean()) if len(defined) else None, matrix=rows)


def curve_point(
    scores: Sequence[float], members: int, size: int, independent: float, value: float | None = None
) -> CurvePoint:
    """Return the point of the curve for `size` of `members` members, from the scores of its subsets.

    `value` defaults to their mean.
    """
    array = np.array(scores)
    return CurvePoint(
        members=size,
        value=float(array.mean()) if value is None else value,
        spread=float(array.std()),
        low=float(array.min()),
        high=float(array.max()),
        subsets=len(array),
        possible=comb(members, size),
        independent=independent,
    )
