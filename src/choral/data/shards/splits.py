"""Stratified splits into training, validation and test, decided by the sample keys and not by the order of files.

The samples of a stratum (a class, possibly combined with metadata) are ranked by a hash of seed and key. Split sizes are
allocated to strata by the largest remainder method (Hamilton), so that totals are exact and each stratum is within one
sample of its proportion.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from choral.core.errors import DataError

TRAIN, VAL, TEST = 0, 1, 2


def hash_keys(keys: Sequence[str], seed: int, purpose: str) -> NDArray[np.uint64]:
    """Return (n,) uint64 hashes of keys; different seeds or purposes give independent hashes."""
    salt = hashlib.blake2b(f"{purpose}/{seed}".encode(), digest_size=32).digest()
    joined = b"".join(hashlib.blake2b(key.encode(), digest_size=8, key=salt).digest() for key in keys)
    return np.frombuffer(joined, dtype="<u8").astype(np.uint64)


def split_sizes(count: int, val: float, test: float) -> tuple[int, int]:
    """Return the numbers of validation and test samples out of `count`; a fraction above 0 gives at least one."""
    return tuple(max(1, round(count * part)) if part > 0 else 0 for part in (val, test))  # type: ignore[return-value]


def stratified_split(
    keys: Sequence[str],
    strata: NDArray[np.int64],
    val: int,
    test: int,
    seed: int,
    groups: NDArray[np.int64] | None = None,
) -> NDArray[np.int8]:
    """Split samples into training, validation and test, with each stratum in the same proportion.

    Args:
        keys: n distinct keys; their order does not matter.
        strata: (n,) int64, 0 to the number of strata - 1, without gaps.
        val, test: sizes of these splits; exact without groups, otherwise as close as the groups allow.
        seed: of the split.
        groups: (n,) int64, from 0; the samples of a group stay together.

    Returns:
        (n,) int8 of TRAIN, VAL and TEST.

    Raises:
        DataError: too few samples, or too few groups, for the splits.
    """
    if val + test >= len(keys):
        raise DataError(
            f"{len(keys)} samples are too few for {val} validation samples, {test} test samples and a training split"
        )
    hashes = hash_keys(keys, seed, "split")
    if groups is not None:
        return _split_groups(hashes, strata, val, test, groups)
    sizes = np.bincount(strata)
    spare = np.maximum(sizes - 1, 0)  # keep one sample of each stratum for training where possible
    capacity = spare if int(spare.sum()) >= val + test else sizes
    tests = allocate_largest_remainder(test, sizes, capacity)
    vals = allocate_largest_remainder(val, sizes, capacity - tests)
    order = np.lexsort((hashes, strata))
    rank = np.arange(len(keys)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # rank by hash within the stratum
    stratum = strata[order]
    result = np.full(len(keys), TRAIN, dtype=np.int8)
    result[order[rank < tests[stratum] + vals[stratum]]] = VAL
    result[order[rank < tests[stratum]]] = TEST
    return result


def allocate_largest_remainder(total: int, sizes: NDArray[np.int64], capacity: NDArray[np.int64]) -> NDArray[np.int64]:
    """Allocate `total` to strata in proportion to `sizes` by the largest remainder method, within `capacity`.

    Ties go to the larger stratum, then to the one with the lower number. The capacities must sum to at least `total`.
    """
    quota = total * sizes / max(int(sizes.sum()), 1)
    result = np.minimum(np.floor(quota).astype(np.int64), capacity)
    while (remaining := total - int(result.sum())) > 0:
        below = np.flatnonzero(result < capacity)
        best = below[np.lexsort((below, -sizes[below], -(quota - result)[below]))[:remaining]]
        result[best] += 1
    return result


def assign_groups(
    hashes: NDArray[np.uint64], strata: NDArray[np.int64], groups: NDArray[np.int64], target: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Assign whole groups to parts greedily: largest group first, to the part that most lacks its strata.

    Args:
        hashes: (n,) uint64 of the samples; they break ties between groups of equal size.
        strata, groups: (n,) int64, numbered from 0 without gaps.
        target: (parts, strata) float64, the number of samples each part should get; a part with target 0 gets none.

    Returns:
        (groups,) int64, the part of each group. If all parts have the same target and there are at least as many groups
        as parts, no part stays empty.
    """
    count = int(groups.max()) + 1
    num_strata = int(strata.max()) + 1
    tie_break = np.zeros(count, dtype=np.uint64)
    np.bitwise_xor.at(tie_break, groups, hashes)  # a hash of the group, independent of the order of its samples
    cells, amounts = np.unique(groups * num_strata + strata, return_counts=True)
    ends = np.searchsorted(cells, np.arange(1, count + 1) * num_strata).tolist()
    contents = list(zip((cells % num_strata).tolist(), amounts.tolist(), strict=True))  # (stratum, samples), by group
    deficit: list[list[float]] = target.tolist()  # [part][stratum]; lists are faster than arrays in the loop below
    capacity: list[float] = target.sum(axis=1).tolist()  # left in each part; breaks ties between equal deficits
    parts = [part for part, size in enumerate(capacity) if size > 0]
    assigned = np.zeros(count, dtype=np.int64)
    for number in np.lexsort((tie_break, -np.bincount(groups))).tolist():
        content = contents[ends[number - 1] if number else 0 : ends[number]]
        best = max(parts, key=lambda part: (sum(deficit[part][s] * n for s, n in content), capacity[part]))
        for stratum, amount in content:
            deficit[best][stratum] -= amount
            capacity[best] -= amount
        assigned[number] = best
    return assigned


def _split_groups(
    hashes: NDArray[np.uint64], strata: NDArray[np.int64], val: int, test: int, groups: NDArray[np.int64]
) -> NDArray[np.int8]:
    target = np.array([len(strata) - val - test, val, test])[:, None] * np.bincount(strata)[None, :] / len(strata)
    assigned = assign_groups(hashes, strata, groups, target).astype(np.int8)
    for split, size in ((TRAIN, len(strata)), (VAL, val), (TEST, test)):
        if size and not (assigned == split).any():
            name = ("training", "validation", "test")[split]
            raise DataError(
                f"{len(assigned)} groups are too few: the {name} split would be empty; add groups or choose a larger "
                "fraction"
            )
    return assigned[groups]
