"""Checks before a training run starts: what would fail later fails now, in a second and without importing torch."""

from __future__ import annotations

from pathlib import Path

from choral.config import Config
from choral.core.errors import ConfigError, DataError
from choral.data.augment.host_transforms import check_host_transforms
from choral.data.loading.resampling import select_rows
from choral.data.loading.targets import Targets
from choral.data.shards.index import Dataset, Index
from choral.tracking.tensorboard import check_installed


def preflight(config: Config) -> None:
    """Check the data, the batch size, the weights file and the host transforms of a config.

    Imports torch only if the config names host transforms, because Albumentations needs it.

    Raises:
        ConfigError, DataError: shards are missing or damaged, a split is unknown or empty, the data are of another task,
            or there are fewer samples than a batch needs. The message names the folder, shard, split, column or key.
    """
    if config.tracking.tensorboard:
        check_installed()
    dataset = Dataset.open(Path(config.data.shards))
    dataset.check_files()
    training_samples = _check_split(config, dataset, config.data.train_split, is_training=True)
    _check_split(config, dataset, config.data.val_split, is_training=False)
    if config.train.batch_size > training_samples:
        resample = config.data.resample
        subset = f" of {resample.kind} {resample.number + 1}" if resample.kind in ("fold", "bag") else ""
        raise ConfigError(
            f"train.batch_size: {config.train.batch_size} is more than the {training_samples} training samples{subset}"
        )
    kind, _, path = config.model.weights.partition(":")
    if kind == "file" and not Path(path).is_file():
        raise ConfigError(f"model.weights: {path}: no such file")
    check_host_transforms(config.augment.host, config.data.image_size)


def _check_split(config: Config, dataset: Dataset, split: str, is_training: bool) -> int:
    """Check that a split has samples and labels, and return how many samples are used of it."""
    index = Index.open(dataset, split)
    targets = Targets.open(config, index)
    if not len(index):
        raise DataError(f"{dataset.folder}: split '{split}' is empty; pack again with another --val or --test")
    selection = select_rows(config.data.resample, index) if is_training else None
    rows = None if selection is None else selection.rows % len(index)
    if config.task == "multilabel" and not any(block.any() for block in targets.blocks(rows)):
        raise DataError(
            f"{dataset.folder}: no sample of split '{split}' has any label, so there is nothing to train on or to measure; "
            "add labels, or pack with another --seed"
        )
    return len(index) if rows is None else len(rows)
