"""train.accumulate_steps: auto. Finds, before the first step, the largest micro-batch that fits into memory.

Each probe does what a step does with a micro-batch (forward, loss, backward, update) on random images, with a separate
model that is then discarded. Ranks do not communicate within a probe, so one can run out of memory without leaving the
others waiting. The probe also allocates what DistributedDataParallel would: its gradient buckets.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from choral.config import Config
from choral.core.errors import OutOfMemory
from choral.core.process_group import Runtime
from choral.data.loading.device_loader import Batch
from choral.data.loading.rank_place import RankPlace
from choral.data.loading.split import open_dataset, open_training_split
from choral.data.loading.training_plan import TrainingPlan
from choral.models.build import build_model
from choral.models.finetuning import apply_phase, build_phases, list_stages, train_mode
from choral.models.pretrained_weights import resolve_weights
from choral.runs.memory import (
    MemoryProbe,
    device_name,
    find_largest_fitting,
    fits_on_all_ranks,
    host_memory_share,
    read_probe_result,
    write_probe_result,
)
from choral.runs.run_dir import RunDir
from choral.training.objective import Objective
from choral.training.optimizer import Schedule, build_optimizer

_NAME = "train.accumulate_steps"
_log = logging.getLogger(__name__)


def resolve_micro_batch(config: Config, run_dir: RunDir, runtime: Runtime) -> Config:
    """Return the config with `accumulate_steps: auto` resolved, the same on all ranks and at every start of a run.

    `evaluate.batch_size: auto` becomes the number of images in a rank's micro-batch, at most 64.

    Raises:
        OutOfMemory: not even the smallest micro-batch fits.
    """
    steps = config.train.accumulate_steps
    if steps == "auto":
        settings = _settings(config)
        steps = read_probe_result(run_dir, runtime, _NAME, settings)
        if not steps:
            steps = _find_accumulate_steps(config, runtime)
            write_probe_result(run_dir, runtime, _NAME, settings, steps)
            _log.info(
                "train.accumulate_steps: auto: %d micro-batches of %d images fit (%s)",
                steps,
                config.train.batch_size // steps,
                device_name(runtime),
            )
    runtime.accelerator.gradient_accumulation_steps = steps
    config = config.replace(train=config.train.replace(accumulate_steps=steps))
    if config.evaluate.batch_size != "auto":
        return config
    fits = max(1, config.train.batch_size // (steps * runtime.world_size))  # it fits with gradients, so also without
    size = min(config.evaluate.fixed_batch_size, fits)
    return config.replace(evaluate=config.evaluate.replace(batch_size=size))


def accumulation_candidates(config: Config, world_size: int) -> list[int]:
    """Return the possible numbers of micro-batches per step, descending; each leaves at least two images per rank.

    (BatchNorm cannot normalise a single image whose feature map has shrunk to one pixel.) If no number does, the last
    one is returned alone.
    """
    batch, lanes = config.train.batch_size, config.data.lanes
    divisors = [steps for steps in range(batch, 0, -1) if batch % steps == 0 and (batch // steps) % lanes == 0]
    return [steps for steps in divisors if batch // steps >= 2 * world_size] or divisors[-1:]


def _find_accumulate_steps(config: Config, runtime: Runtime) -> int:
    """Return the fewest micro-batches per step that fit into the memory of every rank."""
    steps_by_size: dict[int, int] = {
        -(-config.train.batch_size // (steps * runtime.world_size)): steps
        for steps in reversed(accumulation_candidates(config, runtime.world_size))
    }
    sizes = sorted(steps_by_size)
    probe = MemoryProbe(_build_probe_step(config, runtime), runtime.device, host_memory_share(runtime))
    size = find_largest_fitting(sizes, fits_on_all_ranks(runtime, probe.fits))
    if not size:
        raise OutOfMemory(
            f"train.accumulate_steps: auto: out of memory with {sizes[0]} images per rank, the smallest possible number: "
            "lower data.image_size, choose a smaller model.name, or freeze more of it (finetune.strategy)"
        )
    return steps_by_size[size]


def _build_probe_step(config: Config, runtime: Runtime) -> Callable[[int], None]:
    """Return a function that makes a training step on a given number of random images, with a model of its own."""
    place = RankPlace.from_runtime(runtime)
    split = open_training_split(config, open_dataset(config.data), place)
    objective = Objective.from_config(
        config.train, split, runtime.device, weight_losses=config.data.resample.by == "loss"
    )
    size = config.data.image_size
    network = build_model(resolve_weights(config.model), objective.num_outputs, size, config.seed).to(runtime.device)
    epoch = TrainingPlan.from_config(config, split).steps_per_epoch
    total_steps = Schedule.from_config(config.train, epoch).total_steps
    apply_phase(network, build_phases(network, config.finetune, epoch, total_steps)[-1])
    optimizer = build_optimizer(network, config.train, frozenset(list_stages(network)[-1]))
    has_buckets = runtime.world_size > 1

    def step(count: int) -> None:
        train_mode(network)
        images = torch.randn(count, 3, size, size, device=runtime.device)
        if config.model.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        rows = np.zeros(count, np.int64)
        labels = torch.from_numpy(split.targets.take(rows)).to(runtime.device)
        batch = Batch(images, labels, torch.ones(count, dtype=torch.bool, device=runtime.device), rows, 0, 0)
        with runtime.accelerator.autocast():
            logits = network(batch.images)
        torch.autograd.backward(objective.losses(logits, batch).mean())
        gradients = [item.grad for item in network.parameters() if item.grad is not None]
        buckets = [torch.empty_like(gradient) for gradient in gradients] if has_buckets else []
        optimizer.step()
        optimizer.zero_grad()
        del buckets

    return step


def _settings(config: Config) -> dict[str, Any]:
    """Return the settings that the result depends on, without the machine: a run continues as it began."""
    return {
        "train.batch_size": config.train.batch_size,
        "train.optimizer": config.train.optimizer,
        "train.precision": config.train.precision,
        "model.name": config.model.name,
        "data.image_size": config.data.image_size,
        "data.lanes": config.data.lanes,
        "finetune.strategy": config.finetune.strategy,
    }
