"""Reports of a training run while it goes: status.json, log lines, and the metric sinks (see `choral.tracking`).

Only the main rank writes. Every rank must make the calls, because the loss is summed over ranks.
"""

from __future__ import annotations

import logging
from types import TracebackType

import torch

from choral.config import Config
from choral.core.process_group import Runtime
from choral.runs.checkpoints import find_checkpoint
from choral.runs.run_dir import RunDir
from choral.tracking import MetricSink
from choral.tracking.jsonl import JsonlSink
from choral.tracking.progress_bar import ProgressBar
from choral.tracking.tensorboard import TensorBoard
from choral.tracking.wandb_run import WandbRun
from choral.training.state import TrainState

_log = logging.getLogger(__name__)


class TrainingReporter:
    """Reports the progress of one training run; a context manager that closes the sinks.

    Args:
        config, run_dir, runtime: of the run.
        start: the state that this start of the run begins with.
        total_steps: optimizer steps of the whole run.
    """

    def __init__(self, config: Config, run_dir: RunDir, runtime: Runtime, start: TrainState, total_steps: int) -> None:
        self._run_dir, self._runtime = run_dir, runtime
        self._batch_size, self._precision = config.train.batch_size, config.train.precision
        self._sends_artifact = config.tracking.artifact
        self._total_steps = total_steps
        self._loss = torch.zeros((), device=runtime.device)
        self._steps = 0
        self._lr = 0.0
        self._images_per_s = 0.0
        self._seconds = 0.0
        self._sinks: list[MetricSink] = []
        self._wandb: WandbRun | None = None
        if runtime.is_main:
            is_member = run_dir.path.parent.name == "members"
            self._wandb = WandbRun(config, run_dir, "member" if is_member else "train")
            self._sinks = [JsonlSink(run_dir.path / "metrics.jsonl", start.step), self._wandb]
            if config.tracking.tensorboard:
                self._sinks.append(TensorBoard(run_dir.path, start.step))
            self._sinks.append(ProgressBar(run_dir.name, start.step, total_steps))

    def __enter__(self) -> TrainingReporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sink in reversed(self._sinks):
            sink.close(failed=error is not None)

    def add_step(self, loss: torch.Tensor, lr: float, seconds: float) -> None:
        """Add one step to the next report, without synchronising the device.

        Args:
            loss: this rank's share of the step's mean loss, 0-d on the device.
            lr: learning rate of the step.
            seconds: duration of the step.
        """
        self._loss += loss
        self._steps += 1
        self._seconds += seconds
        self._lr = lr

    def report_training(self, state: TrainState) -> None:
        """Report loss, learning rate and images/s since the last report; with fp16, also the overflows so far."""
        mean_loss = (self._runtime.sum(self._loss) / self._steps).item()
        self._images_per_s = self._steps * self._batch_size / self._seconds  # time spent in validation is not in it
        self._loss.zero_()
        self._steps, self._seconds = 0, 0.0
        if not self._runtime.is_main:
            return
        eta_s = (self._total_steps - state.step) * self._batch_size / self._images_per_s
        values = {"loss": mean_loss, "lr": self._lr, "images_per_s": self._images_per_s}
        if self._precision == "fp16":
            values["skipped"] = float(state.skipped)
        self._run_dir.write_status(
            state="running",
            step=state.step,
            steps=self._total_steps,
            eta_s=eta_s,
            **values,
            **{f"val_{k}": v for k, v in state.report.items()},
        )
        self._log(state, "train", values)

    def report_validation(self, state: TrainState) -> None:
        """Report the metrics of the validation at this step."""
        if not self._runtime.is_main:
            return
        self._log(state, "val", state.report)
        _log.info(
            "step %d of %d: validation %s%s (%.0f images/s in training)",
            state.step,
            self._total_steps,
            ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in state.report.items() if name != "n"),
            ", the best so far" if state.best_step == state.step else "",
            self._images_per_s,
        )

    def send_best(self) -> None:
        """Upload the best checkpoint to W&B if `tracking.artifact` is set."""
        if self._wandb is not None and self._sends_artifact:
            self._wandb.log_checkpoint(find_checkpoint(self._run_dir.checkpoints, "best"), self._run_dir.name)

    def _log(self, state: TrainState, split: str, values: dict[str, float]) -> None:
        for sink in self._sinks:
            sink.log(state.step, split, values)
