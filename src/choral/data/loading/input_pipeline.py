"""From a config to the batches that a rank trains on or is asked about: index, cache, host loader, device loader.

Which samples make a batch comes from `Selection`, `EpochPlan`, `BalancedPlan`, `WeightedPlan` and `exact_rows`; everything
here only decides how fast they arrive.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from choral.config import Config, DataConfig
from choral.data.augment.host_transforms import HostTransforms
from choral.data.augment.mixing import Mixing, with_partners
from choral.data.augment.parameters import Augment
from choral.data.loading.bad_samples import BadSamples
from choral.data.loading.crop import Crop
from choral.data.loading.decoded_cache import DecodedCache
from choral.data.loading.device_loader import DeviceLoader
from choral.data.loading.host_loader import BatchRequest, HostLoader
from choral.data.loading.input_spec import ImageSpec, InputSpec, image_specs_of
from choral.data.loading.label_probabilities import LabelProbabilities
from choral.data.loading.resampling import Selection, select
from choral.data.loading.targets import Targets
from choral.data.shards.epoch_plan import (
    BalancedPlan,
    ClassRows,
    EpochPlan,
    SelectedPlan,
    WeightedPlan,
    exact_rows,
    slice_of,
)
from choral.data.shards.index import Dataset, Index
from choral.data.shards.store import LocalStore


@dataclass(frozen=True)
class RankPlace:
    """Which part of the work is this process's, and where it is done."""

    rank: int
    world_size: int
    device: torch.device
    ranks_here: int = 1
    """Ranks that share this machine's cores."""


@dataclass(frozen=True)
class Split:
    """One split of a packed data set, ready to be read."""

    index: Index
    store: LocalStore
    cache: DecodedCache | None
    targets: Targets
    selection: Selection | None = None
    """Which samples are trained on, and how often each; None: all, once."""
    weights: NDArray[np.float64] | None = None
    """(n,) of its rows, mean 1, in a round of boosting, or where `train.label_probabilities` are weights."""
    probabilities: LabelProbabilities | None = None
    """Of the classes, where they are what is learnt instead of the labels."""

    def __len__(self) -> int:
        return len(self.index)

    @property
    def training_samples(self) -> int:
        """How many samples one pass of training makes, repetitions counted."""
        return len(self.index) if self.selection is None else len(self.selection.rows)

    @property
    def training_rows(self) -> NDArray[np.int64] | None:
        """(training_samples,) rows of the index that are trained on, ascending, each as often as it is seen; None: all."""
        return None if self.selection is None else self.selection.rows % len(self.index)

    @cached_property
    def training_shard_sizes(self) -> NDArray[np.int64]:
        """(shards of the split,) how many training samples lie in each of its shards, repetitions counted."""
        sizes, rows = self.index.shard_sizes, self.training_rows
        if rows is None:
            return sizes
        return np.diff(np.searchsorted(rows, np.cumsum(sizes)), prepend=0)

    @cached_property
    def class_rows(self) -> ClassRows:
        """The positions of its training samples by class; of a multiclass split."""
        rows = self.training_rows
        return ClassRows(self.index.labels if rows is None else self.index.labels[rows])


def open_dataset(config: DataConfig) -> Dataset:
    """Open the packed folder of a config and check that its shards are there, with their sizes."""
    dataset = Dataset.open(Path(config.shards))
    dataset.verify_present()
    return dataset


def open_split(config: Config, dataset: Dataset, split: str, place: RankPlace) -> Split:
    """Open a split; the first process on a machine decodes it into the shared cache where that fits the budget.

    Raises:
        ConfigError, DataError: no such split, or it has no targets of the config's task; see `Targets.open`.
    """
    index = Index.open(dataset, split)
    targets = Targets.open(config, index)
    store = LocalStore(dataset)
    cache = None
    if config.data.cache_gib > 0:
        workers = _cores(place)
        scratch = os.environ.get("CHORAL_SCRATCH")  # a disk of this machine's own, where the shards' is shared by many
        folder = Path(scratch) / "choral-decoded" if scratch else dataset.folder / ".decoded"
        cache = DecodedCache.open_or_build(index, store, folder, config.data.cache_gib, workers, config.data.max_pixels)
    return Split(index, store, cache, targets)


