"""What the mean of several members' numbers gains over a member, and why (Krogh and Vedelsby 1995).

The mean squared error of the mean is that of its members, on average, less their *ambiguity*: the mean squared distance of
the members from their mean. It is an identity: what members differ by is exactly what they gain. Members whose errors had
mean 0 and no correlation would divide the mean squared error by their number, so that the ratio of the two errors is the
number of such members that the ensemble is worth.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from choral.ensembles.diversity import MOST
from choral.ensembles.diversity_rows import Diversity, pairs, step
from choral.ensembles.score_rows import scored_views
from choral.ensembles.subsets import subsets_of
from choral.inference.ledger import Ledger


def number_diversity(ledger: Ledger) -> Diversity | None:
    """Return how diverse the members of a ledger of regression are, and what that is worth; None for a single member.

    Several targets count alike, each in units of its standard deviation over the split. Looked at is one view, as by
    `choral.ensembles.diversity.diversity_of`.
    """
    members, view = len(ledger.members), scored_views(ledger)[0][0]
    if members < 2:
        return None
    products, centred = _products(ledger, view)
    own = np.diag(products)
    mean, error = float(own.mean()), float(products.mean())
    spread = np.sqrt(np.diag(centred))
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = centred / np.outer(spread, spread)
    distances = np.sqrt(np.maximum(own[:, None] + own - 2 * products, 0))
    curve = []
    for size in range(1, members + 1):
        subsets = subsets_of(members, size, MOST)
        squares = [float(products[np.ix_(subset, subset)].mean()) for subset in subsets]
        found = np.sqrt(squares).tolist()
        curve.append(step(found, members, size, float(np.sqrt(mean / size)), float(np.sqrt(np.mean(squares)))))
    several = len(ledger.classes) > 1
    return Diversity(
        task="regression",
        view=view,
        unit="squared standard deviations of the targets" if several else f"{ledger.classes[0]}, squared",
        metric="rmse",
        n=len(ledger) * len(ledger.classes),
        members=list(ledger.members),
        errors=own.tolist(),
        mean_error=mean,
        error=error,
        hard_error=None,
        disagreement=pairs(distances),
        error_correlation=pairs(correlation),
        wrong_together=None,
        independent_error=mean / members,
        independent_error_unequal=None,
        independent_members=mean / error if error > 0 else None,
        curve=curve,
    )


def _products(ledger: Ledger, view: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the (members, members) mean products of two members' errors, and the same of errors without their mean."""
    members, targets = len(ledger.members), len(ledger.classes)
    scale = np.ones(1)
    if targets > 1:
        scale = ledger.labels.std(axis=0, dtype=np.float64)
        scale[scale == 0] = 1  # a constant target has no unit
    total, sums, start = np.zeros((members, members)), np.zeros((members, targets)), 0
    for stack in ledger.blocks(view):
        errors = (stack.astype(np.float64) - ledger.labels[start : start + stack.shape[1]]) / scale
        start += stack.shape[1]
        flat = errors.reshape(members, -1)
        total += flat @ flat.T
        sums += errors.sum(axis=1)
    means = sums / start
    products = total / (start * targets)
    return _rounded(products), _rounded(products - means @ means.T / targets)


def _rounded(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return twelve significant digits: none of them depends on the order in which a machine adds."""
    return np.array([[float(f"{value:.12g}") for value in row] for row in values])
