"""A split of a packed data set, opened for reading: index, shards, decoded cache, targets and training rows."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from choral.config import Config, DataConfig
from choral.data.loading.decoded_cache import DecodedCache
from choral.data.loading.label_probabilities import LabelProbabilities
from choral.data.loading.rank_place import RankPlace
from choral.data.loading.resampling import Selection, select_rows
from choral.data.loading.targets import Targets
from choral.data.shards.epoch_plan import RowsByClass
from choral.data.shards.index import Dataset, Index
from choral.data.shards.store import LocalStore


@dataclass(frozen=True)
class Split:
    """One split of a packed data set, ready to be read."""

    index: Index
    store: LocalStore
    cache: DecodedCache | None
    targets: Targets
    selection: Selection | None = None
    """The rows to train on, with repetitions; None: every row once."""
    weights: NDArray[np.float64] | None = None
    """(n,) sample weights, mean 1, of a boosting round or of `train.label_probabilities_as: weights`; None: equal."""
    probabilities: LabelProbabilities | None = None
    """Soft targets, where the model is trained on class probabilities instead of labels."""

    def __len__(self) -> int:
        return len(self.index)

    @property
    def training_samples(self) -> int:
        """Number of samples in one epoch, repetitions included."""
        return len(self.index) if self.selection is None else len(self.selection.rows)

    @property
    def training_rows(self) -> NDArray[np.int64] | None:
        """(training_samples,) index rows to train on, ascending, repeated rows included; None: all rows once."""
        return None if self.selection is None else self.selection.rows % len(self.index)

    @cached_property
    def training_shard_sizes(self) -> NDArray[np.int64]:
        """(shards of the split,) number of training samples in each shard, repetitions included."""
        sizes, rows = self.index.shard_sizes, self.training_rows
        if rows is None:
            return sizes
        return np.diff(np.searchsorted(rows, np.cumsum(sizes)), prepend=0)

    @cached_property
    def class_rows(self) -> RowsByClass:
        """The positions of the training samples by class; multiclass splits only."""
        rows = self.training_rows
        return RowsByClass(self.index.labels if rows is None else self.index.labels[rows])


def open_dataset(config: DataConfig) -> Dataset:
    """Open the packed data set of a config and check that every shard is present with the recorded size."""
    dataset = Dataset.open(Path(config.shards))
    dataset.check_files()
    return dataset


def open_split(config: Config, dataset: Dataset, split: str, place: RankPlace) -> Split:
    """Open a split; the first process on a machine decodes it into the shared cache if it fits `data.cache_gib`.

    Raises:
        ConfigError, DataError: the split does not exist, or lacks targets for the config's task; see `Targets.open`.
    """
    index = Index.open(dataset, split)
    targets = Targets.open(config, index)
    store = LocalStore(dataset)
    cache = None
    if config.data.cache_gib > 0:
        scratch = os.environ.get("CHORAL_SCRATCH")  # a local disk, for shards on a file system that many machines share
        folder = Path(scratch) / "choral-decoded" if scratch else dataset.folder / ".decoded"
        cache = DecodedCache.open_or_build(
            index, store, folder, config.data.cache_gib, place.cores, config.data.max_pixels
        )
    return Split(index, store, cache, targets)


def open_training_split(config: Config, dataset: Dataset, place: RankPlace) -> Split:
    """Open the training split with the fold or bag of `data.resample`, and its soft targets or sample weights.

    Raises:
        ConfigError, DataError: as `open_split`; also too few samples for the folds, or invalid columns in
            `train.label_probabilities`.
    """
    split = open_split(config, dataset, config.data.train_split, place)
    split = replace(split, selection=select_rows(config.data.resample, split.index))
    if not config.train.label_probabilities:
        return split
    probabilities = LabelProbabilities.open(config.train.label_probabilities, split.index)
    if config.train.label_probabilities_as == "targets":
        return replace(split, probabilities=probabilities)
    return replace(split, weights=probabilities.weights(split.training_rows))
