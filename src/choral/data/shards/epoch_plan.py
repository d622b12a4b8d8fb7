"""Which samples make which global batch: a pure function of (seed, epoch, step), the same for every world size.

`EpochPlan` permutes the shards, concatenates them, cuts the result into `lanes` segments of equal length, and shuffles
each lane within windows. A global batch takes the same number of consecutive samples from each lane; a rank takes a
contiguous slice of the global batch. With more lanes a rank reads from fewer shards at a time, which suits remote
storage; a single lane mixes best.

The memory of an `EpochPlan` does not grow with the number of samples: it keeps only the shard sizes and computes batch
`t` on demand.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from choral.core.counter_rng import make_key, make_keys, permute, uniform
from choral.core.errors import ConfigError

_SHARD_ORDER, _WINDOW_ORDER, _CLASS_ORDER, _SAMPLE_ORDER = 1, 2, 3, 4  # one random stream a purpose
_WEIGHTED_DRAWS = 49  # random stream of `WeightedPlan`


class EpochPlan:
    """The order in which one epoch of training reads the samples of a split.

    Args:
        seed: the seed of the run.
        epoch: counted from 0; every epoch has a different order.
        shard_sizes: (shards,) int64, the samples of the split in each shard; index rows are numbered in shard order.
        global_batch: samples per step over all ranks.
        lanes: streams of shards that are read side by side; must divide `global_batch`.
        window: samples of a lane that are shuffled together; a window as long as the lane shuffles it completely.

    Raises:
        ConfigError: the batch is larger than the split, or `lanes` does not divide the batch.
    """

    def __init__(
        self,
        seed: int,
        epoch: int,
        shard_sizes: NDArray[np.int64],
        global_batch: int,
        lanes: int = 1,
        window: int = 65536,
    ) -> None:
        samples = int(shard_sizes.sum())
        if global_batch < 1 or lanes < 1 or window < 1:
            raise ConfigError(f"batch size {global_batch}, lanes {lanes} and window {window} must be at least 1")
        if global_batch > samples:
            raise ConfigError(
                f"the global batch of {global_batch} samples is larger than the split ({samples}): lower it"
            )
        if global_batch % lanes:
            raise ConfigError(f"a global batch of {global_batch} is not divisible by {lanes} lanes")
        self.global_batch = global_batch
        self.steps = samples // global_batch
        self._lanes, self._window = lanes, window
        self._window_key = (seed, epoch, _WINDOW_ORDER)
        shards = len(shard_sizes)
        order = permute(
            np.arange(shards), np.full(shards, shards), np.full(shards, make_key(seed, epoch, _SHARD_ORDER))
        )
        sizes = shard_sizes[order]
        self._shard_ends = np.cumsum(sizes)  # end of each shard in the concatenation of the permuted shards
        first_rows = np.cumsum(shard_sizes) - shard_sizes
        self._row_shift = first_rows[order] - (self._shard_ends - sizes)  # row = position in the concatenation + shift
        self._lane_starts = samples * np.arange(lanes + 1) // lanes

    def batch(self, step: int) -> NDArray[np.int64]:
        """Return the (global_batch,) int64 rows of global batch `step`, 0 <= step < steps."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of an epoch of {self.steps}")
        per_lane = self.global_batch // self._lanes
        offsets = np.tile(np.arange(step * per_lane, (step + 1) * per_lane), self._lanes)
        lanes = np.repeat(np.arange(self._lanes), per_lane)
        starts = self._lane_starts[lanes]
        positions = starts + self._shuffle(offsets, self._lane_starts[lanes + 1] - starts, lanes)
        return positions + self._row_shift[np.searchsorted(self._shard_ends, positions, side="right")]

    def _shuffle(
        self, offsets: NDArray[np.int64], lengths: NDArray[np.int64], lanes: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Permute offsets within their lane, in overlapping layers of windows so that samples can leave their window.

        Each layer is a bijection of the lane. The second layer is shifted by half a window and mixes across the window
        boundaries of the first. A lane that fits into one window gets a single uniform permutation.
        """
        layers = 1 if int(lengths.max()) <= self._window else 3
        for layer in range(layers):
            shift = (layer % 2) * (self._window // 2)
            windows = (offsets + shift) // self._window
            starts = np.maximum(windows * self._window - shift, 0)
            ends = np.minimum((windows + 1) * self._window - shift, lengths)
            pairs, inverse = np.unique(np.stack([lanes, windows]), axis=1, return_inverse=True)
            keys = np.array([make_key(*self._window_key, layer, int(a), int(b)) for a, b in pairs.T], dtype=np.uint64)
            offsets = starts + permute(offsets - starts, ends - starts, keys[inverse.reshape(-1)])
        return offsets


class RowsByClass:
    """The rows of a split, sorted by class.

    Args:
        labels: (n,) int64, the class of each row.
    """

    def __init__(self, labels: NDArray[np.int64]) -> None:
        self.rows = np.argsort(labels, kind="stable")
        """(n,) int64 rows, class by class."""
        _, self.starts, self.counts = np.unique(labels[self.rows], return_index=True, return_counts=True)

    def __len__(self) -> int:
        """Return the number of classes that occur."""
        return len(self.counts)


class BalancedPlan:
    """A class-balanced plan: every block of C consecutive samples holds each of the C classes once.

    Blocks are counted over all epochs of the run, and each has its own random class order. The samples of a class come
    in random order, each once before any repeats. The k-th occurrence of a sample, k = 0, 1, ..., is returned as
    row + k * n, so that each repetition is augmented differently.

    Args:
        seed, epoch, global_batch: as in `EpochPlan`; an epoch has the same number of steps.
        classes: the rows of the split by class.

    Raises:
        ConfigError: the batch is larger than the split.
    """

    def __init__(self, seed: int, epoch: int, classes: RowsByClass, global_batch: int) -> None:
        samples = len(classes.rows)
        if global_batch > samples:
            raise ConfigError(
                f"the global batch of {global_batch} samples is larger than the split ({samples}): lower it"
            )
        self.global_batch = global_batch
        self.steps = samples // global_batch
        self._seed, self._classes = seed, classes
        self._first = epoch * self.steps * global_batch

    def batch(self, step: int) -> NDArray[np.int64]:
        """Return global batch `step`, 0 <= step < steps: (global_batch,) int64 rows, or row + k * n for repetitions."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of an epoch of {self.steps}")
        classes, count = self._classes, len(self._classes)
        numbers = self._first + np.arange(step * self.global_batch, (step + 1) * self.global_batch)
        blocks, positions = np.divmod(numbers, count)
        labels = permute(positions, np.full(len(positions), count), make_keys(self._seed, _CLASS_ORDER, blocks))
        # A class occurs once a block, so the block number is also the number of its earlier occurrences.
        sizes = classes.counts[labels]
        passes, offsets = np.divmod(blocks, sizes)
        offsets = permute(offsets, sizes, make_keys(self._seed, _SAMPLE_ORDER, labels, passes))
        rows: NDArray[np.int64] = classes.rows[classes.starts[labels] + offsets] + passes * len(classes.rows)
        return rows


