"""A run between two starts: what is written into its folder, and how a new start takes it up."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch

from choral.models.checkpoint_tensors import load_model_tensors, load_optimizer, optimizer_state, save_tensors
from choral.runs.checkpoints import (
    EMA,
    MODEL,
    SOUP,
    check_same_data,
    checkpoint_path,
    mark_best,
    newest_intact,
    read_meta,
    step_of,
)
from choral.runs.run_dir import write_json
from choral.training.state import TrainState
from choral.training.trainer import Trainer
from choral.training.weight_averages import Weights

_log = logging.getLogger(__name__)


def resume(trainer: Trainer) -> TrainState:
    """Load the newest intact checkpoint (all ranks the one that the main rank chose), or start at step 0."""
    folder, run = trainer.folder, trainer.run
    path = newest_intact(folder.checkpoints) if run.is_main else None
    step = step_of(path) if path else -1
    step = int(run.broadcast(torch.tensor([step], device=run.device)).item())
    if step < 0:
        return TrainState()
    path = checkpoint_path(folder.checkpoints, step)
    meta = read_meta(path)
    check_same_data(trainer.fingerprint, meta["dataset"], folder.path)
    state = TrainState(**meta["state"])
    trainer.network.load_state_dict(load_model_tensors(path))
    trainer.enter_phase(state.step)
    load_optimizer(path, trainer.optimizer, trainer.network)
    trainer.schedule = replace(trainer.schedule, lr=meta["lr"])
    trainer.start_average()
    if trainer.average is not None:
        trainer.average.load(load_model_tensors(path, EMA))
    if run.accelerator.scaler is not None and meta["loss_scaler"]:
        run.accelerator.scaler.load_state_dict(meta["loss_scaler"])
    if run.is_main:
        _mark_if_best(trainer, state)  # it may have been killed between the two writes
    _log.info("continuing at step %d of %d", state.step, trainer.schedule.total_steps)
    return state


def save(trainer: Trainer, state: TrainState) -> None:
    """Write a checkpoint (main rank; the others wait), and point to it when it is the best."""
    if trainer.run.is_main:
        weights: dict[str, Weights] = {MODEL: trainer.network.state_dict()}
        if trainer.average is not None:
            weights[EMA] = trainer.average.weights
        if trainer.soup is not None:
            weights[SOUP] = trainer.soup
        save_tensors(
            trainer.folder.checkpoints,
            state.step,
            weights,
            optimizer_state(trainer.optimizer, trainer.network),
            _describe(trainer, state),
            trainer.config.train.keep_checkpoints,
        )
        _mark_if_best(trainer, state)
    trainer.run.barrier()


def finish(trainer: Trainer, state: TrainState, further: Mapping[str, Any] | None = None) -> None:
    """Write result.json, whose presence says that training is done; the last checkpoint is there by then."""
    if trainer.run.is_main:
        result = {
            "steps": state.step,
            "best_step": state.best_step,
            "best_weights": state.best_weights,
            "stopped_early": state.step < trainer.schedule.total_steps,
            "train_minutes": state.seconds / 60,
            "dataset": trainer.fingerprint,
            **state.report,
            **(further or {}),
        }
        write_json(trainer.folder.path / "result.json", result)
    trainer.run.barrier()


def _mark_if_best(trainer: Trainer, state: TrainState) -> None:
    if state.best_step == state.step and state.best_value is not None:
        metric = trainer.config.best_metric
        mark_best(trainer.folder.checkpoints, state.step, metric, state.best_value, state.best_weights)


def _describe(trainer: Trainer, state: TrainState) -> dict[str, Any]:
    """Return what a checkpoint holds beside tensors: where the run stands, and what it takes to use the network."""
    scaler = trainer.run.accelerator.scaler
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
