"""Counter-based random numbers and permutations: computed from a position, without a generator state.

Every number is a pure function of (seed, epoch, row, ...), so there is no generator to save, to split over ranks or to
fast-forward after an interruption. `uniform` hashes counters with the SplitMix64 finaliser (Steele, Lea and Flood 2014,
"Fast splittable pseudorandom number generators"); `permute` is a Feistel network over the next power of two with cycle
walking (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"), so evaluating one position of a permutation costs
the same for ten elements and for a billion.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_FEISTEL_ROUNDS = 12


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble each 64-bit value (SplitMix64 finaliser): a bijection whose output bits all depend on all input bits."""
    values = (values ^ (values >> np.uint64(30))) * _MIX_1
    values = (values ^ (values >> np.uint64(27))) * _MIX_2
    mixed: NDArray[np.uint64] = values ^ (values >> np.uint64(31))
    return mixed


def make_key(*parts: int) -> np.uint64:
    """Hash integers (a seed, an epoch, a purpose ...) to one 64-bit key; the order of the parts matters."""
    key = np.zeros(1, dtype=np.uint64)
    for part in parts:
        key = mix((key ^ np.uint64(part & 0xFFFFFFFFFFFFFFFF)) + _GOLDEN)
    return np.uint64(key[0])


def make_keys(*parts: int | NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return what `make_key` returns for each element of the parts, which are broadcast against each other."""
    keys = np.zeros(1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            keys = mix((keys ^ np.asarray(part).astype(np.uint64)) + _GOLDEN)
    return keys


def uniform(seed: int, epoch: int, rows: NDArray[np.int64], count: int, stream: int = 0) -> NDArray[np.float64]:
    """Return `count` numbers in [0, 1) for each row, independent of the other rows in the call.

    Args:
        seed: of the run.
        epoch: number of the pass over the data.
        rows: (b,) int64, the samples' rows in the index.
        count: numbers per row.
        stream: identifies the purpose; two purposes with the same stream would get the same numbers.

    Returns:
        (b, count) float64 in [0, 1), with 53 random bits each.
    """
    key = make_key(seed, epoch, stream)
    with np.errstate(over="ignore"):
        per_row = mix(np.asarray(rows, dtype=np.uint64) * _GOLDEN + key)
        columns = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
        bits = mix(per_row[:, None] + columns[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permute(positions: NDArray[np.int64], length: NDArray[np.int64], key: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the image of each position under a pseudo-random permutation of range(length), possibly another one per row.

    Args:
        positions: (b,) int64, 0 <= positions < length.
        length: (b,) int64, sizes of the permuted ranges, from 1 to 2**62.
        key: (b,) uint64; equal keys and lengths mean the same permutation.

    Returns:
        (b,) int64, for equal keys and lengths a bijection of range(length).
    """
    bits = np.ceil(np.log2(np.maximum(length, 2).astype(np.float64))).astype(np.uint64)
    bits += (np.uint64(1) << bits) < length.astype(np.uint64)  # log2 of a float64 may round down above 2**53
    result = positions.astype(np.uint64)
    pending = np.arange(len(result))
    while len(pending):  # cycle walking: apply the network again to values in [length, 2**bits)
        walked = _feistel(result[pending], bits[pending], key[pending])
        result[pending] = walked
        pending = pending[walked >= length[pending].astype(np.uint64)]
    return result.astype(np.int64)


def _feistel(values: NDArray[np.uint64], bits: NDArray[np.uint64], key: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One pass of an alternating Feistel network over `bits` bits; the halves may differ by one bit."""
    low_bits = bits // np.uint64(2)
    high_bits = bits - low_bits
    one = np.uint64(1)
    low_mask, high_mask = (one << low_bits) - one, (one << high_bits) - one
    low, high = values & low_mask, values >> low_bits
    with np.errstate(over="ignore"):
        for number in range(0, _FEISTEL_ROUNDS, 2):
            high = high ^ (mix(low + key + np.uint64(number + 1) * _GOLDEN) >> np.uint64(32)) & high_mask
            low = low ^ (mix(high + key + np.uint64(number + 2) * _GOLDEN) >> np.uint64(32)) & low_mask
    joined: NDArray[np.uint64] = (high << low_bits) | low
    return joined
