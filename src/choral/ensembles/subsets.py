"""Subsets of the members for each ensemble size: all of them, or a fixed pseudo-random selection if there are too many."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np

from choral.core.counter_rng import uniform

_STREAM = 0x5B  # of the counter-based random numbers


def choose_subsets(members: int, size: int, limit: int) -> list[tuple[int, ...]]:
    """Return distinct subsets of range(members), each ascending.

    Args:
        members: at least 1.
        size: of each subset, 1 to `members`.
        limit: if there are more subsets than this, so many are drawn by a hash: uniformly, and the same at every call.
    """
    if comb(members, size) <= limit:
        return list(combinations(range(members), size))
    chosen: dict[tuple[int, ...], None] = {}
    row = 0
    while len(chosen) < limit:
        order = uniform(size, members, np.arange(row, row + limit), members, _STREAM).argsort(axis=1, kind="stable")
        chosen.update(dict.fromkeys(tuple(sorted(one[:size])) for one in order.tolist()))
        row += limit
    return list(chosen)[:limit]
