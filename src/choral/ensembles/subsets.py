"""Which subsets of the members stand for an ensemble of each size: all of them, or the same few where they are too many."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np

from choral.core.counter_rng import uniform

_STREAM = 0x5B  # tells these random numbers from others


def subsets_of(members: int, size: int, most: int) -> list[tuple[int, ...]]:
    """Return different subsets of range(members), each ascending.

    Args:
        members: at least 1.
        size: of each subset, 1 to `members`.
        most: if there are more than this, so many of them are drawn by a hash: the same at every call, and all alike likely.
    """
    if comb(members, size) <= most:
        return list(combinations(range(members), size))
    found: dict[tuple[int, ...], None] = {}
    row = 0
    while len(found) < most:
        order = uniform(size, members, np.arange(row, row + most), members, _STREAM).argsort(axis=1, kind="stable")
        found.update(dict.fromkeys(tuple(sorted(one[:size])) for one in order.tolist()))
        row += most
    return list(found)[:most]
