"""Compute the features of a split on all ranks, each sample once, or take them from the cache."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from choral.config import Config
from choral.core.process_group import Runtime
from choral.data.loading.bad_samples import BadSamples
from choral.data.loading.input_pipeline import RankPlace, Split, feature_batches
from choral.data.loading.progress import SplitProgress
from choral.data.shards.epoch_plan import slice_of
from choral.models.build import Normalization
from choral.models.features.cache import FeatureCache, Features
from choral.models.features.classifier import Classifier, body_hash
from choral.runs.memory import explained

_log = logging.getLogger(__name__)
_POLL_S = 0.5


@dataclass(frozen=True)
class FeatureSource:
    """What features are made with: a frozen network, and the ranks that compute them."""

    config: Config
    run: Runtime
    place: RankPlace
    network: nn.Module
    """Not wrapped, on the device of the run."""
    normalization: Normalization
    bad_log: Path
    """Where samples that could not be read are listed."""

    def features(self, split: Split, rows: NDArray[np.int64] | None = None, number: int = 0) -> Features | None:
        """Return the features of a split on the main rank, None on the others; every rank must call it.

        Args:
            split: whose features.
            rows: (n,) int64 of its index; None: all of them.
            number: of the pass; 0: as evaluation sees the images, others: augmented as in that epoch of training.

        Raises:
            ConfigError: the network has no linear layer at its end.
            DataError: samples that cannot be read, where the config does not let them be skipped or they are too many.
            ChoralError: nothing can be written beside the shards.
            Stopped: all ranks were asked to stop; what has been computed is kept.
        """
        classifier = Classifier(self.network)
        wanted = np.arange(len(split)) if rows is None else rows
        cache = FeatureCache(
            split.index.dataset.folder / ".features", self._description(split, number), wanted, classifier.width
        )
        found, lock = self._find(cache)
        if self._agreed(found is None):
            try:
                self._compute(cache, classifier, split, number)
                found = cache.merge() if self.run.is_main else None
            finally:
                if lock is not None:
                    lock.close()
            self.run.barrier()
        if found is not None:
            self._apply_policy(found, split)
        return found

    def _find(self, cache: FeatureCache) -> tuple[Features | None, TextIO | None]:
        """Return features that are there, or the lock under which to compute them; on the main rank, with the others.

        Features of which some could not be read before are computed again as far as these are concerned: a disk may have
        failed for a moment only.
        """
        run = self.run
        found, lock = _complete(cache.open()) if run.is_main else None, None
        said = False
        while True:
            if run.is_main and found is None and (lock := cache.lock()) is not None:
                found = _complete(cache.open())  # another process may just have made them
            if lock is not None and found is not None:
                lock.close()
            # All that ranks tell each other in one message a turn: whatever the main rank finds, none waits for another.
            answers = torch.tensor([found is not None, lock is not None, run.told_to_stop], device=run.device)
            is_there, is_ours, stop = (run.sum(answers.float()) > 0).tolist()
            if is_there:
                return found, None
            if is_ours:
                return None, lock
            if stop:
                raise run.stopped("while waiting for features")
            if not said and run.is_main:
                _log.info("waiting for another process that computes the same features (%s)", cache.path)
            said = True
            time.sleep(_POLL_S)

    def _compute(self, cache: FeatureCache, classifier: Classifier, split: Split, number: int) -> None:
        run = self.run
        state = torch.zeros(cache.parts, dtype=torch.uint8, device=run.device)
        if run.is_main:
            state[torch.from_numpy(cache.missing())] = 1
        missing = np.flatnonzero(run.broadcast(state).cpu().numpy())
        mine = missing[slice_of(len(missing), run.rank, run.world_size)]
        self.network.eval()
        batches = self._batches(cache, mine)
        name, total = split.index.split, sum(len(rows) for rows in batches)
        done = 0
        arguments = (self.config, split, self.place, self.normalization.mean, self.normalization.std, batches, number)
        what = f"features of {name}" + (f", pass {number + 1}" if number else "")
        with feature_batches(*arguments, self.bad_log) as loader, SplitProgress(what, total, run.is_main) as progress:
            values: list[NDArray[np.float32]] = []
            valid: list[NDArray[np.bool_]] = []
            for batch in loader:
                with explained(len(batch.rows), "evaluate.batch_size", "lower it"), run.accelerator.autocast():
                    found = classifier.features(batch.images)
                values.append(found.cpu().numpy())
                valid.append(batch.valid.cpu().numpy())
                if sum(map(len, valid)) == len(cache.rows_of(int(mine[done]))):
                    cache.write_part(int(mine[done]), np.concatenate(values), np.concatenate(valid))
                    done, values, valid = done + 1, [], []
                progress.advance(len(batch.rows))
                if run.told_to_stop:
                    break
        # Ranks hold different numbers of batches: only here, after the last of them, can they agree.
        if run.should_stop():
            raise run.stopped(f"while computing {what}; what is there is kept")

    def _batches(self, cache: FeatureCache, parts: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Return the rows of each forward pass; no batch holds rows of two parts."""
        size = min(self.config.evaluate.plain_batch_size, cache.part_rows)
        return [
            rows[start : start + size]
            for rows in map(cache.rows_of, parts.tolist())
            for start in range(0, len(rows), size)
        ]

    def _description(self, split: Split, number: int) -> dict[str, object]:
        """Return all that decides the values of features; the classifier and how fast they are computed do not."""
        config, data = self.config, self.config.data
        shown: dict[str, object] = {"eval_crop": data.eval_crop, "crop_pct": data.crop_pct}
        if number:
            shown |= {"pass": number, "seed": config.seed, "shrink_jpegs": data.shrink_jpegs}
            shown |= {"augment": {**asdict(config.augment), "mixup": 0, "cutmix": 0, "mix_prob": 0}}
        return {
            "model": config.model.name,
            "weights": body_hash(self.network),
            "precision": config.train.precision,
            "image_size": data.image_size,
            "resize": data.resize,
            "max_pixels": data.max_pixels,
            "mean": list(self.normalization.mean),
            "std": list(self.normalization.std),
            "dataset": split.index.dataset.fingerprint,
            "split": split.index.split,
            "view": shown,
        }

    def _apply_policy(self, found: Features, split: Split) -> None:
        """Hold features that were computed under another policy, or by other ranks, to this config's policy."""
        data, index = self.config.data, split.index
        policy = BadSamples(data.on_bad_sample, data.max_bad_fraction)
        for row in found.unread.tolist():
            record = index.row(row)
            shard = str(index.dataset.shard_path(record.shard))
            policy.record(record.key, shard, record.offset, "could not be read", len(index))
        if len(found.unread):
            _log.warning("%s: %d samples could not be read and are left out", index.split, len(found.unread))

    def _agreed(self, answer: bool) -> bool:
        """Return the main rank's answer on every rank."""
        return bool(self.run.broadcast(torch.tensor([float(answer)], device=self.run.device)).item())


def _complete(found: Features | None) -> Features | None:
    """Return features of which every sample could be read."""
    return found if found is None or not len(found.unread) else None
