"""What a run tells while it goes: status.json, a line of the log, and what its sinks take (see `choral.tracking`).

Only the main rank writes; every rank must make the calls, since the loss is summed over ranks.
"""

from __future__ import annotations

import logging
from types import TracebackType

import torch

from choral.config import Config
from choral.core.process_group import Runtime
from choral.runs.checkpoints import checkpoint_of
from choral.runs.run_dir import RunDir
from choral.tracking import Sink
from choral.tracking.bar import Bar
from choral.tracking.jsonl import JsonLines
from choral.tracking.tensorboard import TensorBoard
from choral.tracking.wandb_run import WandbRun
from choral.training.optimizer import Schedule
from choral.training.state import TrainState

_log = logging.getLogger(__name__)


class Tracker:
    """Reports of one training run; a context manager.

    Args:
        config, folder, run: of the run.
        start: where this start begins.
        schedule: tells the number of steps.
    """

    def __init__(self, config: Config, folder: RunDir, run: Runtime, start: TrainState, schedule: Schedule) -> None:
        self._config, self._folder, self._run = config, folder, run
        self._total = schedule.total_steps
        self._loss = torch.zeros((), device=run.device)
        self._steps = 0
        self._rate = 0.0
        self._images_per_s = 0.0
        self._seconds = 0.0
        self._sinks: list[Sink] = []
        self._wandb: WandbRun | None = None
        if run.is_main:
            member = folder.path.parent.name == "members"
            self._wandb = WandbRun(config, folder, "member" if member else "train")
            self._sinks = [JsonLines(folder.path / "metrics.jsonl", start.step), self._wandb]
            if config.tracking.tensorboard:
                self._sinks.append(TensorBoard(folder.path, start.step))
            self._sinks.append(Bar(folder.name, start.step, self._total))

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sink in reversed(self._sinks):
            sink.close(failed=error is not None)

    def count(self, loss: torch.Tensor, rate: float, seconds: float) -> None:
        """Add a step's share of the loss (0-d, on the device) and its duration to the next report; no synchronisation."""
        self._loss += loss
        self._steps += 1
        self._seconds += seconds
        self._rate = rate

    def report_training(self, state: TrainState) -> None:
        """Report loss, rate and speed since the last report; with fp16, how many attempts at a step were in vain."""
        mean_loss = (self._run.sum(self._loss) / self._steps).item()
        self._images_per_s = self._steps * self._config.train.batch_size / self._seconds  # validation does not count
        self._loss.zero_()
        self._steps, self._seconds = 0, 0.0
        if not self._run.is_main:
            return
        eta_s = (self._total - state.step) * self._config.train.batch_size / self._images_per_s
        values = {"loss": mean_loss, "lr": self._rate, "images_per_s": self._images_per_s}
        if self._config.train.precision == "fp16":
            values["skipped"] = float(state.skipped)
        self._folder.report(
            state="running",
            step=state.step,
            steps=self._total,
            eta_s=eta_s,
            **values,
            **{f"val_{k}": v for k, v in state.report.items()},
        )
        self._log(state, "train", values)

    def report_validation(self, state: TrainState) -> None:
        """Report what the validation at this step found."""
        if not self._run.is_main:
            return
        self._log(state, "val", state.report)
        _log.info(
            "step %d of %d: validation %s%s (%.0f images/s in training)",
            state.step,
            self._total,
            ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in state.report.items() if name != "n"),
            ", the best so far" if state.best_step == state.step else "",
            self._images_per_s,
        )

    def send_best(self) -> None:
        """Send the best checkpoint to W&B, where the config asks for it."""
        if self._wandb is not None and self._config.tracking.artifact:
            self._wandb.send_checkpoint(checkpoint_of(self._folder.checkpoints, "best"), self._folder.name)

    def _log(self, state: TrainState, split: str, values: dict[str, float]) -> None:
        for sink in self._sinks:
            sink.log(state.step, split, values)
