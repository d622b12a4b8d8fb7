"""Which samples of the training split a member is trained on: all folds but one, or a bootstrap sample.

Decided by hashes of keys, so that no shard is rewritten: a fold or bag is a function of its seed and number and of the set
of samples. It depends neither on the order of rows nor on ranks, and whoever needs it computes it anew.

Where the index has groups, these are what is dealt and drawn, whole (Field and Welsh 2007, "Bootstrapping clustered
data"): photos of one object on both sides would let a member that knows one of them judge the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from choral.config import ResampleConfig
from choral.core.counter_rng import key_of, mix, uniform
from choral.core.errors import DataError
from choral.data.shards.index import Index
from choral.data.shards.splits import key_hashes, place_groups
from choral.data.shards.strata import groups_of, strata_of

_BAG, _DRAWS = 51, 52  # purposes of the random numbers


@dataclass(frozen=True)
class Selection:
    """What one member is trained on."""

    rows: NDArray[np.int64]
    """(M,) rows of the training split's index in ascending order of row. With n the length of the index, row + k * n is
    the k-th repetition of a row, k = 0, 1, ...: the same sample, augmented in another way."""
    held_out: NDArray[np.int64]
    """(H,) rows that are never seen, ascending."""


def select(resample: ResampleConfig, index: Index) -> Selection | None:
    """Return the samples that a member is trained on; None: all of them, as without folds and bags.

    fold: folds hold equal shares of each stratum (`strata_of`: a class, or what comes near it) of the data as they were
    packed, whatever the run predicts. Without groups, no two folds differ by more than one sample, in all or of one
    stratum.

    bag: a sample occurs as often as a hash of (seed, number, key) says, Poisson distributed with mean 1; exact: n draws
    with replacement from n samples.

    Args:
        resample: `data.resample` of a member.
        index: of the training split.

    Raises:
        DataError: too few samples or groups: a fold would be empty, or a bag.
    """
    if resample.kind == "fold":
        folds = _folds(index, resample.count, resample.seed)
        counts = (folds != resample.number).astype(np.int64)
    elif resample.kind == "bag":
        counts = _bag(index, resample.seed, resample.number, resample.bootstrap)
    else:
        return None
    return Selection(_repeated(counts), np.flatnonzero(counts == 0))


def poisson_counts(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return (n,) numbers, Poisson distributed with mean 1, of (n,) evenly distributed 64-bit hashes.

    By the inverse of the distribution function, to the last bit: each count has as many of the 2**64 hashes as its
    probability asks for. 20 is the largest; more would come up less than once in 2**64.
    """
    return np.searchsorted(_poisson_bounds(), hashes, side="right").astype(np.int64)


@cache
def _poisson_bounds() -> NDArray[np.uint64]:
    """Return, for each count, the smallest hash that stands for more."""
    bounds: list[int] = []
    with localcontext() as context:
        context.prec = 60
        term = total = Decimal(-1).exp()
        while (bound := int(total * 2**64)) < 2**64 - 1:
            bounds.append(bound)
            term /= len(bounds)
            total += term
    return np.array(bounds, dtype=np.uint64)


def _bag(index: Index, seed: int, number: int, bootstrap: Literal["poisson", "exact"]) -> NDArray[np.int64]:
    """Return how often each row occurs, (n,)."""
    names, units = _units(index)
    hashes = key_hashes(names, seed, "bag")
    if bootstrap == "poisson":
        with np.errstate(over="ignore"):
            counts = poisson_counts(mix(hashes + key_of(_BAG, number)))
    else:
        draws = (uniform(seed, number, np.arange(len(names)), 1, _DRAWS)[:, 0] * len(names)).astype(np.int64)
        counts = np.empty(len(names), dtype=np.int64)
        counts[np.argsort(hashes)] = np.bincount(draws, minlength=len(names))
    if not counts.any():
        raise DataError(
            f"{_where(index)}: bag {number + 1} of {len(names)} samples came out empty; bring more, or choose another seed"
        )
    return counts if units is None else counts[units]


def _folds(index: Index, count: int, seed: int) -> NDArray[np.int64]:
    """Return the fold of each row, (n,), 0 to count - 1."""
    names, units = _units(index)
    dataset = index.dataset
    strata = np.unique(strata_of(index.table, dataset.task, dataset.classes), return_inverse=True)[1]
    hashes = key_hashes(names if units is None else index.keys(np.arange(len(index))), seed, "fold")
    if len(names) < count:
        what = "samples" if units is None else "groups"
        raise DataError(f"{_where(index)}: {len(names)} {what} cannot make {count} folds; ask for fewer")
    if units is None or len(names) == len(index):
        folds = np.empty(len(names), dtype=np.int64)
        # Dealt out stratum by stratum, and never from the start again: totals are as even as strata are.
        folds[np.lexsort((hashes, strata))] = np.arange(len(names)) % count
        return folds
    wanted = np.tile(np.bincount(strata) / count, (count, 1))
    return place_groups(hashes, strata, units, wanted)[units]


def _units(index: Index) -> tuple[list[str], NDArray[np.int64] | None]:
    """Return the names of what stays together, and the (n,) number of each row's; None: each row is by itself."""
    return groups_of(index.table) or (index.keys(np.arange(len(index))), None)


def _repeated(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return each row as often as its count says, its repetitions behind it."""
    rows = np.repeat(np.arange(len(counts)), counts)
    repetition = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rows + repetition * len(counts)


def _where(index: Index) -> str:
    return f"{index.dataset.folder}: split '{index.split}'"
