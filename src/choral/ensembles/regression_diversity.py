"""What the mean of several regression members gains over a member, and why (Krogh and Vedelsby 1995).

The mean squared error of the mean is the members' average error minus their *ambiguity*, the mean squared distance of
the members from their mean. This is an identity: members gain exactly what they differ by. Members with uncorrelated
errors of mean 0 would divide the mean squared error by their number, so the ratio of the two errors is the number of
such members that the ensemble is worth.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from choral.ensembles.diversity import MAX_SUBSETS
from choral.ensembles.diversity_report import DiversityReport, curve_point, pairwise_matrix
from choral.ensembles.score_rows import scored_views
from choral.ensembles.subsets import choose_subsets
from choral.inference.ledger import Ledger


def compute_regression_diversity(ledger: Ledger) -> DiversityReport | None:
    """Return the diversity of the members of a regression ledger, and what it gains; None for a single member.

    Several targets have equal weight, each in units of its standard deviation over the split. One view is used, as in
    `choral.ensembles.diversity.compute_diversity`.
    """
    members, view = len(ledger.members), scored_views(ledger)[0][0]
    if members < 2:
        return None
    products, covariances = _error_products(ledger, view)
    errors = np.diag(products)
    mean_error, error = float(errors.mean()), float(products.mean())
    deviation = np.sqrt(np.diag(covariances))
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = covariances / np.outer(deviation, deviation)
    distances = np.sqrt(np.maximum(errors[:, None] + errors - 2 * products, 0))
    curve = []
    for size in range(1, members + 1):
        subsets = choose_subsets(members, size, MAX_SUBSETS)
        squared = [float(products[np.ix_(subset, subset)].mean()) for subset in subsets]
        rmse, independent = np.sqrt(squared).tolist(), float(np.sqrt(mean_error / size))
        curve.append(curve_point(rmse, members, size, independent, float(np.sqrt(np.mean(squared)))))
    several = len(ledger.classes) > 1
    return DiversityReport(
        task="regression",
        view=view,
        unit="squared standard deviations of the targets" if several else f"{ledger.classes[0]}, squared",
        metric="rmse",
        n=len(ledger) * len(ledger.classes),
        members=list(ledger.members),
        errors=errors.tolist(),
        mean_error=mean_error,
        error=error,
        hard_error=None,
        disagreement=pairwise_matrix(distances),
        error_correlation=pairwise_matrix(correlation),
        wrong_together=None,
        independent_error=mean_error / members,
        independent_error_unequal=None,
        independent_members=mean_error / error if error > 0 else None,
        curve=curve,
    )


def _error_products(ledger: Ledger, view: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (members, members) mean products of two members' errors, and their covariances."""
    members, targets = len(ledger.members), len(ledger.classes)
    scale = np.ones(1)
    if targets > 1:
        scale = ledger.labels.std(axis=0, dtype=np.float64)
        scale[scale == 0] = 1  # a constant target keeps its unit
    total, sums, start = np.zeros((members, members)), np.zeros((members, targets)), 0
    for stack in ledger.blocks(view):
        errors = (stack.astype(np.float64) - ledger.labels[start : start + stack.shape[1]]) / scale
        start += stack.shape[1]
        flat = errors.reshape(members, -1)
        total += flat @ flat.T
        sums += errors.sum(axis=1)
    means = sums / start
    products = total / (start * targets)
    return _round_digits(products), _round_digits(products - means @ means.T / targets)


def _round_digits(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round to twelve significant digits, so that no digit depends on the order of summation."""
    return np.array([[float(f"{value:.12g}") for value in row] for row in values])
