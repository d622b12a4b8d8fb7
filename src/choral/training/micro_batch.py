"""train.accumulate_steps: auto. The largest part of the batch that fits into memory, found before the first step.

Each trial is what a step does with a micro-batch: forward, loss, backward and update, on images of noise, by a network of
its own that is thrown away. No rank speaks to another within a trial, so that one may run out of memory without leaving the
others waiting; what DistributedDataParallel holds besides, its buckets of gradients, is held as well.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from choral.config import Config
from choral.core.errors import OutOfMemory
from choral.core.process_group import Runtime
from choral.data.loading.device_loader import Batch
from choral.data.loading.input_pipeline import RankPlace, open_dataset, open_training_split, steps_per_epoch
from choral.models.build import build_model
from choral.models.finetuning import apply_phase, phases_of, stages_of, train_mode
from choral.models.pretrained_weights import resolve_weights
from choral.runs.memory import Trial, agreed, device_name, host_share, largest, remember, remembered
from choral.runs.run_dir import RunDir
from choral.training.objective import Objective
from choral.training.optimizer import Schedule, build_optimizer

_NAME = "train.accumulate_steps"
_log = logging.getLogger(__name__)


def resolve_micro_batch(config: Config, folder: RunDir, run: Runtime) -> Config:
    """Return the config with `accumulate_steps: auto` replaced, the same on all ranks and at every start of a run.

    With `evaluate.batch_size: auto`, validation takes as many images as a rank's micro-batch has, 64 at most.

    Raises:
        OutOfMemory: not even the smallest micro-batch fits.
    """
    steps = config.train.accumulate_steps
    if steps == "auto":
        settings = _settings(config)
        steps = remembered(folder, run, _NAME, settings)
        if not steps:
            steps = _found(config, run)
            remember(folder, run, _NAME, settings, steps)
            _log.info(
                "train.accumulate_steps: auto: %d micro-batches of %d images fit (%s)",
                steps,
                config.train.batch_size // steps,
                device_name(run),
            )
    run.accelerator.gradient_accumulation_steps = steps
    config = replace(config, train=replace(config.train, accumulate_steps=steps))
    if config.evaluate.batch_size != "auto":
        return config
    fits = max(1, config.train.batch_size // (steps * run.world_size))  # with gradients, so without them, too
    size = min(config.evaluate.plain_batch_size, fits)
    return replace(config, evaluate=replace(config.evaluate, batch_size=size))


def accumulations(config: Config, world_size: int) -> list[int]:
    """Return how many micro-batches a step may have, from many small ones to one; a rank has two images at least.

    BatchNorm cannot normalise a single image that has shrunk to one pixel.
    """
    batch, lanes = config.train.batch_size, config.data.lanes
    whole = [steps for steps in range(batch, 0, -1) if batch % steps == 0 and (batch // steps) % lanes == 0]
    return [steps for steps in whole if batch // steps >= 2 * world_size] or whole[-1:]


def _found(config: Config, run: Runtime) -> int:
    steps_of: dict[int, int] = {
        -(-config.train.batch_size // (steps * run.world_size)): steps
        for steps in reversed(accumulations(config, run.world_size))
    }
    sizes = sorted(steps_of)
    trial = Trial(_work(config, run), run.device, host_share(run))
    size = largest(sizes, agreed(run, trial.fits))
    if not size:
        raise OutOfMemory(
            f"train.accumulate_steps: auto: out of memory with {sizes[0]} images a rank, the fewest there can be: lower "
            "data.image_size, choose a smaller model.name, or freeze more of it (finetune.strategy)"
        )
    return steps_of[size]


def _work(config: Config, run: Runtime) -> Callable[[int], None]:
    """Return a step on so many images of noise, by a network of its own."""
    place = RankPlace(run.rank, run.world_size, run.device, run.local_world_size)
    split = open_training_split(config, open_dataset(config.data), place)
    objective = Objective.of(config, split, run.device)
    size = config.data.image_size
    network = build_model(resolve_weights(config.model), objective.outputs, size, config.seed).to(run.device)
    epoch = steps_per_epoch(config, split)
    apply_phase(network, phases_of(network, config.finetune, epoch, Schedule.of(config.train, epoch).total_steps)[-1])
    optimizer = build_optimizer(network, config.train, frozenset(stages_of(network)[-1]))
    buckets = run.world_size > 1

    def work(count: int) -> None:
        train_mode(network)
        images = torch.randn(count, 3, size, size, device=run.device)
        if config.model.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        rows = np.zeros(count, np.int64)
        labels = torch.from_numpy(split.targets.of(rows)).to(run.device)
        batch = Batch(images, labels, torch.ones(count, dtype=torch.bool, device=run.device), rows, 0, 0)
        with run.accelerator.autocast():
            logits = network(batch.images)
        torch.autograd.backward(objective.losses(logits, batch).mean())
        held = [torch.empty_like(item.grad) for item in network.parameters() if buckets and item.grad is not None]
        optimizer.step()
        optimizer.zero_grad()
        del held

    return work


def _settings(config: Config) -> dict[str, Any]:
    """Return what the number was found for; the machine is no part of it, for a run goes on as it began."""
    return {
        "train.batch_size": config.train.batch_size,
        "train.optimizer": config.train.optimizer,
        "train.precision": config.train.precision,
        "model.name": config.model.name,
        "data.image_size": config.data.image_size,
        "data.lanes": config.data.lanes,
        "finetune.strategy": config.finetune.strategy,
    }
