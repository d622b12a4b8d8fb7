"""Which sample is trained on, which validates, which tests: decided by the key, not by the order of files.

Samples of a stratum (class, and whatever else is asked for) are ranked by a hash of seed and key; shares are
apportioned to strata by largest remainder (Hamilton's method), so that totals are exact and each stratum within one
sample of its share.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from choral.core.errors import DataError

TRAIN, VAL, TEST = 0, 1, 2


def key_hashes(keys: Sequence[str], seed: int, purpose: str) -> NDArray[np.uint64]:
    """Return a (n,) uint64 hash of each key; different seeds and purposes give unrelated numbers."""
    salt = hashlib.blake2b(f"{purpose}/{seed}".encode(), digest_size=32).digest()
    joined = b"".join(hashlib.blake2b(key.encode(), digest_size=8, key=salt).digest() for key in keys)
    return np.frombuffer(joined, dtype="<u8").astype(np.uint64)


def shares(count: int, val: float, test: float) -> tuple[int, int]:
    """Return the numbers of validation and test samples among `count`; a fraction above 0 gives at least one."""
    return tuple(max(1, round(count * part)) if part > 0 else 0 for part in (val, test))  # type: ignore[return-value]


def carve(
    keys: Sequence[str],
    strata: NDArray[np.int64],
    val: int,
    test: int,
    seed: int,
    groups: NDArray[np.int64] | None = None,
) -> NDArray[np.int8]:
    """Divide samples into training, validation and test, each stratum in the same proportion.

    Args:
        keys: n different keys; their order does not matter.
        strata: (n,) int64, from 0, numbered without gaps.
        val, test: samples wanted; exact without groups, and with groups as near as these allow.
        seed: another seed, another division.
        groups: (n,) int64, from 0; samples of one group stay together.

    Returns:
        (n,) int8 of TRAIN, VAL and TEST.

    Raises:
        DataError: more samples wanted than there are, or too few groups for the splits.
    """
    if val + test >= len(keys):
        raise DataError(
            f"{len(keys)} samples cannot give {val} for validation, {test} for testing and some for training"
        )
    hashes = key_hashes(keys, seed, "split")
    if groups is not None:
        return _carve_groups(hashes, strata, val, test, groups)
    sizes = np.bincount(strata)
    spare = np.maximum(sizes - 1, 0)  # one of each stratum is kept for training, as long as that is possible
    capacity = spare if int(spare.sum()) >= val + test else sizes
    tests = apportion(test, sizes, capacity)
    vals = apportion(val, sizes, capacity - tests)
    order = np.lexsort((hashes, strata))
    rank = np.arange(len(keys)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # within the stratum, by hash
    stratum = strata[order]
    result = np.full(len(keys), TRAIN, dtype=np.int8)
    result[order[rank < tests[stratum] + vals[stratum]]] = VAL
    result[order[rank < tests[stratum]]] = TEST
    return result


def apportion(total: int, sizes: NDArray[np.int64], capacity: NDArray[np.int64]) -> NDArray[np.int64]:
    """Divide `total` over strata in proportion to `sizes` by largest remainder, none above its `capacity`.

    Ties go to the larger stratum, then to the first. The sum of capacities must be at least `total`.
    """
    quota = total * sizes / max(int(sizes.sum()), 1)
    result = np.minimum(np.floor(quota).astype(np.int64), capacity)
    while (missing := total - int(result.sum())) > 0:
        open_ = np.flatnonzero(result < capacity)
        best = open_[np.lexsort((open_, -sizes[open_], -(quota - result)[open_]))[:missing]]
        result[best] += 1
    return result


def place_groups(
    hashes: NDArray[np.uint64], strata: NDArray[np.int64], groups: NDArray[np.int64], wanted: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Place whole groups, the largest first, each into the part where its strata are still missed most.

    Args:
        hashes: (n,) uint64 of the samples; they decide between groups of one size.
        strata, groups: (n,) int64, from 0, numbered without gaps.
        wanted: (parts, strata) how many samples each part should get; parts that want none get none.

    Returns:
        (groups,) int64, the part of each group. Of parts that want the same, none is left without any while there are as
        many groups as parts.
    """
    count = int(groups.max()) + 1
    kinds = int(strata.max()) + 1
    tie = np.zeros(count, dtype=np.uint64)
    np.bitwise_xor.at(tie, groups, hashes)  # a hash of the group that does not depend on the order of its samples
    cells, amounts = np.unique(groups * kinds + strata, return_counts=True)
    ends = np.searchsorted(cells, np.arange(1, count + 1) * kinds).tolist()
    contents = list(zip((cells % kinds).tolist(), amounts.tolist(), strict=True))  # (stratum, samples), by group
    lacking: list[list[float]] = wanted.tolist()  # [part][stratum]; plain lists: a loop over groups, not over arrays
    room: list[float] = wanted.sum(axis=1).tolist()  # of each part; decides where its strata are missed alike
    asked = [part for part, size in enumerate(room) if size > 0]
    home = np.zeros(count, dtype=np.int64)
    for number in np.lexsort((tie, -np.bincount(groups))).tolist():
        mine = contents[ends[number - 1] if number else 0 : ends[number]]
        best = max(asked, key=lambda part: (sum(lacking[part][s] * n for s, n in mine), room[part]))
        for stratum, amount in mine:
            lacking[best][stratum] -= amount
            room[best] -= amount
        home[number] = best
    return home


def _carve_groups(
    hashes: NDArray[np.uint64], strata: NDArray[np.int64], val: int, test: int, groups: NDArray[np.int64]
) -> NDArray[np.int8]:
    wanted = np.array([len(strata) - val - test, val, test])[:, None] * np.bincount(strata)[None, :] / len(strata)
    home = place_groups(hashes, strata, groups, wanted).astype(np.int8)
    for split, size in ((TRAIN, len(strata)), (VAL, val), (TEST, test)):
        if size and not (home == split).any():
            name = ("training", "validation", "testing")[split]
            raise DataError(
                f"{len(home)} groups cannot be divided: {name} would get none of them; bring more groups or ask for a "
                "larger fraction"
            )
    return home[groups]
