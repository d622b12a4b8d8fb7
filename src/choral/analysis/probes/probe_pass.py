"""Ask the networks of a run about changed images of a split, on all ranks, and leave the ledger of it.

It is an evaluation like any other: chunks are dealt to ranks, what is finished is kept, and each image is decoded once for
all changes and networks.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from choral.analysis.probes.feature_sketch import Sketch
from choral.analysis.probes.perturb import Perturbed
from choral.analysis.probes.plan import FEATURES, chosen_rows, plan_probes
from choral.config import Config
from choral.core.process_group import Runtime
from choral.data.loading.input_pipeline import RankPlace, open_dataset, open_split
from choral.inference.evaluation_pass import SplitEvaluation
from choral.inference.model_groups import check_stop
from choral.inference.predict_chunk import InferenceOptions
from choral.inference.prediction_tasks import PredictionTask
from choral.runs.run_dir import RunDir

_CPU_BATCH = 16  # as fast as more, and what is finished is kept in steps of seconds to minutes, not of many minutes
_log = logging.getLogger(__name__)


def probe(
    config: Config, folder: RunDir, run: Runtime, split: str, families: Sequence[str] = (), force: bool = False
) -> None:
    """Write the ledger of the probes of a split, unless it is there.

    Args:
        config: of the run.
        folder: of the run.
        run: this rank.
        split: such as val.
        families: names; none: all.
        force: probe again what is there.

    Raises:
        ConfigError, ChoralError, DataError: as `plan_probes`.
        DataError: images that cannot be read, where the config does not let them be skipped or they are too many.
        Stopped: all ranks were asked to stop; what is finished is kept.
    """
    dataset = open_dataset(config.data)
    plan = plan_probes(config, folder, dataset, split, families)
    if plan.is_done and not force:
        return
    # Not what `auto` finds: a change takes several times the memory of the images, and is not tried there.
    size = config.evaluate.plain_batch_size
    if run.device.type == "cpu":
        size = min(size, _CPU_BATCH)
    config = replace(config, evaluate=replace(config.evaluate, batch_size=size))
    place = RankPlace(run.rank, run.world_size, run.device, run.local_world_size)
    opened = open_split(config, dataset, split, place)
    index, views = opened.index, plan.meta.views
    chosen = chosen_rows(index.keys(np.arange(len(index))), plan.samples)
    options = InferenceOptions(
        views,
        views,
        run.accelerator.autocast,
        shows=Perturbed(index),
        features=Sketch(FEATURES),
        check=lambda: check_stop(run),
    )
    (column,) = plan.meta.members
    tasks = [PredictionTask(column, model, chosen) for model in plan.models]
    words = "%s: %d changes of %d of %d samples, %d networks"
    _log.info(words, split, len(views) - 1, chosen.sum(), len(index), len(plan.models))
    SplitEvaluation(config, folder, run, place, opened, tasks, options, plan.meta, left_out="").write(plan.path)
