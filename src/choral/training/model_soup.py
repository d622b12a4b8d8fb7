"""Model soup: the mean of the weights at the ends of a run's last epochs, with recomputed BatchNorm statistics.

Training saves each of these weights to RUN/soup/step-..., where a resumed run finds them. They are removed once the last
checkpoint contains the soup.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from choral.core.process_group import Runtime
from choral.models.checkpoint_tensors import OptimizerState, load_model_tensors, save_tensors
from choral.models.finetuning import train_mode
from choral.runs.checkpoints import MODEL_FILE, step_from_path
from choral.training.checkpointing import save_checkpoint
from choral.training.reporter import TrainingReporter
from choral.training.state import LOWER_IS_BETTER, TrainState
from choral.training.trainer import Trainer
from choral.training.weight_averages import Weights, average_weights, temporary_weights

_log = logging.getLogger(__name__)

RECALIBRATION_IMAGES = 4096
"""Maximum number of training images, not augmented, from which a soup's BatchNorm statistics are computed."""


def save_soup_checkpoint(trainer: Trainer, state: TrainState) -> None:
    """Save the weights for the soup if an epoch, or the run, ends with this step and the soup may use them."""
    config, epoch, total = trainer.config.train, trainer.steps_per_epoch, trainer.schedule.total_steps
    is_early = state.step <= total - config.soup_epochs * epoch and not config.patience_epochs
    if config.soup == "none" or is_early or not (state.step % epoch == 0 or state.step == total):
        return
    if trainer.runtime.is_main:
        weights = {MODEL_FILE: trainer.network.state_dict()}
        save_tensors(_soup_dir(trainer), state.step, weights, OptimizerState(), {}, keep=config.soup_epochs)
    trainer.runtime.barrier()


def remove_stale_soup_checkpoints(trainer: Trainer, state: TrainState) -> None:
    """Delete the saved weights of steps that will be made again, after a start from `state`.

    At step 0 that is all of them: they may come from another config or other data, whose checkpoints have been removed.
    At a later step, the loaded checkpoint is of this config and data, and so are the weights saved before it.
    """
    if trainer.runtime.is_main:
        for path in _soup_dir(trainer).glob("step-*"):
            if state.step == 0 or step_from_path(path) > state.step:
                shutil.rmtree(path)
    trainer.runtime.barrier()


def make_soup(trainer: Trainer, state: TrainState, reporter: TrainingReporter) -> TrainState:
    """Make the soup, validate it, write it into the last checkpoint, and return the state with its validation metrics.

    uniform: the mean of all saved weights (Izmailov et al. 2018). greedy: goes through them from the best validation to
    the worst, and adds each one with which validation does not get worse (Wortsman et al. 2022).

    Raises:
        Stopped: between two candidates; the next start repeats the search.
    """
    settings = trainer.config.train
    if settings.soup == "none" or any(key.startswith("soup_") for key in state.report):
        return state
    paths = sorted(_soup_dir(trainer).glob("step-*"))
    candidates: list[Weights] = [load_model_tensors(path) for path in paths]
    if len(candidates) < 2:
        _log.info("train.soup: no soup: it needs the weights of two epochs, and the run saved %d", len(candidates))
        return state
    if settings.soup == "greedy":
        candidates = _select_greedily(trainer, candidates)
    soup, report = _evaluate_soup(trainer, candidates)
    state = state.with_validation(
        {f"soup_{key}": value for key, value in report.items() if key != "n"}, _metric(trainer)
    )
    trainer.soup = soup
    save_checkpoint(trainer, state)
    reporter.report_validation(state)
    if trainer.runtime.is_main:
        _log.info("soup of %d of %d epochs", len(candidates), len(paths))
        shutil.rmtree(_soup_dir(trainer))
    return state


def recalibrate_batchnorm(network: nn.Module, batches: Iterable[Tensor], runtime: Runtime) -> None:
    """Recompute BatchNorm's running statistics as the mean over batches of each batch's statistics.

    Frozen layers keep theirs; dropout is off. Without SyncBatchNorm the statistics are averaged over ranks, so that all
    ranks hold the same.

    Args:
        network: without DistributedDataParallel; left in evaluation mode.
        batches: (B, 3, S, S) float; the same number on every rank.
        runtime: this rank.
    """
    train_mode(network)
    norms = [
        module
        for module in network.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training and module.track_running_stats
    ]
    network.eval()
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
    with torch.no_grad():
        for number, images in enumerate(batches, start=1):
            for norm in norms:
                norm.momentum = 1 / number  # makes the running average the mean of all batches so far
            with runtime.accelerator.autocast():
                network(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        for statistics in (norm.running_mean, norm.running_var):
            assert statistics is not None
            statistics.copy_(runtime.sum(statistics) / runtime.world_size)
    network.eval()


def _select_greedily(trainer: Trainer, candidates: Sequence[Weights]) -> list[Weights]:
    """Return the weights that a greedy soup averages, best first."""
    scored = sorted(((_score_soup(trainer, [one]), -number) for number, one in enumerate(candidates)), reverse=True)
    order = [-number for _, number in scored]  # the earlier one first among equals
    selected, best = [candidates[order[0]]], scored[0][0]
    for number in order[1:]:
        score = _score_soup(trainer, [*selected, candidates[number]])
        if score >= best:
            selected, best = [*selected, candidates[number]], score
    return selected


def _score_soup(trainer: Trainer, weights: Sequence[Weights]) -> float:
    """Return the validation score of a soup; higher is better, and NaN counts as the worst."""
    if trainer.runtime.should_stop():
        raise trainer.runtime.stop_error("while soups were validated")
    value = _evaluate_soup(trainer, weights)[1][_metric(trainer)]
    if math.isnan(value):
        return -math.inf
    return -value if _metric(trainer) in LOWER_IS_BETTER else value


def _evaluate_soup(trainer: Trainer, weights: Sequence[Weights]) -> tuple[Weights, dict[str, float]]:
    """Return a soup with recomputed BatchNorm statistics, and its validation metrics.

    A soup of one keeps the statistics of its weights.
    """
    network = trainer.network
    with temporary_weights(network, average_weights(weights)):
        if len(weights) > 1:
            images = min(RECALIBRATION_IMAGES, trainer.train_split.training_samples)
            steps = max(1, min(trainer.steps_per_epoch, images // trainer.config.train.batch_size))
            with trainer.train_inputs.unaugmented_training_batches(range(steps)) as loader:
                recalibrate_batchnorm(network, (batch.images for batch in loader), trainer.runtime)
        report = trainer.evaluate()
        return {name: value.detach().clone() for name, value in network.state_dict().items()}, report


def _metric(trainer: Trainer) -> str:
    return trainer.config.best_metric


def _soup_dir(trainer: Trainer) -> Path:
    return trainer.run_dir.path / "soup"
