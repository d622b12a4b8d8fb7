"""From a config and an opened split to batches on a device, for training, evaluation and features.

Which samples make a batch is decided by `TrainingPlan` and `epoch_plan`. Everything below only decides how fast
they arrive.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from choral.config import Config
from choral.data.augment.host_transforms import HostTransforms
from choral.data.augment.mixing import Mixing
from choral.data.augment.parameters import Augment
from choral.data.loading.crop import Crop
from choral.data.loading.device_loader import DeviceLoader
from choral.data.loading.host_loader import BatchRequest
from choral.data.loading.host_stage import HostStage
from choral.data.loading.input_spec import ImageSpec, InputSpec, Normalization
from choral.data.loading.rank_place import RankPlace
from choral.data.loading.split import Split
from choral.data.loading.training_plan import TrainingPlan
from choral.data.shards.epoch_plan import evaluation_batches


@dataclass(frozen=True)
class InputPipeline:
    """Makes this rank's batches of one split.

    The config is read here and in `HostStage` only: the loaders below take the values that they use.
    """

    config: Config
    split: Split
    place: RankPlace
    normalization: Normalization
    bad_log: Path | None
    """File that lists samples that cannot be read; None: they are counted but not listed."""

    def training_batches(self, steps: range) -> DeviceLoader:
        """Return the augmented micro-batches of the given optimizer steps, in order."""
        return self.augmented_batches(self._training_requests(steps, self.config.augment.mixes))

    def unaugmented_training_batches(self, steps: range) -> DeviceLoader:
        """Return the samples of `training_batches(steps)`, preprocessed as in evaluation and not mixed."""
        return self.unaugmented_batches(self._training_requests(steps, mixes=False))  # reads no partners

    def _training_requests(self, steps: range, mixes: bool) -> Iterator[BatchRequest]:
        plan = TrainingPlan.from_config(self.config, self.split)
        return plan.requests(self.place, steps, self.config.train.micro_batches, mixes)

    def evaluation_batches(self) -> DeviceLoader:
        """Return this rank's share of the split, not augmented. Over all ranks, each sample occurs exactly once."""
        batch_size = self.config.evaluate.fixed_batch_size
        batches = evaluation_batches(len(self.split), self.place.rank, self.place.world_size, batch_size)
        return self.unaugmented_batches(_requests(batches, epoch=0))

    def feature_batches(self, batches: Iterable[NDArray[np.int64]], pass_number: int) -> DeviceLoader:
        """Return batches of the given index rows, each sample once.

        Args:
            batches: (b,) rows each; none larger than the first.
            pass_number: pass 0 preprocesses images as evaluation does. A later pass crops and augments them as that
                epoch of training would, but mixes none: a mixed image has no features that belong to one sample.
        """
        requests = _requests(batches, epoch=pass_number)
        return self.augmented_batches(requests) if pass_number else self.unaugmented_batches(requests)

    def augmented_batches(self, requests: Iterable[BatchRequest]) -> DeviceLoader:
        """Return the requested batches, cropped and augmented as in training; mixed where a request names partners."""
        config, augment = self.config, self.config.augment
        crop = self._evaluation_crop
        if augment.crops:
            crop = Crop(
                "random",
                scale=augment.crop_scale,
                ratio=augment.crop_ratio,
                shrink=config.data.shrink_jpegs,
                seed=config.seed,
            )
        transforms = HostTransforms(augment.host, config.seed) if augment.host else None
        mixing = Mixing(augment.mixup, augment.cutmix, augment.mix_prob, config.seed) if augment.mixes else None
        return self._load(requests, crop, transforms, Augment(augment, config.seed), mixing)

    def unaugmented_batches(self, requests: Iterable[BatchRequest]) -> DeviceLoader:
        """Return the requested batches, preprocessed as in evaluation."""
        return self._load(requests, self._evaluation_crop)

    @property
    def _evaluation_crop(self) -> Crop:
        return Crop(self.config.data.eval_crop, crop_pct=self.config.data.crop_pct)

    def _load(
        self,
        requests: Iterable[BatchRequest],
        crop: Crop,
        transforms: HostTransforms | None = None,
        augment: Augment | None = None,
        mixing: Mixing | None = None,
    ) -> DeviceLoader:
        data, normalization = self.config.data, self.normalization
        image_spec = ImageSpec(data.image_size, crop, data.resize)
        host = HostStage(data, self.split, self.place, self.bad_log).load(requests, [image_spec], transforms)
        input_spec = InputSpec(image_spec, normalization.mean, normalization.std, self.config.model.channels_last)
        return DeviceLoader(host, self.place.device, [input_spec], augment, mixing)


def _requests(batches: Iterable[NDArray[np.int64]], epoch: int) -> Iterable[BatchRequest]:
    return (BatchRequest(rows, epoch, number) for number, rows in enumerate(batches))
