"""Majority-vote error of independent members (Condorcet 1785), the baseline for how independent real members are.

A majority vote is wrong if most members are wrong; a tie is decided by a coin toss, so it counts half. With more than two
classes, wrong members need not agree, so a plurality vote of independent members is at least as good as computed here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_MAX_MEMBERS = 1e9  # beyond this a measured error carries no information


def majority_error(rate: float, members: float) -> float:
    """Return the error rate of a majority of independent members that each have error `rate`.

    With B(M, e) errors among an odd number M of members it is P(B > M/2), by the binomial distribution. An even number does
    exactly as well as one member less, since ties count half. The sum is evaluated in closed form by the regularised
    incomplete beta function I_e(k, k) with k = (M + 1) / 2 rounded down: all digits hold for any M, and values too small
    for float64 become 0. For M = 3 and e = 0.01 it is 0.000298.

    Args:
        rate: 0 to 1.
        members: 1 or more. Between whole numbers the function is continued smoothly through the odd ones.
    """
    half = (members + 1) // 2 if float(members).is_integer() else (members + 1) / 2
    from scipy.special import betainc  # a table of scores starts without SciPy

    return float(betainc(half, half, rate))


def unequal_majority_error(rates: Sequence[float]) -> float:
    """Return the exact error rate of a majority of independent members with different error rates (Poisson binomial).

    Args:
        rates: one a member, 0 to 1; at least one.
    """
    probabilities = np.ones(1)  # of 0, 1, ... errors; sums of positive numbers, so nothing cancels
    for rate in rates:
        probabilities = np.convolve(probabilities, [1 - rate, rate])
    members = len(rates)
    error = float(probabilities[members // 2 + 1 :].sum())
    return error + float(probabilities[members // 2]) / 2 if members % 2 == 0 else error


def equivalent_independent_members(error: float, rate: float) -> float | None:
    """Return the number of independent members with error `rate` whose majority vote reaches `error`.

    This inverts `majority_error`, with its smooth continuation between odd numbers: 1.0 means no better than a single
    member, 3.0 as good as three.

    Returns:
        1 or more, to a relative precision of 1e-9; None if no number does: `rate` is 0.5 or more, or `error` is above
        `rate`, or (next to) 0.
    """
    if rate >= 0.5 or error > rate or error <= majority_error(rate, _MAX_MEMBERS):
        return None
    low, high = 1.0, 2.0
    while majority_error(rate, _non_integer(high)) > error:
        low, high = high, 2 * high
    while high - low > 1e-10 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if majority_error(rate, _non_integer(middle)) > error else (low, middle)
    return low


def _non_integer(members: float) -> float:
    """Return the next float if `members` is whole, so that `majority_error` uses the smooth continuation there too."""
    return float(np.nextafter(members, np.inf)) if float(members).is_integer() else members
