"""Computes the features of a split on all ranks, each sample once, or loads them from the cache."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from choral.config import Config
from choral.core.process_group import Runtime
from choral.data.loading.bad_samples import BadSamples
from choral.data.loading.input_pipeline import InputPipeline
from choral.data.loading.input_spec import Normalization
from choral.data.loading.progress import SplitProgress
from choral.data.loading.rank_place import RankPlace
from choral.data.loading.split import Split
from choral.data.shards.epoch_plan import rank_slice
from choral.models.features.cache import FeatureCache, Features
from choral.models.features.classifier import ClassifierLayer, hash_backbone
from choral.runs.memory import explain_out_of_memory

_log = logging.getLogger(__name__)
_POLL_S = 0.5


@dataclass(frozen=True)
class FeatureExtractor:
    """Computes the features of a frozen network on all ranks of a run."""

    config: Config
    runtime: Runtime
    place: RankPlace
    network: nn.Module
    """Not wrapped, on the device of the run."""
    normalization: Normalization
    bad_log: Path
    """File that lists the samples that could not be read."""

    def extract(self, split: Split, rows: NDArray[np.int64] | None = None, number: int = 0) -> Features | None:
        """Return the features of a split on the main rank, None on the others; every rank must call it.

        Args:
            split: the split.
            rows: (n,) int64 index rows; None: all rows.
            number: of the pass; 0: images are preprocessed as in evaluation; n > 0: augmented as in epoch n of training.

        Raises:
            ConfigError: the network does not end in one linear layer.
            DataError: unreadable samples, if the config does not skip them or there are too many.
            ChoralError: the cache directory beside the shards is not writable.
            Stopped: a stop was requested; computed parts are kept.
        """
        classifier = ClassifierLayer(self.network)
        rows = np.arange(len(split)) if rows is None else rows
        cache = FeatureCache(
            split.index.dataset.folder / ".features", self._describe(split, number), rows, classifier.width
        )
        features, lock = self._load_or_lock(cache)
        if self._broadcast_flag(features is None):
            try:
                self._compute(cache, classifier, split, number)
                features = cache.merge_parts() if self.runtime.is_main else None
            finally:
                if lock is not None:
                    lock.close()
            self.runtime.barrier()
        if features is not None:
            self._check_unreadable(features, split)
        return features

    def _load_or_lock(self, cache: FeatureCache) -> tuple[Features | None, TextIO | None]:
        """Return cached features, or the lock to hold while computing them; on the main rank. All ranks must call it.

        Features with unreadable samples are not returned: these samples are read again, as a read error may be temporary.
        """
        runtime = self.runtime
        features, lock = _if_complete(cache.load()) if runtime.is_main else None, None
        logged = False
        while True:
            if runtime.is_main and features is None and (lock := cache.try_lock()) is not None:
                features = _if_complete(cache.load())  # another process may have finished just now
            if lock is not None and features is not None:
                lock.close()
            # One collective operation per turn carries all flags, so that no rank can wait for another one.
            flags = torch.tensor(
                [features is not None, lock is not None, runtime.stop_requested], device=runtime.device
            )
            is_cached, is_locked, stop = (runtime.sum(flags.float()) > 0).tolist()
            if is_cached:
                return features, None
            if is_locked:
                return None, lock
            if stop:
                raise runtime.stop_error("while waiting for features")
            if not logged and runtime.is_main:
                _log.info("waiting for another process that computes the same features (%s)", cache.path)
            logged = True
            time.sleep(_POLL_S)

    def _compute(self, cache: FeatureCache, classifier: ClassifierLayer, split: Split, number: int) -> None:
        """Compute the missing parts, each rank a contiguous share of them."""
        runtime = self.runtime
        is_missing = torch.zeros(cache.num_parts, dtype=torch.uint8, device=runtime.device)
        if runtime.is_main:
            is_missing[torch.from_numpy(cache.find_missing_parts())] = 1
        missing = np.flatnonzero(runtime.broadcast(is_missing).cpu().numpy())
        parts = missing[rank_slice(len(missing), runtime.rank, runtime.world_size)]
        self.network.eval()
        batches = self._batch_rows(cache, parts)
        name, total = split.index.split, sum(len(rows) for rows in batches)
        done = 0
        pipeline = InputPipeline(self.config, split, self.place, self.normalization, self.bad_log)
        title = f"features of {name}" + (f", pass {number + 1}" if number else "")
        with (
            pipeline.feature_batches(batches, number) as loader,
            SplitProgress(title, total, runtime.is_main) as progress,
        ):
            values: list[NDArray[np.float32]] = []
            valid: list[NDArray[np.bool_]] = []
            for batch in loader:
                with (
                    explain_out_of_memory(len(batch.rows), "evaluate.batch_size", "lower it"),
                    runtime.accelerator.autocast(),
                ):
                    features = classifier.compute_features(batch.images)
                values.append(features.cpu().numpy())
                valid.append(batch.valid.cpu().numpy())
                part = int(parts[done])
                if sum(map(len, valid)) == len(cache.rows_in_part(part)):
                    cache.write_part(part, np.concatenate(values), np.concatenate(valid))
                    done, values, valid = done + 1, [], []
                progress.advance(len(batch.rows))
                if runtime.stop_requested:
                    break
        # Ranks have different numbers of batches, so they can only agree on a stop after the loop.
        if runtime.should_stop():
            raise runtime.stop_error(f"while computing {title}; computed parts are kept")

    def _batch_rows(self, cache: FeatureCache, parts: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Return the rows of each forward pass; no batch has rows of two parts."""
        size = min(self.config.evaluate.fixed_batch_size, cache.rows_per_part)
        return [
            rows[start : start + size]
            for rows in map(cache.rows_in_part, parts.tolist())
            for start in range(0, len(rows), size)
        ]

    def _describe(self, split: Split, number: int) -> dict[str, object]:
        """Return everything that the values of features depend on; this excludes the classifier and the batch size."""
        config, data = self.config, self.config.data
        view: dict[str, object] = {"eval_crop": data.eval_crop, "crop_pct": data.crop_pct}
        if number:
            view |= {"pass": number, "seed": config.seed, "shrink_jpegs": data.shrink_jpegs}
            view |= {"augment": {**config.augment.model_dump(), "mixup": 0, "cutmix": 0, "mix_prob": 0}}
        return {
            "model": config.model.name,
            "weights": hash_backbone(self.network),
            "precision": config.train.precision,
            "image_size": data.image_size,
            "resize": data.resize,
            "max_pixels": data.max_pixels,
            "mean": list(self.normalization.mean),
            "std": list(self.normalization.std),
            "dataset": split.index.dataset.fingerprint,
            "split": split.index.split,
            "view": view,
        }

    def _check_unreadable(self, features: Features, split: Split) -> None:
        """Apply the bad-sample policy of this config; the features may come from a run with another policy."""
        data, index = self.config.data, split.index
        policy = BadSamples(data.on_bad_sample, data.max_bad_fraction)
        for row in features.unreadable.tolist():
            record = index.row(row)
            shard = str(index.dataset.shard_path(record.shard))
            policy.record(record.key, shard, record.offset, "could not be read", len(index))
        if len(features.unreadable):
            _log.warning("%s: %d samples could not be read and are skipped", index.split, len(features.unreadable))

    def _broadcast_flag(self, flag: bool) -> bool:
        """Return the flag of the main rank on every rank."""
        return bool(self.runtime.broadcast(torch.tensor([float(flag)], device=self.runtime.device)).item())


def _if_complete(features: Features | None) -> Features | None:
    """Return the features if all samples were readable, else None."""
    return features if features is None or not len(features.unreadable) else None
