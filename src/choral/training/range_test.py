"""train.lr: auto. A range test raises the learning rate from step to step and observes the loss (Smith 2017).

The rate rises exponentially from 1e-6 to 10 over 100 training steps on the samples of the run's first steps. The loss is
smoothed by an exponential average with decay 0.9 per step and bias correction. The test ends early when the smoothed loss
is more than 4 times its minimum, or more than 1.5 times the initial loss (the mean of the first ten steps, whose rates are
too low to change it), or when a loss or gradient is not finite. The chosen rate is a tenth of the rate with the lowest
smoothed loss: the loss still falls there, and the rate is well below the one at which it stops falling. The test restores
everything it changes.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from choral.config import binding_values
from choral.core.errors import ChoralError
from choral.core.figures import write_figure
from choral.core.process_group import Runtime
from choral.runs.run_dir import read_json, write_json
from choral.training.finite_checks import NotFinite
from choral.training.optimizer import Schedule
from choral.training.range_test_figure import draw_loss_curve
from choral.training.trainer import Trainer
from choral.training.weight_averages import temporary_weights

_log = logging.getLogger(__name__)

MIN_LR, MAX_LR, STEPS = 1e-6, 10.0, 100
_DECAY = 0.9  # of the smoothed loss, per step
_INITIAL_STEPS = 10
_MAX_OVER_LOWEST, _MAX_OVER_INITIAL = 4.0, 1.5
_MUST_FALL_TO = 0.98  # of the initial loss; a smaller fall may be noise


@dataclass(frozen=True)
class LossCurve:
    """Learning rate, loss and smoothed loss of each step of a range test."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]

    @property
    def diverged(self) -> bool:
        """Whether the loss has risen so far that higher rates are not worth a try."""
        if len(self.smoothed) <= _INITIAL_STEPS:
            return False
        last = self.smoothed[-1]
        return last > _MAX_OVER_LOWEST * min(self.smoothed) or last > _MAX_OVER_INITIAL * self.initial

    @property
    def initial(self) -> float:
        """Mean loss of the first steps, whose rates are too low to change it."""
        first = self.losses[:_INITIAL_STEPS]
        return sum(first) / len(first)

    def add(self, rate: float, loss: float) -> LossCurve:
        """Return the curve one step longer."""
        count = len(self.rates)
        before = self.smoothed[-1] * (1 - _DECAY**count) if count else 0.0
        smooth = (_DECAY * before + (1 - _DECAY) * loss) / (1 - _DECAY ** (count + 1))
        return LossCurve((*self.rates, rate), (*self.losses, loss), (*self.smoothed, smooth))

    def choose(self) -> float:
        """Return the learning rate to train with.

        Raises:
            ChoralError: the loss fell at no rate.
        """
        late = range(min(_INITIAL_STEPS, len(self.smoothed) - 1), len(self.smoothed))
        lowest = min(late, key=self.smoothed.__getitem__, default=0)
        if not self.smoothed or self.smoothed[lowest] > _MUST_FALL_TO * self.initial:
            raise ChoralError(
                "train.lr: auto: no learning rate made the loss fall within the range test; see lr_range.svg, and set "
                "train.lr to a number"
            )
        return self.rates[lowest] / 10


@dataclass(frozen=True)
class _Ramp(Schedule):
    """The exponential schedule of the test."""

    def lr_at(self, step: int) -> float:
        share = step / (self.total_steps - 1)
        return float(MIN_LR * (MAX_LR / MIN_LR) ** share)


