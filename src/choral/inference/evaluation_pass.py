"""Ask the trained members of a run about a split, under every view, and leave the ledger.

Each sample is read and decoded once for all members and views, by one rank. Ranks communicate only at the beginning and at
the end, so they may have different numbers of chunks to do, or none.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from choral import __version__
from choral.config import Config
from choral.core.errors import DataError
from choral.core.process_group import Runtime
from choral.data.loading.device_loader import Batch
from choral.data.loading.host_loader import BatchRequest, HostBatch
from choral.data.loading.input_pipeline import RankPlace, Split, open_dataset, open_split, shared_samples
from choral.data.loading.progress import SplitProgress
from choral.inference.auto_batch_size import with_batch_size
from choral.inference.chunks import Chunks, ChunkWriter, Columns, dealt, finished
from choral.inference.evaluation_plan import HELD_OUT, plan_evaluation
from choral.inference.external_data import remember, split_of
from choral.inference.ledger import LedgerMeta, ledger_table, merge_parts
from choral.inference.ledger_parts import open_all
from choral.inference.model_groups import group_models, input_specs_of, predict_by_groups
from choral.inference.predict_chunk import ChunkPredictions, InferenceOptions
from choral.inference.prediction_tasks import PredictionTask, all_rows_tasks, held_out_tasks, rows_to_predict
from choral.runs.run_dir import RunDir

_log = logging.getLogger(__name__)
BAD_LOG = "bad_samples.jsonl"
_SEEN = "all trained members, or all of a group, have seen them"
_SOFTWARE = (f"choral {__version__}", *(f"{name} {version(name)}" for name in ("torch", "timm")))


def evaluate(config: Config, folder: RunDir, run: Runtime, force: bool = False, data_name: str = "") -> None:
    """Write the ledger of each configured split that does not have one of these members and views yet.

    Args:
        config: of the run; its `evaluate` section may differ from the stored one.
        folder: of the run.
        run: this rank.
        force: evaluate again also what is there.
        data_name: as of `plan_evaluation`.

    Raises:
        ChoralError: no member has been trained.
        DataError: the data hold other classes than the members were trained on, or cannot be read.
        Stopped: all ranks were asked to stop.
    """
    dataset = open_dataset(config.data)
    plan = plan_evaluation(config, folder, dataset, data_name)
    if run.is_main:
        remember(folder, dataset, plan.suffix)
    config = with_batch_size(config, folder, run, plan.models)
    asked = len(plan.models)
    if plan.unfinished:
        _log.warning(
            "%d of %d members: not trained: %s", asked, asked + len(plan.unfinished), ", ".join(plan.unfinished)
        )
    place = RankPlace(run.rank, run.world_size, run.device, run.local_world_size)
    for name in plan.ledgers if force else plan.missing():
        split = open_split(config, dataset, config.data.train_split if name == HELD_OUT else split_of(name), place)
        unseen = name == HELD_OUT
        tasks = held_out_tasks(plan.groups, split.index) if unseen else all_rows_tasks(plan.models)
        path, meta = plan.ledgers[name]
        options = InferenceOptions(plan.views, meta.views, run.accelerator.autocast, config.evaluate.average)
        _log.info("%s: %d samples, %d members, %d views", name, len(split), asked, len(plan.views))
        SplitEvaluation(config, folder, run, place, split, tasks, options, meta, _SEEN).write(path)


@dataclass(frozen=True)
class SplitEvaluation:
    """One split, asked by all ranks.

    Attributes:
        config: of the run.
        folder: of the run; samples that cannot be read are listed there.
        run, place: this rank.
        split: whose samples are asked about.
        questions: who is asked about which of them.
        manner: how.
        meta: of the ledger.
        left_out: why nobody is asked about some of them, as words behind "are left out"; "": that is not worth a warning.
    """

    config: Config
    folder: RunDir
    run: Runtime
    place: RankPlace
    split: Split
    tasks: list[PredictionTask]
    options: InferenceOptions
    meta: LedgerMeta
    left_out: str

    def write(self, path: Path) -> None:
        """Ask about this rank's share of what is not done yet, and let the main rank merge the parts of all."""
        run, index = self.run, self.split.index
        rows, left_out = rows_to_predict(self.tasks, len(self.split))
        chunks = Chunks(rows, self.config.evaluate.plain_batch_size)
        folder = chunks.folder(path.parent, self.meta, (*_SOFTWARE, run.device.type))
        done = self._done(folder, chunks)
        if run.is_main:
            self._tell(chunks, done, len(left_out))
        self._predict(chunks, dealt(np.flatnonzero(~done), run.rank, run.world_size), folder)
        run.barrier()
        if run.is_main:
            self._check_skipped(folder, len(chunks))
            keys = index.keys(np.arange(len(index)))
            try:
                merge_parts(folder, len(chunks), keys, path, self.meta, index.keys(left_out))
            except DataError as error:
                if not isinstance(error.__cause__, OSError):  # unlike a full disk, no later start would mend these
                    shutil.rmtree(folder, ignore_errors=True)
                raise
            shutil.rmtree(folder.parent, ignore_errors=True)
        run.barrier()

    def _done(self, folder: Path, chunks: Chunks) -> NDArray[np.bool_]:
        """Return which chunks an earlier start has finished: what the main rank sees counts, for all."""
        found = torch.zeros(len(chunks), dtype=torch.uint8)
        if self.run.is_main:
            may_skip = self.config.data.on_bad_sample == "skip"
            found = torch.from_numpy(finished(folder, len(chunks), self.meta, may_skip).astype(np.uint8))
        done: NDArray[np.bool_] = self.run.broadcast(found.to(self.run.device)).cpu().numpy().astype(np.bool_)
        return done

    def _check_skipped(self, folder: Path, chunks: int) -> None:
        """Raise DataError if all ranks and starts together skipped more samples than may be: each knows its own alone."""
        data, samples = self.config.data, len(self.split)
        skipped = [key for part in open_all(folder, chunks) for key in part.skipped]
        if len(skipped) > data.max_bad_fraction * samples:
            raise DataError(
                f"{len(skipped)} of {samples} samples cannot be read, such as {skipped[0]!r}, listed in "
                f"{self.folder.path / BAD_LOG}: more than data.max_bad_fraction {data.max_bad_fraction:g}; the same command "
                "with a higher one finds what is predicted"
            )

    def _tell(self, chunks: Chunks, done: NDArray[np.bool_], left_out: int) -> None:
        split, samples = self.meta.split, len(self.split)
        if left_out and self.left_out:
            _log.warning("%s: %d of %d samples are left out: %s", split, left_out, samples, self.left_out)
        if done.any():
            asked = sum(len(chunks.rows_of(int(chunk))) for chunk in np.flatnonzero(done))
            _log.info("%s: continuing: %d of %d samples are done", split, asked, len(chunks.rows))

    def _predict(self, chunks: Chunks, mine: Sequence[int], folder: Path) -> None:
        """Ask about this rank's chunks; what is finished when the rank is told to stop is kept."""
        index, targets = self.split.index, self.split.targets

        def table(rows: NDArray[np.int64], columns: Columns) -> pa.Table:
            return ledger_table(self.meta, index.keys(rows), targets.of(rows), columns)

        if not mine:
            return
        writer = ChunkWriter(folder, table)
        images = sum(len(chunks.rows_of(chunk)) for chunk in mine)
        own = f", this rank's share of {self.run.world_size}" if self.run.world_size > 1 else ""
        with SplitProgress(f"evaluating {self.meta.split}{own}", images, shown=self.run.is_main) as progress:
            try:
                for chunk, answers in self._answers(chunks, mine):
                    rows, unreadable, columns = answers.finished()
                    writer.add(chunk, rows, columns, index.keys(unreadable))
                    progress.advance(len(answers.rows))
            finally:
                writer.flush()

    def _answers(self, chunks: Chunks, mine: Sequence[int]) -> Iterator[tuple[int, ChunkPredictions]]:
        """Yield this rank's chunks, as they are finished."""
        at_once, options = self.config.evaluate.members_at_once, self.options
        turns = group_models(self.tasks, at_once, chunks.size, self.run, options)
        input_specs = [input_spec for group in turns.groups for input_spec in input_specs_of(group)]
        orders = (BatchRequest(rows=chunks.rows_of(chunk), epoch=0, step=chunk) for chunk in mine)
        bad_log = self.folder.path / BAD_LOG
        host = shared_samples(self.config.data, self.split, self.place, input_specs, orders, bad_log)
        columns = [(member, view) for member in self.meta.members for view in self.meta.views]

        def started(batch: Batch | HostBatch) -> ChunkPredictions:
            valid = batch.valid if isinstance(batch, HostBatch) else batch.valid.cpu().numpy()
            return ChunkPredictions(batch.rows, columns, len(self.meta.classes), valid, self.meta.features)

        yield from predict_by_groups(host, turns, started, self.run, options)
