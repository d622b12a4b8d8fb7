"""The host stage of a split: requests to uint8 batches, with the workers and the bad-sample policy of a config."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from choral.config import DataConfig
from choral.data.augment.host_transforms import HostTransforms
from choral.data.loading.bad_samples import BadSamples
from choral.data.loading.host_loader import BatchRequest, HostLoader
from choral.data.loading.input_spec import ImageSpec
from choral.data.loading.rank_place import RankPlace
from choral.data.loading.sample_pipeline import SamplePipeline
from choral.data.loading.split import Split


@dataclass(frozen=True)
class HostStage:
    """Reads and decodes the samples of a split."""

    config: DataConfig
    split: Split
    place: RankPlace
    bad_log: Path | None
    """File that lists samples that cannot be read; None: they are counted but not listed."""

    def load(
        self,
        requests: Iterable[BatchRequest],
        image_specs: Sequence[ImageSpec],
        transforms: HostTransforms | None = None,
    ) -> HostLoader:
        """Return a loader of the requested batches. Each image is decoded once and prepared to every spec.

        Args:
            requests: none may hold more rows than the first.
            image_specs: all different; the first gives `HostBatch.images`, the others `HostBatch.other_images`.
            transforms: applied to each prepared image; None: none.
        """
        config, split = self.config, self.split
        samples = SamplePipeline(
            split.index,
            split.store,
            image_specs,
            cache=split.cache,
            max_pixels=config.max_pixels,
            transforms=transforms,
        )
        return HostLoader(
            samples,
            requests,
            workers=self._workers,
            worker_kind=self._worker_kind,
            policy=BadSamples(config.on_bad_sample, config.max_bad_fraction, self.bad_log),
            targets=split.targets,
        )

    @property
    def _worker_kind(self) -> Literal["thread", "process"]:
        if self.config.worker_kind != "auto":
            return self.config.worker_kind
        return "thread" if self.place.device.type == "cpu" else "process"

    @property
    def _workers(self) -> int:
        """Number of workers. On a CPU, workers and training threads together must not exceed the cores."""
        if self.config.workers >= 0:
            return self.config.workers
        cores, cached = self.place.cores, self.split.cache is not None
        if self.place.device.type != "cpu":
            return max(1, min(2 if cached else 12, cores - 1))
        return 0 if cached else max(1, cores - torch.get_num_threads())
