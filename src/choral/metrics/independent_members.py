"""What independent voters would reach by majority (Condorcet 1785): the yardstick for how independent real members are.

A member is right or wrong; a majority of members that are wrong is wrong. Where as many are wrong as right, the
vote is decided by the toss of a coin: ties count half. With more than two classes wrong members need not agree, so that a
vote by plurality of independent members does at least as well as this says.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import betainc

_MOST = 1e9  # members; beyond, a measured error tells nothing


def majority_error(rate: float, members: float) -> float:
    """Return the error rate of a majority of independent members that each err at `rate`.

    With B(M, e) errors among an odd number M of members it is P(B > M/2), by the binomial distribution; an even number does
    exactly as well as one member less, since ties count half. The sum is taken in closed form, by the regularised
    incomplete beta function I_e(k, k) with k = (M + 1) / 2 rounded down: all digits hold for any M, and what is
    too small for a float64 is 0. For M = 3 and e = 0.01 it is 0.000298.

    Args:
        rate: 0 to 1.
        members: 1 or more. Between whole numbers the function is continued smoothly through those at odd ones.
    """
    half = (members + 1) // 2 if float(members).is_integer() else (members + 1) / 2
    return float(betainc(half, half, rate))


def unequal_majority_error(rates: Sequence[float]) -> float:
    """Return the error rate of a majority of independent members that err at different rates (Poisson binomial), exactly.

    Args:
        rates: of each member, 0 to 1; at least one.
    """
    wrong = np.ones(1)  # probabilities of 0, 1, ... errors; sums of positive numbers, so that nothing cancels
    for rate in rates:
        wrong = np.convolve(wrong, [1 - rate, rate])
    members = len(rates)
    error = float(wrong[members // 2 + 1 :].sum())
    return error + float(wrong[members // 2]) / 2 if members % 2 == 0 else error


def independent_members(error: float, rate: float) -> float | None:
    """Return how many independent members that each err at `rate` would reach `error` by majority.

    `majority_error` is inverted, between odd numbers by its smooth continuation, so that 1.0 means "no better than a single
    member" and 3.0 "as good as three".

    Returns:
        1 or more, to a relative 1e-9; None where no number does: members that err as often as not, or an error above
        that of one member, or of 0, or next to it.
    """
    if rate >= 0.5 or error > rate or error <= majority_error(rate, _MOST):
        return None
    low, high = 1.0, 2.0
    while majority_error(rate, _between(high)) > error:
        low, high = high, 2 * high
    while high - low > 1e-10 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if majority_error(rate, _between(middle)) > error else (low, middle)
    return low


def _between(members: float) -> float:
    """Return a number that is not whole, so that the smooth continuation is meant also at an even one."""
    return float(np.nextafter(members, np.inf)) if float(members).is_integer() else members