class SubsetPlan:
    """A plan over a subset of a split, for folds and bags.

    Args:
        plan: a plan over M samples; its rows are positions in `rows`.
        rows: (M,) int64, at least 0; row + k * n is the k-th repetition of a row.
        n: samples of the split.
    """

    def __init__(self, plan: EpochPlan | BalancedPlan, rows: NDArray[np.int64], n: int) -> None:
        self.steps = plan.steps
        self._plan, self._rows = plan, rows
        self._shift = (
            int(rows.max()) // n + 1
        ) * n  # above every repetition in `rows`, so that repetitions stay distinct

    def batch(self, step: int) -> NDArray[np.int64]:
        """Return global batch `step`, 0 <= step < steps: (global_batch,) int64 rows, or row + k * n for repetitions."""
        passes, positions = np.divmod(self._plan.batch(step), len(self._rows))
        rows: NDArray[np.int64] = self._rows[positions] + passes * self._shift
        return rows


class WeightedPlan:
    """A plan that draws samples with replacement, with probabilities proportional to their weights.

    An epoch makes as many draws as the split has samples; each draw is a function of (seed, epoch, position). The k-th
    occurrence of a sample in an epoch, k = 0, 1, ..., is returned as row + k * n, so that each repetition is augmented
    differently.

    Args:
        seed, epoch, global_batch: as in `EpochPlan`; an epoch has the same number of steps.
        weights: (n,) float64, at least 0, not all 0; they need not sum to 1.

    Raises:
        ConfigError: the batch is larger than the split.
    """

    def __init__(self, seed: int, epoch: int, weights: NDArray[np.float64], global_batch: int) -> None:
        samples = len(weights)
        if global_batch > samples:
            raise ConfigError(
                f"the global batch of {global_batch} samples is larger than the split ({samples}): lower it"
            )
        self.global_batch = global_batch
        self.steps = samples // global_batch
        cumulative = np.cumsum(weights)  # inverse transform sampling
        draws = uniform(seed, epoch, np.arange(samples), 1, _WEIGHTED_DRAWS)[:, 0] * cumulative[-1]
        last = int(np.flatnonzero(weights)[-1])
        rows = np.minimum(np.searchsorted(cumulative, draws, side="right"), last)  # the product may round up to the end
        order = np.argsort(rows, kind="stable")
        _, starts, counts = np.unique(rows[order], return_index=True, return_counts=True)
        repetition = np.empty(samples, dtype=np.int64)
        repetition[order] = np.arange(samples) - np.repeat(starts, counts)
        self._rows: NDArray[np.int64] = rows + repetition * samples

    def batch(self, step: int) -> NDArray[np.int64]:
        """Return global batch `step`, 0 <= step < steps: (global_batch,) int64 rows, or row + k * n for repetitions."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of an epoch of {self.steps}")
        return self._rows[step * self.global_batch : (step + 1) * self.global_batch]


def rank_slice(count: int, rank: int, world_size: int) -> slice:
    """Return the contiguous slice of range(count) that belongs to `rank`; slice sizes differ by at most one."""
    return slice(count * rank // world_size, count * (rank + 1) // world_size)


def evaluation_batches(count: int, rank: int, world_size: int, batch: int) -> Iterator[NDArray[np.int64]]:
    """Yield the rows that `rank` evaluates, in batches of at most `batch`; the ranks together get each row exactly once.

    Ranks may get different numbers of batches, even none: do not run collective operations while iterating.
    """
    part = rank_slice(count, rank, world_size)
    for start in range(part.start, part.stop, batch):
        yield np.arange(start, min(start + batch, part.stop))
