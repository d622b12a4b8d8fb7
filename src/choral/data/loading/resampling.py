"""The training rows of an ensemble member: all folds but one, or a bootstrap sample (bag).

Rows are chosen by hashes of keys, so that no shard is rewritten: a fold or bag is a function of its seed, its number
and the set of samples. It depends neither on the order of rows nor on ranks, and is computed again wherever it is
needed.

If the index has groups, whole groups are assigned and drawn (Field and Welsh 2007, "Bootstrapping clustered data").
Otherwise photos of one object could be on both sides, and a member would be evaluated on objects that it was trained
on.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from choral.config import ResampleConfig
from choral.core.counter_rng import make_key, mix, uniform
from choral.core.errors import DataError
from choral.data.shards.index import Index
from choral.data.shards.splits import assign_groups, hash_keys
from choral.data.shards.strata import compute_strata, encode_groups

_BAG, _DRAWS = 51, 52  # random streams


@dataclass(frozen=True)
class Selection:
    """The rows that one member is trained on."""

    rows: NDArray[np.int64]
    """(M,) rows of the training split, ascending by row. With n the length of the index, row + k * n is the k-th
    repetition of a row, k = 0, 1, ...: the same sample with another augmentation."""
    held_out: NDArray[np.int64]
    """(H,) rows that are not trained on, ascending."""


def select_rows(resample: ResampleConfig, index: Index) -> Selection | None:
    """Return the rows that a member is trained on; None: all of them, without folds or bags.

    fold: each fold holds an equal share of every stratum (`compute_strata`: a class, or the nearest equivalent) of the
    data as packed, whatever the task of the run. Without groups, the sizes of two folds differ by at most one sample,
    in total or in one stratum.

    bag: the number of occurrences of a sample is Poisson distributed with mean 1, from a hash of (seed, number, key).
    exact: n draws with replacement from n samples.

    Args:
        resample: `data.resample` of a member.
        index: of the training split.

    Raises:
        DataError: too few samples or groups, so that a fold or bag would be empty.
    """
    if resample.kind == "fold":
        folds = _assign_folds(index, resample.count, resample.seed)
        counts = (folds != resample.number).astype(np.int64)
    elif resample.kind == "bag":
        counts = _count_bag(index, resample.seed, resample.number, resample.bootstrap)
    else:
        return None
    return Selection(_repeat_rows(counts), np.flatnonzero(counts == 0))


def poisson_counts(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return (n,) Poisson distributed counts with mean 1, from (n,) uniform 64-bit hashes.

    Uses the inverse of the distribution function, exact to the last bit: the number of hashes, of 2**64, that give a
    count is its probability times 2**64. The largest count is 20; a larger one is expected less than once in 2**64.
    """
    return np.searchsorted(_poisson_bounds(), hashes, side="right").astype(np.int64)


@cache
def _poisson_bounds() -> NDArray[np.uint64]:
    """Return, for each count, the smallest hash that gives a larger count."""
    bounds: list[int] = []
    with localcontext() as context:
        context.prec = 60
        term = total = Decimal(-1).exp()
        while (bound := int(total * 2**64)) < 2**64 - 1:
            bounds.append(bound)
            term /= len(bounds)
            total += term
    return np.array(bounds, dtype=np.uint64)


def _count_bag(index: Index, seed: int, number: int, bootstrap: Literal["poisson", "exact"]) -> NDArray[np.int64]:
    """Return the number of occurrences of each row, (n,)."""
    names, units = _units(index)
    hashes = hash_keys(names, seed, "bag")
    if bootstrap == "poisson":
        with np.errstate(over="ignore"):
            counts = poisson_counts(mix(hashes + make_key(_BAG, number)))
    else:
        draws = (uniform(seed, number, np.arange(len(names)), 1, _DRAWS)[:, 0] * len(names)).astype(np.int64)
        counts = np.empty(len(names), dtype=np.int64)
        counts[np.argsort(hashes)] = np.bincount(draws, minlength=len(names))
    if not counts.any():
        raise DataError(
            f"{_where(index)}: bag {number + 1} of {len(names)} samples is empty; use more samples or another seed"
        )
    return counts if units is None else counts[units]


def _assign_folds(index: Index, count: int, seed: int) -> NDArray[np.int64]:
    """Return the fold of each row, (n,), from 0 to count - 1."""
    names, units = _units(index)
    dataset = index.dataset
    strata = np.unique(compute_strata(index.table, dataset.task, dataset.classes), return_inverse=True)[1]
    hashes = hash_keys(names if units is None else index.keys(np.arange(len(index))), seed, "fold")
    if len(names) < count:
        what = "samples" if units is None else "groups"
        raise DataError(f"{_where(index)}: {len(names)} {what} are too few for {count} folds; use fewer folds")
    if units is None or len(names) == len(index):
        folds = np.empty(len(names), dtype=np.int64)
        # Assigned in turn across the boundaries of strata, so that totals are as even as strata.
        folds[np.lexsort((hashes, strata))] = np.arange(len(names)) % count
        return folds
    targets = np.tile(np.bincount(strata) / count, (count, 1))
    return assign_groups(hashes, strata, units, targets)[units]


def _units(index: Index) -> tuple[list[str], NDArray[np.int64] | None]:
    """Return the group names and the (n,) group number of each row; without groups, the keys of the rows and None."""
    return encode_groups(index.table) or (index.keys(np.arange(len(index))), None)


def _repeat_rows(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return each row repeated by its count, with repetitions numbered as in `Selection.rows`."""
    rows = np.repeat(np.arange(len(counts)), counts)
    repetition = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rows + repetition * len(counts)


def _where(index: Index) -> str:
    return f"{index.dataset.folder}: split '{index.split}'"
