"""Saving and resuming a training run: checkpoints, and result.json at the end."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch

from choral.models.checkpoint_tensors import load_model_tensors, load_optimizer, optimizer_state, save_tensors
from choral.runs.checkpoints import (
    EMA_FILE,
    MODEL_FILE,
    SOUP_FILE,
    check_same_data,
    checkpoint_path,
    find_latest_intact,
    mark_best,
    read_checkpoint_state,
    step_from_path,
)
from choral.runs.run_dir import write_json
from choral.training.state import TrainState
from choral.training.trainer import Trainer
from choral.training.weight_averages import Weights

_log = logging.getLogger(__name__)


def resume_from_checkpoint(trainer: Trainer) -> TrainState:
    """Load the newest intact checkpoint into the trainer and return its state; the state of step 0 if there is none.

    The main rank chooses the checkpoint, and all ranks load the same one.
    """
    run_dir, runtime = trainer.run_dir, trainer.runtime
    latest = find_latest_intact(run_dir.checkpoints) if runtime.is_main else None
    step = step_from_path(latest) if latest else -1
    step = int(runtime.broadcast(torch.tensor([step], device=runtime.device)).item())
    if step < 0:
        return TrainState()
    path = checkpoint_path(run_dir.checkpoints, step)
    content = read_checkpoint_state(path)
    check_same_data(trainer.fingerprint, content["dataset"], run_dir.path)
    state = TrainState(**content["state"])
    trainer.network.load_state_dict(load_model_tensors(path))
    trainer.enter_phase(state.step)
    load_optimizer(path, trainer.optimizer, trainer.network)
    trainer.schedule = replace(trainer.schedule, lr=content["lr"])
    trainer.start_moving_average()
    if trainer.average is not None:
        trainer.average.load(load_model_tensors(path, EMA_FILE))
    if runtime.accelerator.scaler is not None and content["loss_scaler"]:
        runtime.accelerator.scaler.load_state_dict(content["loss_scaler"])
    if runtime.is_main:
        _mark_if_best(trainer, state)  # the run may have been killed after the checkpoint and before the mark
    _log.info("continuing at step %d of %d", state.step, trainer.schedule.total_steps)
    return state


def save_checkpoint(trainer: Trainer, state: TrainState) -> None:
    """Write a checkpoint on the main rank while the others wait, and mark it as the best one if it is."""
    if trainer.runtime.is_main:
        weights: dict[str, Weights] = {MODEL_FILE: trainer.network.state_dict()}
        if trainer.average is not None:
            weights[EMA_FILE] = trainer.average.weights
        if trainer.soup is not None:
            weights[SOUP_FILE] = trainer.soup
        save_tensors(
            trainer.run_dir.checkpoints,
            state.step,
            weights,
            optimizer_state(trainer.optimizer, trainer.network),
            _checkpoint_content(trainer, state),
            trainer.config.train.keep_checkpoints,
        )
        _mark_if_best(trainer, state)
    trainer.runtime.barrier()


def write_result(trainer: Trainer, state: TrainState, extra: Mapping[str, Any] | None = None) -> None:
    """Write result.json, which marks the training as finished; the last checkpoint must be on disk by then."""
    if trainer.runtime.is_main:
        result = {
            "steps": state.step,
            "best_step": state.best_step,
            "best_weights": state.best_weights,
            "stopped_early": state.step < trainer.schedule.total_steps,
            "train_minutes": state.seconds / 60,
            "dataset": trainer.fingerprint,
            **state.report,
            **(extra or {}),
        }
        write_json(trainer.run_dir.path / "result.json", result)
    trainer.runtime.barrier()


def _mark_if_best(trainer: Trainer, state: TrainState) -> None:
    if state.best_step == state.step and state.best_value is not None:
        metric = trainer.config.best_metric
        mark_best(trainer.run_dir.checkpoints, state.step, metric, state.best_value, state.best_weights)


def _checkpoint_content(trainer: Trainer, state: TrainState) -> dict[str, Any]:
    """Return the JSON of a checkpoint: the state of the run, and what it takes to use the model without the run."""
    scaler = trainer.runtime.accelerator.scaler
    snapshot = trainer.schedule.snapshot_at(state.step)
    return {
        **({"snapshot": snapshot} if snapshot else {}),
        "state": asdict(state),
        "dataset": trainer.fingerprint,
        **trainer.objective.meta(),
        "mean": trainer.normalization.mean,
        "std": trainer.normalization.std,
        "lr": trainer.schedule.lr,
        "loss_scaler": scaler.state_dict() if scaler is not None else {},
    }
