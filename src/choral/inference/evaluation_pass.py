"""The evaluation of a run on all ranks: predicts every sample of its splits under every view, and writes the ledgers.

One rank reads and decodes each sample, once for all models and views. Ranks communicate only at the beginning and at the
end, so they may have different numbers of chunks, or none.
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
from choral.data.loading.host_stage import HostStage
from choral.data.loading.input_spec import distinct_image_specs
from choral.data.loading.progress import SplitProgress
from choral.data.loading.rank_place import RankPlace
from choral.data.loading.split import open_dataset, open_split
from choral.inference.auto_batch_size import find_batch_size
from choral.inference.chunks import Chunks, ChunkWriter, Columns, find_finished_chunks, rank_share
from choral.inference.evaluation_plan import HELD_OUT, plan_evaluation
from choral.inference.external_data import split_from_ledger_name, write_data_location
from choral.inference.ledger import LedgerMeta, build_ledger_table, merge_parts
from choral.inference.ledger_parts import open_parts
from choral.inference.model_groups import distinct_input_specs, group_models, predict_by_groups
from choral.inference.predict_chunk import ChunkPredictions, InferenceOptions
from choral.inference.prediction_tasks import PredictionTask, all_rows_tasks, held_out_tasks, rows_to_predict
from choral.runs.run_dir import RunDir

_log = logging.getLogger(__name__)
_NOT_HELD_OUT = "all trained members, or all of a group, were trained on them"
_SOFTWARE = (f"choral {__version__}", *(f"{name} {version(name)}" for name in ("torch", "timm")))


def evaluate(config: Config, run_dir: RunDir, runtime: Runtime, force: bool = False, data_name: str = "") -> None:
    """Write the ledger of each configured split, unless it exists with the same models and views.

    Args:
        config: of the run; its `evaluate` section may differ from the stored one.
        run_dir: of the run.
        runtime: this rank.
        force: evaluate again even if the ledgers exist.
        data_name: see `plan_evaluation`.

    Raises:
        ChoralError: no member has been trained.
        DataError: the data have other classes than the members were trained on, or cannot be read.
        Stopped: all ranks were asked to stop.
    """
    dataset = open_dataset(config.data)
    plan = plan_evaluation(config, run_dir, dataset, data_name)
    if runtime.is_main:
        write_data_location(run_dir, dataset, plan.suffix)
    batch_size = config.evaluate.batch_size
    if batch_size == "auto":
        batch_size = find_batch_size(plan.models, config.train.precision, run_dir, runtime)
    count = len(plan.models)
    if plan.unfinished:
        missing = ", ".join(plan.unfinished)
        _log.warning("%d of %d members: not trained: %s", count, count + len(plan.unfinished), missing)
    place = RankPlace.from_runtime(runtime)
    for name in plan.ledgers if force else plan.missing():
        is_held_out = name == HELD_OUT
        split_name = config.data.train_split if is_held_out else split_from_ledger_name(name)
        split = open_split(config, dataset, split_name, place)
        path, meta = plan.ledgers[name]
        _log.info("%s: %d samples, %d members, %d views", name, len(split), count, len(plan.views))
        SplitEvaluation(
            runtime=runtime,
            host_stage=HostStage(config.data, split, place, run_dir.bad_log),
            tasks=held_out_tasks(plan.groups, split.index) if is_held_out else all_rows_tasks(plan.models),
            options=InferenceOptions(plan.views, meta.views, runtime.accelerator.autocast, config.evaluate.average),
            meta=meta,
            batch_size=batch_size,
            members_at_once=config.evaluate.members_at_once,
            omission_reason=_NOT_HELD_OUT,
        ).write(path)


@dataclass(frozen=True)
class SplitEvaluation:
    """The evaluation of one split, on all ranks.

    Attributes:
        runtime: this rank.
        host_stage: of the split.
        tasks: which model predicts which of its samples.
        options: how the forward passes are made.
        meta: of the ledger.
        batch_size: number of images per forward pass.
        members_at_once: how many models are in memory together; "auto": as many as fit.
        omission_reason: why no model predicts some of the samples, for a warning; "": no warning.
    """

    runtime: Runtime
    host_stage: HostStage
    tasks: list[PredictionTask]
    options: InferenceOptions
    meta: LedgerMeta
    batch_size: int
    members_at_once: int | str
    omission_reason: str

    def write(self, path: Path) -> None:
        """Predict this rank's share of the remaining chunks; the main rank then merges the parts of all ranks."""
        runtime, split = self.runtime, self.host_stage.split
        rows, omitted = rows_to_predict(self.tasks, len(split))
        chunks = Chunks(rows, self.batch_size)
        parts_dir = chunks.parts_dir(path.parent, self.meta, (*_SOFTWARE, runtime.device.type))
        done = self._find_finished(parts_dir, chunks)
        if runtime.is_main:
            self._log_start(chunks, done, len(omitted))
        self._predict(chunks, rank_share(np.flatnonzero(~done), runtime.rank, runtime.world_size), parts_dir)
        runtime.barrier()
        if runtime.is_main:
            self._check_skipped(parts_dir, len(chunks))
            keys = split.index.keys(np.arange(len(split.index)))
            try:
                merge_parts(parts_dir, len(chunks), keys, path, self.meta, split.index.keys(omitted))
            except DataError as error:
                if not isinstance(error.__cause__, OSError):  # unlike a full disk, the next start would fail again
                    shutil.rmtree(parts_dir, ignore_errors=True)
                raise
            shutil.rmtree(parts_dir.parent, ignore_errors=True)
        runtime.barrier()

    def _find_finished(self, parts_dir: Path, chunks: Chunks) -> NDArray[np.bool_]:
        """Return which chunks an earlier start has finished, as the main rank sees it."""
        flags = torch.zeros(len(chunks), dtype=torch.uint8)
        if self.runtime.is_main:
            may_skip = self.host_stage.config.on_bad_sample == "skip"
            finished = find_finished_chunks(parts_dir, len(chunks), self.meta, may_skip)
            flags = torch.from_numpy(finished.astype(np.uint8))
        flags = self.runtime.broadcast(flags.to(self.runtime.device))
        done: NDArray[np.bool_] = flags.cpu().numpy().astype(np.bool_)
        return done

    def _check_skipped(self, parts_dir: Path, chunks: int) -> None:
        """Raise DataError if all ranks and starts together skipped too many samples; each knows only its own."""
        data, samples = self.host_stage.config, len(self.host_stage.split)
        skipped = [key for part in open_parts(parts_dir, chunks) for key in part.skipped]
        if len(skipped) > data.max_bad_fraction * samples:
            raise DataError(
                f"{len(skipped)} of {samples} samples cannot be read, such as {skipped[0]!r}, listed in "
                f"{self.host_stage.bad_log}: more than data.max_bad_fraction {data.max_bad_fraction:g}; with a higher "
                "one, the same command reuses the predictions made so far"
            )

    def _log_start(self, chunks: Chunks, done: NDArray[np.bool_], omitted: int) -> None:
        name, samples = self.meta.split, len(self.host_stage.split)
        if omitted and self.omission_reason:
            _log.warning("%s: %d of %d samples are left out: %s", name, omitted, samples, self.omission_reason)
        if done.any():
            finished = sum(len(chunks.rows_in(int(chunk))) for chunk in np.flatnonzero(done))
            _log.info("%s: continuing: %d of %d samples are done", name, finished, len(chunks.rows))

    def _predict(self, chunks: Chunks, share: Sequence[int], parts_dir: Path) -> None:
        """Predict this rank's chunks and write them; finished ones are also written when the rank is stopped."""
        index, targets = self.host_stage.split.index, self.host_stage.split.targets

        def build_table(rows: NDArray[np.int64], columns: Columns) -> pa.Table:
            return build_ledger_table(self.meta, index.keys(rows), targets.take(rows), columns)

        if not share:
            return
        writer = ChunkWriter(parts_dir, build_table)
        images = sum(len(chunks.rows_in(chunk)) for chunk in share)
        world_size = self.runtime.world_size
        part = f", this rank's share of {world_size}" if world_size > 1 else ""
        with SplitProgress(f"evaluating {self.meta.split}{part}", images, enabled=self.runtime.is_main) as progress:
            try:
                for chunk, predictions in self._iterate_predictions(chunks, share):
                    rows, unreadable, columns = predictions.compute_means()
                    writer.add(chunk, rows, columns, index.keys(unreadable))
                    progress.advance(len(predictions.rows))
            finally:
                writer.flush()

    def _iterate_predictions(self, chunks: Chunks, share: Sequence[int]) -> Iterator[tuple[int, ChunkPredictions]]:
        """Yield this rank's chunks as they are finished."""
        groups = group_models(self.tasks, self.members_at_once, self.batch_size, self.runtime, self.options)
        input_specs = [input_spec for group in groups.groups for input_spec in distinct_input_specs(group)]
        requests = (BatchRequest(rows=chunks.rows_in(chunk), epoch=0, step=chunk) for chunk in share)
        host = self.host_stage.load(requests, distinct_image_specs(input_specs))
        columns = [(member, view) for member in self.meta.members for view in self.meta.views]

        def new_predictions(batch: Batch | HostBatch) -> ChunkPredictions:
            valid = batch.valid if isinstance(batch, HostBatch) else batch.valid.cpu().numpy()
            return ChunkPredictions(batch.rows, columns, len(self.meta.classes), valid, self.meta.features)

        yield from predict_by_groups(host, groups, new_predictions, self.runtime, self.options)
