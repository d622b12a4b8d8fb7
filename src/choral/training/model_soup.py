"""The mean of the weights at the ends of a run's last epochs, with BatchNorm statistics of its own.

Each ingredient is kept in RUN/soup/step-... as it arises, so that a run that is killed finds them again; they are removed
once the soup stands in the last checkpoint.
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
from choral.data.loading.input_pipeline import plain_training_batches
from choral.models.checkpoint_tensors import OptimizerState, load_model_tensors, save_tensors
from choral.models.finetuning import train_mode
from choral.runs.checkpoints import MODEL, step_of
from choral.training.checkpointing import save
from choral.training.reporting import Tracker
from choral.training.state import LOWER_IS_BETTER, TrainState
from choral.training.trainer import Trainer
from choral.training.weight_averages import Weights, holding, mean_of

_log = logging.getLogger(__name__)

RECALIBRATION_IMAGES = 4096
"""At most so many training images, not augmented, give a soup its BatchNorm statistics."""


def keep_ingredient(trainer: Trainer, state: TrainState) -> None:
    """Write the weights aside if an epoch, or the run, ends with this step and they may become part of the soup."""
    config, epoch, total = trainer.config.train, trainer.epoch_steps, trainer.schedule.total_steps
    early = state.step <= total - config.soup_epochs * epoch and not config.patience_epochs
    if config.soup == "none" or early or not (state.step % epoch == 0 or state.step == total):
        return
    if trainer.run.is_main:
        weights = {MODEL: trainer.network.state_dict()}
        save_tensors(_kitchen(trainer), state.step, weights, OptimizerState(), {}, keep=config.soup_epochs)
    trainer.run.barrier()


def drop_leftovers(trainer: Trainer, state: TrainState) -> None:
    """Delete the ingredients of steps that are about to be made again, after a start from `state`.

    At step 0 these are all of them: perhaps another config's or other data's, whose checkpoints have been removed. A
    checkpoint of a later step, which is of the same config and data, vouches for those before it.
    """
    if trainer.run.is_main:
        for path in _kitchen(trainer).glob("step-*"):
            if state.step == 0 or step_of(path) > state.step:
                shutil.rmtree(path)
    trainer.run.barrier()


def make_soup(trainer: Trainer, state: TrainState, tracker: Tracker) -> TrainState:
    """Make the soup, validate it, and write it into the last checkpoint; return the state with what validation found.

    uniform: the mean of all ingredients (Izmailov et al. 2018). greedy: the ingredients in the order of their own
    validation, each added if validation does not become worse (Wortsman et al. 2022).

    Raises:
        Stopped: between two candidates; everything that a further start needs is there.
    """
    settings = trainer.config.train
    if settings.soup == "none" or any(key.startswith("soup_") for key in state.report):
        return state
    paths = sorted(_kitchen(trainer).glob("step-*"))
    ingredients: list[Weights] = [load_model_tensors(path) for path in paths]
    if len(ingredients) < 2:
        _log.info("train.soup: the run had %d epoch's end, a soup needs two at least", len(ingredients))
        return state
    if settings.soup == "greedy":
        ingredients = _helpful(trainer, ingredients)
    soup, report = _tried(trainer, ingredients)
    state = state.validated({f"soup_{key}": value for key, value in report.items() if key != "n"}, _metric(trainer))
    trainer.soup = soup
    save(trainer, state)
    tracker.report_validation(state)
    if trainer.run.is_main:
        _log.info("soup of %d of %d epochs", len(ingredients), len(paths))
        shutil.rmtree(_kitchen(trainer))
    return state


def recalibrate(network: nn.Module, batches: Iterable[Tensor], run: Runtime) -> None:
    """Compute the running statistics of BatchNorm anew: the mean over batches of what each batch shows.

    Layers that training leaves alone keep theirs; dropout is off. Without SyncBatchNorm the ranks' statistics are
    averaged, so that all hold the same.

    Args:
        network: outside DistributedDataParallel; in evaluation mode afterwards.
        batches: (B, 3, S, S) float; as many on every rank.
        run: for its autocast and its sums.
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
                norm.momentum = 1 / number  # the running average becomes that of all batches so far
            with run.accelerator.autocast():
                network(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        for statistics in (norm.running_mean, norm.running_var):
            assert statistics is not None
            statistics.copy_(run.sum(statistics) / run.world_size)
    network.eval()


def _helpful(trainer: Trainer, ingredients: Sequence[Weights]) -> list[Weights]:
    """Return the ingredients that a greedy soup keeps, best first."""
    scored = sorted(((_value(trainer, [one]), -number) for number, one in enumerate(ingredients)), reverse=True)
    order = [-number for _, number in scored]  # of equals the earlier one
    kept, best = [ingredients[order[0]]], scored[0][0]
    for number in order[1:]:
        value = _value(trainer, [*kept, ingredients[number]])
        if value >= best:
            kept, best = [*kept, ingredients[number]], value
    return kept


def _value(trainer: Trainer, ingredients: Sequence[Weights]) -> float:
    """Return what validation says of a soup; higher is better, and what is no number is the worst."""
    if trainer.run.should_stop():
        raise trainer.run.stopped("before a candidate for the soup was validated")
    value = _tried(trainer, ingredients)[1][_metric(trainer)]
    if math.isnan(value):
        return -math.inf
    return -value if _metric(trainer) in LOWER_IS_BETTER else value


def _tried(trainer: Trainer, ingredients: Sequence[Weights]) -> tuple[Weights, dict[str, float]]:
    """Return a soup, recalibrated, and its report; a single ingredient keeps the statistics that it came with."""
    network, run = trainer.network, trainer.run
    with holding(network, mean_of(ingredients)):
        if len(ingredients) > 1:
            images = min(RECALIBRATION_IMAGES, trainer.train_split.training_samples)
            steps = max(1, min(trainer.epoch_steps, images // trainer.config.train.batch_size))
            with plain_training_batches(
                trainer.config,
                trainer.train_split,
                trainer.place,
                trainer.normalization.mean,
                trainer.normalization.std,
                range(steps),
                trainer.folder.path / "bad_samples.jsonl",
            ) as loader:
                recalibrate(network, (batch.images for batch in loader), run)
        report = trainer.measure()
        return {name: value.detach().clone() for name, value in network.state_dict().items()}, report


def _metric(trainer: Trainer) -> str:
    return trainer.config.best_metric


def _kitchen(trainer: Trainer) -> Path:
    return trainer.folder.path / "soup"
