"""Runs the networks of a run on perturbed images of a split, on all ranks, and writes the ledger.

It is an evaluation like any other: chunks are distributed over ranks, finished chunks are kept, and each image is decoded
once for all perturbations and networks.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from choral.analysis.probes.feature_sketch import FeatureSketch
from choral.analysis.probes.perturb import Perturbation
from choral.analysis.probes.plan import FEATURE_SIZE, plan_probes, select_samples
from choral.config import Config
from choral.core.process_group import Runtime
from choral.data.loading.host_stage import HostStage
from choral.data.loading.rank_place import RankPlace
from choral.data.loading.split import open_dataset, open_split
from choral.inference.evaluation_pass import SplitEvaluation
from choral.inference.model_groups import check_stop
from choral.inference.predict_chunk import InferenceOptions
from choral.inference.prediction_tasks import PredictionTask
from choral.runs.run_dir import RunDir

_CPU_BATCH = 16  # as fast as larger ones, and finished chunks are saved every few seconds to minutes
_log = logging.getLogger(__name__)


def probe(
    config: Config, folder: RunDir, run: Runtime, split: str, families: Sequence[str] = (), force: bool = False
) -> None:
    """Write the ledger of a split's probes, unless it is complete.

    Args:
        config: of the run.
        folder: of the run.
        run: this rank.
        split: such as val.
        families: names; empty: all.
        force: probe again even if the ledger is complete.

    Raises:
        ConfigError, ChoralError, DataError: as `plan_probes`.
        DataError: images that cannot be read, where the config does not let them be skipped or they are too many.
        Stopped: all ranks were stopped; finished chunks are kept.
    """
    dataset = open_dataset(config.data)
    plan = plan_probes(config, folder, dataset, split, families)
    if plan.is_done and not force:
        return
    # Not what `auto` finds: a perturbation needs several times the memory of the images, which `auto` does not try.
    size = config.evaluate.fixed_batch_size
    if run.device.type == "cpu":
        size = min(size, _CPU_BATCH)
    place = RankPlace.from_runtime(run)
    opened = open_split(config, dataset, split, place)
    index, views = opened.index, plan.meta.views
    selected = select_samples(index.keys(np.arange(len(index))), plan.samples)
    options = InferenceOptions(
        views,
        views,
        run.accelerator.autocast,
        view_transform=Perturbation(index),
        feature_reader=FeatureSketch(FEATURE_SIZE),
        check_stop=lambda: check_stop(run),
    )
    (column,) = plan.meta.members
    tasks = [PredictionTask(column, model, selected) for model in plan.models]
    message = "%s: %d perturbations of %d of %d samples, %d networks"
    _log.info(message, split, len(views) - 1, selected.sum(), len(index), len(plan.models))
    SplitEvaluation(
        runtime=run,
        host_stage=HostStage(config.data, opened, place, folder.bad_log),
        tasks=tasks,
        options=options,
        meta=plan.meta,
        batch_size=size,
        members_at_once=config.evaluate.members_at_once,
        omission_reason="",
    ).write(plan.path)
