"""The training loop. `train` says what happens at which step; `Trainer.train_step` makes one optimizer step.

Which samples a step sees, and how they are augmented, depends on (seed, step) only: never on the number of ranks, nor on
interruptions. Dropout also depends on the rank, and is computed from it. So a run that is killed and resumed on as many
ranks ends with the same bits, and one without dropout ends with the same model on any number of ranks.
"""

from __future__ import annotations

import time

from choral.config import Config
from choral.core.process_group import Runtime
from choral.models.trainable_table import TABLE_FILE, build_table, log_table
from choral.runs.run_dir import RunDir
from choral.training.auto_micro_batch import resolve_micro_batch
from choral.training.auto_strategy import resolve_strategy
from choral.training.boosting import finish_boosting_round
from choral.training.checkpointing import resume_from_checkpoint, save_checkpoint, write_result
from choral.training.feature_heads import fit_initial_head, train_head
from choral.training.model_soup import make_soup, remove_stale_soup_checkpoints, save_soup_checkpoint
from choral.training.range_test import find_learning_rate
from choral.training.reporter import TrainingReporter
from choral.training.state import TrainState
from choral.training.trainer import Trainer


def train(config: Config, run_dir: RunDir, runtime: Runtime) -> TrainState:
    """Train one model, or resume its training, and return the last state.

    Args:
        config: of a packed data set; this function resolves its `auto` values.
        run_dir: claimed and locked by the caller.
        runtime: this rank; all ranks must call.

    Raises:
        ConfigError, DataError: before the first step.
        ChoralError: the loss or the gradient is not finite (no update was made), or a checkpoint cannot be written.
        Stopped: all ranks agreed to stop; the state is saved.
    """
    config = resolve_strategy(config, run_dir, runtime)
    if config.finetune.strategy in ("linear", "svm"):  # fitted to features, without optimizer steps
        return train_head(config, run_dir, runtime)
    config = resolve_micro_batch(config, run_dir, runtime)
    trainer = Trainer(config, run_dir, runtime)
    state = _start_or_resume(trainer)
    _log_trainable_parameters(trainer)
    with TrainingReporter(config, run_dir, runtime, state, trainer.schedule.total_steps) as reporter:
        state = _run_steps(trainer, state, reporter)
        state = make_soup(trainer, state, reporter)
        reporter.send_best()
    if finish_boosting_round(trainer):
        write_result(trainer, state)  # last: a run with a result is never started again
    return state


def _start_or_resume(trainer: Trainer) -> TrainState:
    """Load the newest checkpoint; without one, initialise the head, the learning rate and the moving average."""
    state = resume_from_checkpoint(trainer)
    remove_stale_soup_checkpoints(trainer, state)
    if state.step == 0:
        if trainer.config.finetune.strategy == "lp_ft":
            fit_initial_head(trainer)
        find_learning_rate(trainer)
        trainer.start_moving_average()
    return state


def _run_steps(trainer: Trainer, state: TrainState, reporter: TrainingReporter) -> TrainState:
    """Make the remaining steps, validating and saving where that is due."""
    config, total = trainer.config.train, trainer.schedule.total_steps
    save_every = config.save_every_steps or trainer.steps_per_epoch
    with trainer.batches_from(state.step) as loader:
        batches = iter(loader)
        if (validated := _validate_if_due(trainer, state, reporter)) is not state:  # the run was stopped just before it
            state = validated
            save_checkpoint(trainer, state)
        while not trainer.is_finished(state):
            if trainer.enter_phase(state.step):
                _log_trainable_parameters(trainer)
            started = time.perf_counter()
            loss = trainer.train_step(batches, state.step)
            seconds = time.perf_counter() - started
            state = state.advance(seconds, trainer.last_overflows)
            reporter.add_step(loss, trainer.last_lr, seconds)
            if state.is_due(config.log_every_steps, total):
                reporter.report_training(state)
            save_soup_checkpoint(trainer, state)
            if trainer.runtime.should_stop():  # before validation: a stop request must not wait for it
                save_checkpoint(trainer, state)
                raise trainer.runtime.stop_error(f"at step {state.step} of {total}")
            state = _validate_if_due(trainer, state, reporter)
            keep = state.best_step == state.step or trainer.schedule.snapshot_at(state.step) > 0
            if keep or state.is_due(save_every, total) or trainer.is_finished(state):
                save_checkpoint(trainer, state)
    return state


def _validate_if_due(trainer: Trainer, state: TrainState, reporter: TrainingReporter) -> TrainState:
    """Return the state after the validation of its step, or the state itself if none is due or it has been done."""
    every = trainer.config.train.eval_every_epochs * trainer.steps_per_epoch
    if state.validated_step == state.step or not state.is_due(every, trainer.schedule.total_steps):
        return state
    state = state.with_validation(trainer.validate(), trainer.config.best_metric)
    reporter.report_validation(state)
    return state


def _log_trainable_parameters(trainer: Trainer) -> None:
    if trainer.runtime.is_main:
        rows = build_table(trainer.network, trainer.optimizer, trainer.schedule.lr)
        log_table(rows, f"trained from step {trainer.phase.start_step} on", trainer.run_dir.path / TABLE_FILE)
