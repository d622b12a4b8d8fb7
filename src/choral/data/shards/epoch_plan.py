"""Which samples make which global batch: a pure function of (seed, epoch, step), the same for every world size.

Shards are permuted and laid end to end, the line is cut into `lanes` equal segments, and each lane is shuffled within
windows. A global batch takes an equal number of consecutive samples from each lane; a rank takes a contiguous slice of
the global batch. More lanes mean that a rank touches fewer shards at a time (remote storage), one lane mixes best.

Nothing here grows with the number of samples: only the shard sizes are kept, and batch `t` is computed when asked for.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from choral.core.counter_rng import key_of, keys_of, permute, uniform
from choral.core.errors import ConfigError

_SHARD_ORDER, _WINDOW_ORDER, _CLASS_ORDER, _SAMPLE_ORDER = 1, 2, 3, 4  # purposes of the keys
_DRAWS = 49  # tells these random numbers from those of other purposes


class EpochPlan:
    """The order in which one epoch of training reads the samples of a split.

    Args:
        seed: of the run.
        epoch: from 0; each epoch has its own order.
        shard_sizes: (shards,) int64, samples of the split in each shard; rows of the index count through the shards.
        global_batch: samples a step over all ranks.
        lanes: streams of shards read side by side; must divide `global_batch`.
        window: samples a lane among which the order is random; a window that holds the lane shuffles it completely.

    Raises:
        ConfigError: a batch larger than the split, or lanes that do not divide the batch.
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
            raise ConfigError(f"the global batch holds {global_batch} samples, but the split only {samples}: lower it")
        if global_batch % lanes:
            raise ConfigError(f"{lanes} lanes cannot share a global batch of {global_batch}: lanes must divide it")
        self.global_batch = global_batch
        self.steps = samples // global_batch
        self._lanes, self._window = lanes, window
        self._window_key = (seed, epoch, _WINDOW_ORDER)
        shards = len(shard_sizes)
        order = permute(np.arange(shards), np.full(shards, shards), np.full(shards, key_of(seed, epoch, _SHARD_ORDER)))
        sizes = shard_sizes[order]
        self._line_ends = np.cumsum(sizes)  # where each shard ends on the line of permuted shards
        first_rows = np.cumsum(shard_sizes) - shard_sizes
        self._row_shift = first_rows[order] - (self._line_ends - sizes)  # row = position on the line + shift
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
        return positions + self._row_shift[np.searchsorted(self._line_ends, positions, side="right")]

    def _shuffle(
        self, offsets: NDArray[np.int64], lengths: NDArray[np.int64], lanes: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Permute offsets within their lane: windows laid like bricks, so that samples can leave their own window.

        A layer of windows is a bijection of the lane; a second layer, shifted by half a window, mixes across the joints
        of the first. A lane that fits into one window needs, and gets, one uniform permutation.
        """
        layers = 1 if int(lengths.max()) <= self._window else 3
        for layer in range(layers):
            shift = (layer % 2) * (self._window // 2)
            windows = (offsets + shift) // self._window
            begins = np.maximum(windows * self._window - shift, 0)
            ends = np.minimum((windows + 1) * self._window - shift, lengths)
            names, inverse = np.unique(np.stack([lanes, windows]), axis=1, return_inverse=True)
            keys = np.array([key_of(*self._window_key, layer, int(a), int(b)) for a, b in names.T], dtype=np.uint64)
            offsets = begins + permute(offsets - begins, ends - begins, keys[inverse.reshape(-1)])
        return offsets


class ClassRows:
    """The rows of a split by class, made once.

    Args:
        labels: (n,) int64 class of each row.
    """

    def __init__(self, labels: NDArray[np.int64]) -> None:
        self.rows = np.argsort(labels, kind="stable")
        """(n,) class by class."""
        _, self.starts, self.counts = np.unique(labels[self.rows], return_index=True, return_counts=True)

    def __len__(self) -> int:
        """Return the number of classes that occur."""
        return len(self.counts)


class BalancedPlan:
    """As `EpochPlan`, but of any C consecutive samples, C being the number of classes, each is of another class.

    More exactly: the samples of a run, over all epochs, are counted through and cut into blocks of C, each with every class
    once, in an order of its own. The samples of a class come in random order, each once before any comes again. The k-th
    time that a sample comes, k = 0, 1, ..., it stands as row + k * n, so that it is augmented in another way.

    Args:
        seed, epoch, global_batch: as in `EpochPlan`; an epoch has as many steps as there.
        classes: of the split.

    Raises:
        ConfigError: a batch larger than the split.
    """

    def __init__(self, seed: int, epoch: int, classes: ClassRows, global_batch: int) -> None:
        samples = len(classes.rows)
        if global_batch > samples:
            raise ConfigError(f"the global batch holds {global_batch} samples, but the split only {samples}: lower it")
        self.global_batch = global_batch
        self.steps = samples // global_batch
        self._seed, self._classes = seed, classes
        self._first = epoch * self.steps * global_batch

    def batch(self, step: int) -> NDArray[np.int64]:
        """Return the (global_batch,) int64 rows, or repetitions of rows, of global batch `step`, 0 <= step < steps."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of an epoch of {self.steps}")
        classes, count = self._classes, len(self._classes)
        numbers = self._first + np.arange(step * self.global_batch, (step + 1) * self.global_batch)
        blocks, places = np.divmod(numbers, count)
        drawn = permute(places, np.full(len(places), count), keys_of(self._seed, _CLASS_ORDER, blocks))
        # A class occurs once a block, so the number of the block is how often it came before.
        sizes = classes.counts[drawn]
        passes, offsets = np.divmod(blocks, sizes)
        offsets = permute(offsets, sizes, keys_of(self._seed, _SAMPLE_ORDER, drawn, passes))
        rows: NDArray[np.int64] = classes.rows[classes.starts[drawn] + offsets] + passes * len(classes.rows)
        return rows