def open_training_split(config: Config, dataset: Dataset, place: RankPlace) -> Split:
    """Open the training split, with what of it `data.resample` lets this run, or member, be trained on.

    Raises:
        ConfigError, DataError: as `open_split`; too few samples for the folds; `train.label_probabilities` that are none.
    """
    split = open_split(config, dataset, config.data.train_split, place)
    split = replace(split, selection=select(config.data.resample, split.index))
    if not config.train.label_probabilities:
        return split
    probabilities = LabelProbabilities.open(config.train.label_probabilities, split.index)
    if config.train.label_probabilities_as == "targets":
        return replace(split, probabilities=probabilities)
    return replace(split, weights=probabilities.weights(split.training_rows))


def steps_per_epoch(config: Config, split: Split) -> int:
    """Return the optimizer steps that one pass over a training split makes; a last partial batch is left out."""
    return _plan(config, split, 0).steps


def training_batches(
    config: Config,
    split: Split,
    place: RankPlace,
    mean: Sequence[float],
    std: Sequence[float],
    steps: range,
    bad_log: Path,
) -> DeviceLoader:
    """Return this rank's micro-batches of the given optimizer steps, augmented, in order."""
    return augmented_batches(config, split, place, mean, std, _training_orders(config, split, place, steps), bad_log)


def augmented_batches(
    config: Config,
    split: Split,
    place: RankPlace,
    mean: Sequence[float],
    std: Sequence[float],
    orders: Iterable[BatchRequest],
    bad_log: Path | None,
) -> DeviceLoader:
    """Return the batches of any orders, changed as in training; mixed where an order names partners."""
    augment = config.augment
    crop = (
        Crop(
            "random",
            scale=augment.crop_scale,
            ratio=augment.crop_ratio,
            shrink=config.data.shrink_jpegs,
            seed=config.seed,
        )
        if augment.crops
        else _eval_crop(config.data)
    )
    transforms = HostTransforms(augment.host, config.seed) if augment.host else None
    host = _host_loader(config.data, split, place, crop, orders, bad_log, transforms)
    changes = Augment(augment, config.seed)
    mixing = Mixing(augment.mixup, augment.cutmix, augment.mix_prob, config.seed) if augment.mixes else None
    return DeviceLoader(host, place.device, mean, std, changes, config.model.channels_last, mixing)


def plain_training_batches(
    config: Config,
    split: Split,
    place: RankPlace,
    mean: Sequence[float],
    std: Sequence[float],
    steps: range,
    bad_log: Path,
) -> DeviceLoader:
    """Return the samples of the same micro-batches as `training_batches`, prepared as in evaluation: never augmented."""
    config = replace(config, augment=replace(config.augment, mixup=0.0, cutmix=0.0))  # nor mixed: no partners are read
    orders = _training_orders(config, split, place, steps)
    return plain_batches(config, split, place, mean, std, orders, bad_log)


def feature_batches(
    config: Config,
    split: Split,
    place: RankPlace,
    mean: Sequence[float],
    std: Sequence[float],
    batches: Iterable[NDArray[np.int64]],
    number: int,
    bad_log: Path,
) -> DeviceLoader:
    """Return the given rows in batches, none larger than the first, each image once.

    Args:
        batches: (b,) rows of the index each.
        number: of the pass: 0 shows images as evaluation does; the others crop and augment them as epoch `number` of
            training would, but mix none, since a mixed image has no features that belong to one sample.
        config, split, place, mean, std, bad_log: as for the other batches.
    """
    orders = (BatchRequest(rows=rows, epoch=number, step=step) for step, rows in enumerate(batches))
    if number:
        return augmented_batches(config, split, place, mean, std, orders, bad_log)
    return plain_batches(config, split, place, mean, std, orders, bad_log)


def evaluation_batches(
    config: Config, split: Split, place: RankPlace, mean: Sequence[float], std: Sequence[float], bad_log: Path
) -> DeviceLoader:
    """Return this rank's share of a split, never augmented; over all ranks each sample comes exactly once."""
    rows = exact_rows(len(split), place.rank, place.world_size, config.evaluate.plain_batch_size)
    orders = (BatchRequest(rows=part, epoch=0, step=number) for number, part in enumerate(rows))
    return plain_batches(config, split, place, mean, std, orders, bad_log)


