"""train.lr: auto. A range test raises the learning rate from step to step and looks what the loss does (Smith 2017).

The rate rises exponentially from 1e-6 to 10 over 100 training steps, which see the samples of the run's first steps. The
loss is smoothed by an average that forgets with 0.9 a step and is corrected for its start. The test stops itself when the
smoothed loss is more than 4 times the lowest so far or more than 1.5 times that of the start, the mean of the first ten
steps, which are too slow to change it; or when a loss or gradient is not finite. The rate chosen is a tenth of that where
the smoothed loss is lowest: there it still falls, with room to where it stops. Everything the test moved is put back.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from choral.config import binding_values
from choral.core.errors import ChoralError
from choral.runs.run_dir import read_json, write_atomic, write_json
from choral.training.finite_checks import NotFinite
from choral.training.optimizer import Schedule
from choral.training.range_test_figure import draw_curve
from choral.training.trainer import Trainer
from choral.training.weight_averages import holding

_log = logging.getLogger(__name__)

LOWEST, HIGHEST, STEPS = 1e-6, 10.0, 100
_FORGET = 0.9
_AT_START = 10  # steps
_FAR_ABOVE_LOWEST, _ABOVE_START = 4.0, 1.5
_MUST_FALL = 0.98  # of the loss at the start: what is above was noise


@dataclass(frozen=True)
class Curve:
    """What a range test saw: one entry a step that was made."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]

    @property
    def diverged(self) -> bool:
        """Whether the rates are too high from here on."""
        if len(self.smoothed) <= _AT_START:
            return False
        last = self.smoothed[-1]
        return last > _FAR_ABOVE_LOWEST * min(self.smoothed) or last > _ABOVE_START * self.start

    @property
    def start(self) -> float:
        """The loss before the rate mattered."""
        first = self.losses[:_AT_START]
        return sum(first) / len(first)

    def add(self, rate: float, loss: float) -> Curve:
        """Return the curve one step longer."""
        count = len(self.rates)
        before = self.smoothed[-1] * (1 - _FORGET**count) if count else 0.0
        smooth = (_FORGET * before + (1 - _FORGET) * loss) / (1 - _FORGET ** (count + 1))
        return Curve((*self.rates, rate), (*self.losses, loss), (*self.smoothed, smooth))

    def choose(self) -> float:
        """Return the rate to train with.

        Raises:
            ChoralError: the loss never fell.
        """
        late = range(min(_AT_START, len(self.smoothed) - 1), len(self.smoothed))
        lowest = min(late, key=self.smoothed.__getitem__, default=0)
        if not self.smoothed or self.smoothed[lowest] > _MUST_FALL * self.start:
            raise ChoralError(
                "train.lr: auto: no learning rate made the loss fall within the range test; see lr_range.svg, and set "
                "train.lr to a number"
            )
        return self.rates[lowest] / 10


@dataclass(frozen=True)
class _Ramp(Schedule):
    """The schedule of the test itself."""

    def at(self, step: int) -> float:
        share = step / (self.total_steps - 1)
        return float(LOWEST * (HIGHEST / LOWEST) ** share)


def find_rate(trainer: Trainer) -> None:
    """With train.lr: auto, give the trainer's schedule its rate: what an earlier start found, or else a range test.

    The result stands in RUN/lr_range.json and is drawn in RUN/lr_range.svg. All ranks take the main rank's.

    Raises:
        ChoralError: the loss fell at no rate, or was no number from the start.
        Stopped: all ranks agreed to stop; nothing is kept of the test.
    """
    if trainer.config.train.lr != "auto":
        return
    folder, run = trainer.folder.path, trainer.run
    key = _key(trainer)
    known = (read_json(folder / "lr_range.json") or {}) if run.is_main else {}
    found = float(known["lr"]) if known.get("key") == key else 0.0
    found = float(run.broadcast(torch.tensor(found, dtype=torch.float64, device=run.device)).item())
    if not found:
        curve = run_test(trainer)
        if run.is_main:
            write_atomic(folder / "lr_range.svg", draw_curve(curve.rates, curve.losses, curve.smoothed, None))
        found = float(run.broadcast(torch.tensor(curve.choose(), dtype=torch.float64, device=run.device)).item())
        if run.is_main:
            _keep(trainer, curve, found, key)
    trainer.schedule = replace(trainer.schedule, lr=found)


def run_test(trainer: Trainer) -> Curve:
    """Make the steps of the test from the weights as they are, and put everything back as it was.

    With strategy: gradual, all that the last phase trains is trained: its rate is the one that can do harm.

    Raises:
        NotFinite: at the first step; later ones end the test.
        Stopped: all ranks agreed to stop.
    """
    schedule, run = trainer.schedule, trainer.run
    scaler = run.accelerator.scaler
    loss_scale = scaler.state_dict() if scaler is not None else {}
    curve, stop, failure = Curve((), (), ()), False, ""
    if trainer.phase is not trainer.phases[-1]:
        trainer.begin(trainer.phases[-1])
    trainer.schedule = _Ramp(LOWEST, 0, STEPS, 0.0)
    try:
        with trainer.batches_of(range(STEPS)) as loader, holding(trainer.network, trainer.network.state_dict()):
            batches = iter(loader)
            for step in range(STEPS):
                try:
                    loss = run.sum(trainer.train_step(batches, step)).item()
                except NotFinite as error:
                    failure = str(error)
                    break
                curve = curve.add(trainer.last_rate, loss)
                stop = run.should_stop()
                if stop or curve.diverged:
                    break
    finally:
        trainer.schedule = schedule
    trainer.begin(trainer.phases[0])
    if scaler is not None:
        scaler.load_state_dict(loss_scale)
    if stop:
        raise run.stopped("during the range test of train.lr: auto")
    if not curve.rates:
        raise NotFinite(
            f"train.lr: auto: the range test ended before its first update, at a rate of {LOWEST:g} "
            f"({failure.partition(';')[0]}): no rate would help; look at the data, model.weights and train.precision"
        )
    return curve


def _keep(trainer: Trainer, curve: Curve, found: float, key: str) -> None:
    folder = trainer.folder.path
    write_atomic(folder / "lr_range.svg", draw_curve(curve.rates, curve.losses, curve.smoothed, found))
    columns: dict[str, Sequence[float]] = {"rates": curve.rates, "losses": curve.losses, "smoothed": curve.smoothed}
    write_json(folder / "lr_range.json", {"lr": found, "key": key, **columns})
    _log.info(
        "learning rate %.1e, by a range test of %d steps up to %.1e: %s",
        found,
        len(curve.rates),
        curve.rates[-1],
        folder / "lr_range.svg",
    )


def _key(trainer: Trainer) -> str:
    """Return a hash of what decides the test's outcome."""
    values = binding_values(trainer.config)
    lines = [f"{key}={values[key]!r}" for key in sorted(values) if not key.startswith(("evaluate.", "ensemble."))]
    return hashlib.sha256("\n".join([*lines, trainer.fingerprint]).encode()).hexdigest()
