"""Fine-tuning, on two levels: `train` says what happens when, `Trainer.train_step` holds the tensors of one step.

Which samples a step sees and how they are augmented depend on (seed, step), never on the number of ranks or on
interruptions; dropout depends on the rank as well, and is computed from it. So a run that is killed and started again on
as many ranks ends with the same bits, and one without dropout with the same model on any number.
"""

from __future__ import annotations

import time

from choral.config import Config
from choral.core.process_group import Runtime
from choral.models.trainable_table import TABLE_FILE, table_of, tell
from choral.runs.run_dir import RunDir
from choral.training.boosting import end_round
from choral.training.checkpointing import finish, resume, save
from choral.training.feature_heads import initial_head, train_head
from choral.training.micro_batch import resolve_micro_batch
from choral.training.model_soup import drop_leftovers, keep_ingredient, make_soup
from choral.training.range_test import find_rate
from choral.training.reporting import Tracker
from choral.training.state import TrainState
from choral.training.strategy_choice import resolve_strategy
from choral.training.trainer import Trainer


def train(config: Config, folder: RunDir, run: Runtime) -> TrainState:
    """Train one network, or continue where an earlier start of the same run was stopped.

    Args:
        config: resolved; its data have been packed.
        folder: claimed and locked by the caller.
        run: this rank.

    Raises:
        ConfigError, DataError: before the first step.
        ChoralError: the loss or the gradient is not finite (no update was made), a checkpoint cannot be written.
        Stopped: all ranks agreed to stop; the state is saved.
    """
    config = resolve_strategy(config, folder, run)
    if config.finetune.strategy in ("linear", "svm"):  # no steps at all
        return train_head(config, folder, run)
    config = resolve_micro_batch(config, folder, run)
    trainer = Trainer(config, folder, run)
    state = resume(trainer)
    drop_leftovers(trainer, state)
    if state.step == 0:
        if config.finetune.strategy == "lp_ft":
            initial_head(trainer)
        find_rate(trainer)
        trainer.start_average()
    _tell_what_is_trained(trainer)
    total = trainer.schedule.total_steps
    save_every = config.train.save_every_steps or trainer.epoch_steps
    with trainer.batches_from(state.step) as loader, Tracker(config, folder, run, state, trainer.schedule) as tracker:
        batches = iter(loader)
        if (validated := _validate_if_due(trainer, state, tracker)) is not state:  # it was stopped just before that
            state = validated
            save(trainer, state)
        while not trainer.is_done(state):
            if trainer.enter_phase(state.step):
                _tell_what_is_trained(trainer)
            started = time.perf_counter()
            loss = trainer.train_step(batches, state.step)
            seconds = time.perf_counter() - started
            state = state.advance(seconds, trainer.last_skips)
            tracker.count(loss, trainer.last_rate, seconds)
            if state.is_due(config.train.log_every_steps, total):
                tracker.report_training(state)
            keep_ingredient(trainer, state)
            if run.should_stop():  # first of all: whoever asks may not wait for a validation
                save(trainer, state)
                raise run.stopped(f"at step {state.step} of {total}")
            state = _validate_if_due(trainer, state, tracker)
            kept = state.best_step == state.step or trainer.schedule.snapshot_at(state.step) > 0
            if kept or state.is_due(save_every, total) or trainer.is_done(state):
                save(trainer, state)
        state = make_soup(trainer, state, tracker)
        tracker.send_best()
    if end_round(trainer):
        finish(trainer, state)  # once all has been sent: nothing makes up for it later
    return state


def _validate_if_due(trainer: Trainer, state: TrainState, tracker: Tracker) -> TrainState:
    """Validate where that is due at this step and has not been done, and return the state with what was found."""
    every = trainer.config.train.eval_every_epochs * trainer.epoch_steps
    if state.validated_step == state.step or not state.is_due(every, trainer.schedule.total_steps):
        return state
    state = state.validated(trainer.validate(), trainer.config.best_metric)
    tracker.report_validation(state)
    return state


def _tell_what_is_trained(trainer: Trainer) -> None:
    if trainer.run.is_main:
        rows = table_of(trainer.network, trainer.optimizer, trainer.schedule.lr)
        tell(rows, f"trained from step {trainer.phase.start_step} on", trainer.folder.path / TABLE_FILE)