def plain_batches(
    config: Config,
    split: Split,
    place: RankPlace,
    mean: Sequence[float],
    std: Sequence[float],
    orders: Iterable[BatchRequest],
    bad_log: Path | None,
) -> DeviceLoader:
    """Return the batches of any orders as in evaluation, never augmented."""
    host = _host_loader(config.data, split, place, _eval_crop(config.data), orders, bad_log)
    return DeviceLoader(host, place.device, mean, std, None, config.model.channels_last)


def shared_samples(
    config: DataConfig,
    split: Split,
    place: RankPlace,
    input_specs: Sequence[InputSpec],
    orders: Iterable[BatchRequest],
    bad_log: Path | None,
) -> HostLoader:
    """Return the batches of any orders on the host, each image decoded once and made into all `image_specs_of(looks)`."""
    first, *others = image_specs_of(input_specs)
    data = replace(config, image_size=first.size, resize=first.resize)
    return _host_loader(data, split, place, first.crop, orders, bad_log, also=others)


def _plan(config: Config, split: Split, epoch: int) -> EpochPlan | BalancedPlan | SelectedPlan | WeightedPlan:
    data, batch_size = config.data, config.train.batch_size
    if split.weights is not None and data.resample.by == "sampling":
        return WeightedPlan(config.seed, epoch, split.weights, batch_size)
    plan: EpochPlan | BalancedPlan
    if data.sampling == "balanced":
        plan = BalancedPlan(config.seed, epoch, split.class_rows, batch_size)
    else:
        sizes = split.training_shard_sizes
        plan = EpochPlan(config.seed, epoch, sizes, batch_size, data.lanes, data.shuffle_window)
    return plan if split.selection is None else SelectedPlan(plan, split.selection.rows, len(split))


def _training_orders(config: Config, split: Split, place: RankPlace, steps: range) -> Iterator[BatchRequest]:
    micro_steps = config.train.micro_batches
    micro_batch = config.train.batch_size // micro_steps
    part = slice_of(micro_batch, place.rank, place.world_size)
    plan = _plan(config, split, 0)
    epoch = 0
    for step in steps:
        if step // plan.steps != epoch:
            epoch = step // plan.steps
            plan = _plan(config, split, epoch)
        # The batch lies lane by lane: each micro-batch takes its part of every lane, so that all are mixed alike.
        batch = plan.batch(step % plan.steps).reshape(config.data.lanes, micro_steps, -1)
        for micro in range(micro_steps):
            rows = batch[:, micro].reshape(-1)
            mine, partners = with_partners(rows, part) if config.augment.mixes else (rows[part], None)
            yield BatchRequest(mine, epoch, step, partners)


def _eval_crop(config: DataConfig) -> Crop:
    return Crop(config.eval_crop, crop_pct=config.crop_pct)


def _host_loader(
    config: DataConfig,
    split: Split,
    place: RankPlace,
    crop: Crop,
    orders: Iterable[BatchRequest],
    bad_log: Path | None,
    host: HostTransforms | None = None,
    also: Sequence[ImageSpec] = (),
) -> HostLoader:
    return HostLoader(
        split.index,
        split.store,
        orders,
        size=config.image_size,
        crop=crop,
        resize=config.resize,
        workers=_workers(config, split, place),
        kind=_kind(config, place),
        cache=split.cache,
        policy=BadSamples(config.on_bad_sample, config.max_bad_fraction, bad_log),
        max_pixels=config.max_pixels,
        targets=split.targets,
        host=host,
        also=also,
    )


def _kind(config: DataConfig, place: RankPlace) -> Literal["thread", "process"]:
    if config.worker_kind != "auto":
        return config.worker_kind
    return "thread" if place.device.type == "cpu" else "process"


def _workers(config: DataConfig, split: Split, place: RankPlace) -> int:
    """Training threads and workers together must not exceed the cores: on a CPU an oversubscribed step stalls."""
    if config.workers >= 0:
        return config.workers
    cores = _cores(place)
    if place.device.type != "cpu":
        return max(1, min(2 if split.cache else 12, cores - 1))
    return 0 if split.cache else max(1, cores - torch.get_num_threads())


def _cores(place: RankPlace) -> int:
    """Return the cores that are this rank's: of those that the process may use, or of its member's share of them."""
    mine = int(os.environ.get("CHORAL_CORES", "0")) or len(os.sched_getaffinity(0))
    return max(1, mine // place.ranks_here)