class SelectedPlan:
    """A plan for part of a split: what it orders are positions in a list of rows.

    Args:
        plan: over as many samples as there are rows.
        rows: (M,) int64, 0 or more; row + k * n is the k-th repetition of a row.
        n: samples of the split.
    """

    def __init__(self, plan: EpochPlan | BalancedPlan, rows: NDArray[np.int64], n: int) -> None:
        self.steps = plan.steps
        self._plan, self._rows = plan, rows
        self._shift = (int(rows.max()) // n + 1) * n  # so that what comes again is a repetition of its own

    def batch(self, step: int) -> NDArray[np.int64]:
        """Return the (global_batch,) int64 rows, or repetitions of rows, of global batch `step`, 0 <= step < steps."""
        passes, positions = np.divmod(self._plan.batch(step), len(self._rows))
        rows: NDArray[np.int64] = self._rows[positions] + passes * self._shift
        return rows


class WeightedPlan:
    """As `EpochPlan`, but each sample of a batch is drawn, with a probability in proportion to its weight, with replacement.

    An epoch makes as many draws as the split has samples, each a function of (seed, epoch, position). The k-th time that a
    sample comes in an epoch, k = 0, 1, ..., it stands as row + k * n, so that it is augmented in another way.

    Args:
        seed, epoch, global_batch: as in `EpochPlan`; an epoch has as many steps as there.
        weights: (n,) float64, at least 0, not all 0; their sum does not matter.

    Raises:
        ConfigError: a batch larger than the split.
    """

    def __init__(self, seed: int, epoch: int, weights: NDArray[np.float64], global_batch: int) -> None:
        samples = len(weights)
        if global_batch > samples:
            raise ConfigError(f"the global batch holds {global_batch} samples, but the split only {samples}: lower it")
        self.global_batch = global_batch
        self.steps = samples // global_batch
        ends = np.cumsum(weights)  # each sample has a stretch as long as its weight, and each draw points to a place
        places = uniform(seed, epoch, np.arange(samples), 1, _DRAWS)[:, 0] * ends[-1]
        last = int(np.flatnonzero(weights)[-1])
        rows = np.minimum(np.searchsorted(ends, places, side="right"), last)  # a product may be rounded up to the end
        order = np.argsort(rows, kind="stable")
        _, starts, counts = np.unique(rows[order], return_index=True, return_counts=True)
        times = np.empty(samples, dtype=np.int64)
        times[order] = np.arange(samples) - np.repeat(starts, counts)
        self._rows: NDArray[np.int64] = rows + times * samples

    def batch(self, step: int) -> NDArray[np.int64]:
        """Return the (global_batch,) int64 rows, or repetitions of rows, of global batch `step`, 0 <= step < steps."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of an epoch of {self.steps}")
        return self._rows[step * self.global_batch : (step + 1) * self.global_batch]


def slice_of(count: int, rank: int, world_size: int) -> slice:
    """Return the contiguous part of range(count) that belongs to `rank`; parts differ in size by at most one."""
    return slice(count * rank // world_size, count * (rank + 1) // world_size)


def exact_rows(count: int, rank: int, world_size: int, batch: int) -> Iterator[NDArray[np.int64]]:
    """Yield the rows of `rank` for evaluation in batches of at most `batch`: over all ranks each row exactly once.

    Ranks may get different numbers of batches, also none at all: nothing may communicate while they are read.
    """
    part = slice_of(count, rank, world_size)
    for start in range(part.start, part.stop, batch):
        yield np.arange(start, min(start + batch, part.stop))
