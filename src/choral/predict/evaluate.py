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
from choral.inputs.loader import Order
from choral.inputs.progress import SplitProgress
from choral.inputs.streams import RankPlace, Split, open_dataset, open_split, plain_batches
from choral.predict.ledger import LedgerMeta, ledger_table, merge_parts, write_part
from choral.predict.plan import HELD_OUT, plan_evaluation
from choral.predict.questions import Question, about_all, about_unseen, can_be_answered, rows_to_ask
from choral.predict.views.shown import apply_view
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
    asked = len(plan.voices)
    if plan.unfinished:
        _log.warning(
            "%d of %d members: not trained: %s", asked, asked + len(plan.unfinished), ", ".join(plan.unfinished)
        )
    place = RankPlace(run.rank, run.world_size, run.device, run.local_world_size)
    for name in plan.ledgers if force else plan.missing():
        split = open_split(config, dataset, config.data.train_split if name == HELD_OUT else name, place)
        unseen = name == HELD_OUT
        questions = about_unseen(plan.groups, split.index) if unseen else about_all(plan.voices)
        path, meta = plan.ledgers[name]
        _log.info("%s: %d samples, %d members, %d views", name, len(split), asked, len(plan.views))
        _SplitEvaluation(config, folder, run, place, split, questions, plan.views, meta).write(path)


@dataclass(frozen=True)
class _SplitEvaluation:
    """One split, asked by all ranks."""

    config: Config
    folder: RunFolder
    run: Runtime
    place: RankPlace
    split: Split
    questions: list[Question]
    views: tuple[str, ...]
    """All that "tta" averages."""
    meta: LedgerMeta

    def write(self, path: Path) -> None:
        """Ask about this rank's share, and let the main rank merge the parts of all."""
        run, index = self.run, self.split.index
        parts = self.folder.predictions / f".{self.meta.split}.parts"
        if run.is_main:
            shutil.rmtree(parts, ignore_errors=True)  # of an attempt that was killed
        run.barrier()
        rows, left_out, columns = self.predict()
        table = ledger_table(self.meta, index.keys(rows), self.split.targets.of(rows), columns)
        write_part(parts, run.rank, run.world_size, table, index.keys(left_out))
        run.barrier()
        if run.is_main:
            merge_parts(parts, run.world_size, index.keys(np.arange(len(index))), path, self.meta)
        run.barrier()

    def predict(self) -> tuple[NDArray[np.int64], NDArray[np.int64], Columns]:
        """Return this rank's rows, those left out, and the (n, outputs) float32 columns by (column, view).

        Left out are rows that could not be read, and those that all voices of a column have been trained on. Voices with
        equal inputs are asked together, so that each image is read once for all of them.
        """
        part = slice_of(len(self.split), self.run.rank, self.run.world_size)
        rows, left_out = rows_to_ask(self.questions, part)
        if self.run.is_main:
            self._tell_left_out()
        ordered = sorted(self.questions, key=lambda question: repr(question.voice.inputs))
        groups = [list(group) for _, group in groupby(ordered, key=lambda question: question.voice.inputs)]
        shape = (len(rows), len(self.meta.classes))
        columns = {(name, view): np.zeros(shape, np.float32) for name in self.meta.members for view in self.meta.views}
        heard = {name: np.zeros(len(rows), dtype=np.int64) for name in self.meta.members}
        readable = np.ones(len(rows), dtype=np.bool_)
        with SplitProgress(
            f"evaluating {self.meta.split}", len(rows) * len(groups), shown=self.run.is_main
        ) as progress:
            for group in groups:
                self._ask(group, rows, columns, heard, readable, progress)
        for (name, _), values in columns.items():
            if len(rows) and heard[name].max() > 1:
                values /= heard[name][:, None]
        if readable.all():
            return rows, left_out, columns
        columns = {column: values[readable] for column, values in columns.items()}
        return rows[readable], np.concatenate([left_out, rows[~readable]]), columns

    def _ask(
        self,
        questions: list[Question],
        rows: NDArray[np.int64],
        columns: Columns,
        heard: dict[str, NDArray[np.int64]],
        readable: NDArray[np.bool_],
        progress: SplitProgress,
    ) -> None:
        """Add the answers of voices with equal inputs to the columns, and count in `heard` how many there are."""
        networks = [question.voice.load(self.run.device) for question in questions]
        asked = [np.ones(len(rows), np.bool_) if own.rows is None else own.rows[rows] for own in questions]
        voice = questions[0].voice
        inputs = replace(self.config, data=_with_inputs_of(voice, self.config.data))
        size = self.config.evaluate.batch_size
        places = np.flatnonzero(np.logical_or.reduce(asked))
        batches = [places[start : start + size] for start in range(0, len(places), size)]
        orders = (Order(rows=rows[batch], epoch=0, step=number) for number, batch in enumerate(batches))
        bad_log = self.folder.path / "bad_samples.jsonl"
        with plain_batches(inputs, self.split, self.place, voice.mean, voice.std, orders, bad_log) as loader:
            for here, batch in zip(batches, loader, strict=True):
                _stop_if_asked(self.run)
                readable[here[~batch.valid.cpu().numpy()]] = False
                for question, network, own in zip(questions, networks, asked, strict=True):
                    mine = own[here]
                    if not mine.any():
                        continue
                    images = batch.images if mine.all() else batch.images[torch.from_numpy(mine).to(self.run.device)]
                    found = member_predictions(
                        network,
                        question.voice,
                        images,
                        self.views,
                        self.meta.views,
                        self.run.accelerator.autocast,
                    )
                    heard[question.column][here[mine]] += 1
                    for view, predictions in found.items():
                        columns[question.column, view][here[mine]] += predictions.cpu().numpy()
                progress.advance(len(here))

    def _tell_left_out(self) -> None:
        samples = len(self.split)
        count = samples - int(can_be_answered(self.questions, slice(0, samples)).sum())
        if count:
            _log.warning(
                "%s: %d of %d samples are left out: all trained members, or all of a group, have seen them",
                self.meta.split,
                count,
                samples,
            )


@torch.inference_mode()
def member_predictions(
    network: nn.Module,
    voice: Voice,
    images: Tensor,
    views: tuple[str, ...],
    columns: tuple[str, ...],
    autocast: Callable[[], AbstractContextManager[object]],
) -> dict[str, Tensor]:
    """Return one network's predictions, (B, outputs) float32 each, for the columns: views by name, and "tta", their mean.

    Args:
        network: in evaluation mode, on the device of the images.
        voice: whose it is; says what its outputs mean, and how images are normalised.
        images: (B, 3, S, S) float, normalised.
        views: all that "tta" averages, one forward pass each.
        columns: which to return.
        autocast: makes the context of the forward pass.
    """
    found: dict[str, Tensor] = {}
    total: Tensor | None = None
    for view in views:
        with autocast():
            logits = network(apply_view(images, view, voice.mean, voice.std))
        predictions = voice.outputs.predictions(logits)
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
