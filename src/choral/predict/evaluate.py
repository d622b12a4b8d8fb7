"""Ask the trained members of a run about a split, under every view, and leave the ledger.

Each sample is read once for all members and views that take the same input, by exactly one rank. Ranks communicate only
at the end, so they may hold different numbers of samples, or none.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from choral.config import Config, DataConfig
from choral.inputs.progress import SplitProgress
from choral.inputs.streams import RankPlace, Split, evaluation_batches, open_dataset, open_split
from choral.model.outputs import Outputs
from choral.predict.ledger import LedgerMeta, ledger_table, merge_parts, write_part
from choral.predict.plan import Evaluation, plan_evaluation
from choral.predict.views import apply_view
from choral.predict.voices import Voice
from choral.runfolder import RunFolder
from choral.runtime import Runtime
from choral.shards.plan import slice_of

_log = logging.getLogger(__name__)

Columns = dict[tuple[str, str], NDArray[np.float32]]


def evaluate(config: Config, folder: RunFolder, run: Runtime, force: bool = False) -> None:
    """Write the ledger of each configured split that does not have one of these members and views yet.

    Args:
        config: of the run; its `evaluate` section may differ from the stored one.
        folder: of the run.
        run: this rank.
        force: evaluate again also what is there.

    Raises:
        ChoralError: no member has been trained.
        DataError: the data hold other classes than the members were trained on, or cannot be read.
        Stopped: all ranks were asked to stop.
    """
    dataset = open_dataset(config.data)
    plan = plan_evaluation(config, folder, dataset)
    asked = len({voice.member for voice in plan.voices})
    if plan.unfinished:
        _log.warning(
            "%d of %d members: not trained: %s", asked, asked + len(plan.unfinished), ", ".join(plan.unfinished)
        )
    place = RankPlace(run.rank, run.world_size, run.device, run.local_world_size)
    for name in plan.ledgers if force else plan.missing():
        split = open_split(config, dataset, name, place)
        path, meta = plan.ledgers[name]
        _log.info("%s: %d samples, %d networks, %d views", name, len(split), len(plan.voices), len(plan.views))
        _SplitEvaluation(config, folder, run, place, split, plan, meta).write(path)


@dataclass(frozen=True)
class _SplitEvaluation:
    """One split, asked by all ranks."""

    config: Config
    folder: RunFolder
    run: Runtime
    place: RankPlace
    split: Split
    plan: Evaluation
    meta: LedgerMeta

    def write(self, path: Path) -> None:
        """Ask about this rank's share, and let the main rank merge the parts of all."""
        run, index = self.run, self.split.index
        parts = self.folder.predictions / f".{self.meta.split}.parts"
        if run.is_main:
            shutil.rmtree(parts, ignore_errors=True)  # of an attempt that was killed
        run.barrier()
        rows, skipped, columns = self.predict()
        table = ledger_table(self.meta, index.keys(rows), self.split.targets.of(rows), columns)
        write_part(parts, run.rank, run.world_size, table, index.keys(skipped))
        run.barrier()
        if run.is_main:
            merge_parts(parts, run.world_size, index.keys(np.arange(len(index))), path, self.meta)
        run.barrier()

    def predict(self) -> tuple[NDArray[np.int64], NDArray[np.int64], Columns]:
        """Return this rank's rows, the rows it could not read, and the (n, outputs) float32 columns by (member, view).

        Members with equal inputs are asked together, so that each image is read once for all of them.
        """
        ordered = sorted(self.plan.voices, key=lambda voice: repr(voice.inputs))
        groups = [list(group) for _, group in groupby(ordered, key=lambda voice: voice.inputs)]
        share = slice_of(len(self.split), self.run.rank, self.run.world_size)
        collected: Columns = {}
        rows = skipped = np.zeros(0, dtype=np.int64)
        total = (share.stop - share.start) * len(groups)
        with SplitProgress(f"evaluating {self.meta.split}", total, shown=self.run.is_main) as progress:
            for group in groups:
                rows, skipped, columns = self._ask(group, progress)
                collected |= columns
        return rows, skipped, collected

    def _ask(
        self, members: list[Voice], progress: SplitProgress
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], Columns]:
        networks = {voice.name: voice.load(self.run.device) for voice in members}
        read = [np.zeros(0, dtype=np.int64)]
        unread = [np.zeros(0, dtype=np.int64)]
        empty = np.zeros((0, len(self.meta.classes)), dtype=np.float32)
        blocks = {(name, view): [empty] for name in networks for view in self.meta.views}
        inputs = replace(self.config, data=_with_inputs_of(members[0], self.config.data))
        bad_log = self.folder.path / "bad_samples.jsonl"
        with evaluation_batches(inputs, self.split, self.place, members[0].mean, members[0].std, bad_log) as loader:
            for batch in loader:
                _stop_if_asked(self.run)
                valid = batch.valid.cpu().numpy()
                read.append(batch.rows[valid])
                unread.append(batch.rows[~valid])
                for voice in members:
                    found = member_predictions(
                        networks[voice.name],
                        voice.outputs,
                        batch.images,
                        self.plan.views,
                        self.meta.views,
                        self.run.accelerator.autocast,
                    )
                    for view, predictions in found.items():
                        blocks[voice.name, view].append(predictions.cpu().numpy()[valid])
                progress.advance(len(batch.rows))
        columns = {column: np.concatenate(parts) for column, parts in blocks.items()}
        return np.concatenate(read), np.concatenate(unread), columns


@torch.inference_mode()
def member_predictions(
    network: nn.Module,
    outputs: Outputs,
    images: Tensor,
    views: tuple[str, ...],
    columns: tuple[str, ...],
    autocast: Callable[[], AbstractContextManager[object]],
) -> dict[str, Tensor]:
    """Return one network's predictions, (B, outputs) float32 each, for the columns: views by name, and "tta", their mean.

    Args:
        network: in evaluation mode, on the device of the images.
        outputs: what its outputs mean: probabilities, or numbers in the targets' own units.
        images: (B, 3, S, S) float, normalised.
        views: all that "tta" averages, one forward pass each.
        columns: which to return.
        autocast: makes the context of the forward pass.
    """
    found: dict[str, Tensor] = {}
    total: Tensor | None = None
    for view in views:
        with autocast():
            logits = network(apply_view(images, view))
        predictions = outputs.predictions(logits)
        if view in columns:
            found[view] = predictions
        total = predictions if total is None else total + predictions
    if "tta" in columns and total is not None:
        found["tta"] = total / len(views)
    return found


def _with_inputs_of(voice: Voice, data: DataConfig) -> DataConfig:
    """Return where the run's data lie, prepared as the voice was trained on them."""
    own = voice.config.data
    return replace(data, image_size=own.image_size, resize=own.resize, eval_crop=own.eval_crop, crop_pct=own.crop_pct)


def _stop_if_asked(run: Runtime) -> None:
    """Stop this rank alone: ranks have different numbers of batches and cannot agree here; the launcher ends the rest."""
    if run.told_to_stop:
        raise run.stopped("during evaluation")