def find_learning_rate(trainer: Trainer) -> None:
    """With train.lr: auto, set the learning rate of the trainer's schedule by a range test, or by an earlier start's.

    The result is stored in RUN/lr_range.json and drawn in RUN/lr_range.svg. All ranks use the main rank's.

    Raises:
        ChoralError: the loss fell at no rate, or was not finite from the start.
        Stopped: all ranks agreed to stop; the next start repeats the test.
    """
    if trainer.config.train.lr != "auto":
        return
    folder, runtime = trainer.run_dir.path, trainer.runtime
    key = _compute_key(trainer)
    stored = (read_json(folder / "lr_range.json") or {}) if runtime.is_main else {}
    lr = _broadcast_float(runtime, float(stored["lr"]) if stored.get("key") == key else 0.0)
    if not lr:
        curve = run_range_test(trainer)
        if runtime.is_main:
            write_figure(folder / "lr_range.svg", draw_loss_curve(curve.rates, curve.losses, curve.smoothed, None))
        lr = _broadcast_float(runtime, curve.choose())
        if runtime.is_main:
            _write_result(trainer, curve, lr, key)
    trainer.schedule = replace(trainer.schedule, lr=lr)


def _broadcast_float(runtime: Runtime, value: float) -> float:
    """Return the main rank's value on all ranks."""
    return float(runtime.broadcast(torch.tensor(value, dtype=torch.float64, device=runtime.device)).item())


def run_range_test(trainer: Trainer) -> LossCurve:
    """Make the steps of the test from the current weights, then restore weights, phase, schedule and loss scale.

    With strategy: gradual, the test trains what the last phase trains, since that phase tolerates the lowest rate.

    Raises:
        NotFinite: at the first step; at a later step the test ends without an error.
        Stopped: all ranks agreed to stop.
    """
    schedule, runtime = trainer.schedule, trainer.runtime
    scaler = runtime.accelerator.scaler
    loss_scale = scaler.state_dict() if scaler is not None else {}
    curve, stop, failure = LossCurve((), (), ()), False, ""
    if trainer.phase is not trainer.phases[-1]:
        trainer.restart_phase(trainer.phases[-1])
    trainer.schedule = _Ramp(MIN_LR, 0, STEPS, 0.0)
    try:
        with (
            trainer.batches_in(range(STEPS)) as loader,
            temporary_weights(trainer.network, trainer.network.state_dict()),
        ):
            batches = iter(loader)
            for step in range(STEPS):
                try:
                    loss = runtime.sum(trainer.train_step(batches, step)).item()
                except NotFinite as error:
                    failure = str(error)
                    break
                curve = curve.add(trainer.last_lr, loss)
                stop = runtime.should_stop()
                if stop or curve.diverged:
                    break
    finally:
        trainer.schedule = schedule
    trainer.restart_phase(trainer.phases[0])
    if scaler is not None:
        scaler.load_state_dict(loss_scale)
    if stop:
        raise runtime.stop_error("during the range test of train.lr: auto")
    if not curve.rates:
        raise NotFinite(
            f"train.lr: auto: the range test ended before its first update, at a rate of {MIN_LR:g} "
            f"({failure.partition(';')[0]}): no learning rate would help; check the data, model.weights and train.precision"
        )
    return curve


def _write_result(trainer: Trainer, curve: LossCurve, lr: float, key: str) -> None:
    folder = trainer.run_dir.path
    write_figure(folder / "lr_range.svg", draw_loss_curve(curve.rates, curve.losses, curve.smoothed, lr))
    columns: dict[str, Sequence[float]] = {"rates": curve.rates, "losses": curve.losses, "smoothed": curve.smoothed}
    write_json(folder / "lr_range.json", {"lr": lr, "key": key, **columns})
    _log.info(
        "learning rate %.1e, by a range test of %d steps up to %.1e: %s",
        lr,
        len(curve.rates),
        curve.rates[-1],
        folder / "lr_range.svg",
    )


def _compute_key(trainer: Trainer) -> str:
    """Return a hash of the settings and data that the result depends on."""
    values = binding_values(trainer.config)
    lines = [f"{key}={values[key]!r}" for key in sorted(values) if not key.startswith(("evaluate.", "ensemble."))]
    return hashlib.sha256("\n".join([*lines, trainer.fingerprint]).encode()).hexdigest()
