"""What a run tells while it goes: a line on the terminal, metrics.jsonl, status.json, and W&B.

Only the main rank writes; every rank must make the calls, since the loss is summed over ranks.
"""

from __future__ import annotations

import json
import logging
import netrc
import os
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from choral.config import Config
from choral.configfile import to_values
from choral.runfolder import RunFolder, write_atomic
from choral.runtime import Runtime
from choral.train.optim import Schedule
from choral.train.state import TrainState

_log = logging.getLogger(__name__)


class Tracker:
    """Reports of one training run; a context manager.

    Args:
        config, folder, run: of the run.
        start: where this start begins; reports of later steps, by a start that was killed, are dropped.
        schedule: tells the number of steps.
    """

    def __init__(self, config: Config, folder: RunFolder, run: Runtime, start: TrainState, schedule: Schedule) -> None:
        self._config, self._folder, self._run = config, folder, run
        self._total = schedule.total_steps
        self._loss = torch.zeros((), device=run.device)
        self._steps = 0
        self._rate = 0.0
        self._images_per_s = 0.0
        self._seconds = 0.0
        self._metrics = folder.path / "metrics.jsonl"
        self._wandb: Any = None
        self._bar: Progress | None = None
        if run.is_main:
            _drop_reports_after(self._metrics, start.step)
            self._wandb = _start_wandb(config, folder)
            self._start_bar(start.step)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if error is None else 1)

    def count(self, loss: torch.Tensor, rate: float, seconds: float) -> None:
        """Add a step's share of the loss (0-d, on the device) and its duration to the next report; no synchronisation."""
        self._loss += loss
        self._steps += 1
        self._seconds += seconds
        self._rate = rate

    def report_training(self, state: TrainState) -> None:
        """Report loss, rate and speed since the last report."""
        mean_loss = (self._run.sum(self._loss) / self._steps).item()
        self._images_per_s = self._steps * self._config.train.batch_size / self._seconds  # validation does not count
        self._loss.zero_()
        self._steps, self._seconds = 0, 0.0
        if not self._run.is_main:
            return
        eta_s = (self._total - state.step) * self._config.train.batch_size / self._images_per_s
        values = {"loss": mean_loss, "lr": self._rate, "images_per_s": self._images_per_s}
        self._write(state, "train", values)
        self._folder.report(
            state="running",
            step=state.step,
            steps=self._total,
            eta_s=eta_s,
            **values,
            **{f"val_{k}": v for k, v in state.report.items()},
        )
        if self._bar is not None:
            self._bar.update(
                self._bar.task_ids[0], completed=state.step, loss=f"{mean_loss:.3f}", speed=f"{self._images_per_s:.0f}"
            )

    def report_validation(self, state: TrainState) -> None:
        """Report what the validation at this step found."""
        if not self._run.is_main:
            return
        self._write(state, "val", state.report)
        _log.info(
            "step %d of %d: validation %s%s (%.0f images/s in training)",
            state.step,
            self._total,
            ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in state.report.items() if name != "n"),
            ", the best so far" if state.best_step == state.step else "",
            self._images_per_s,
        )

    def _write(self, state: TrainState, split: str, values: dict[str, float]) -> None:
        line = {"step": state.step, "split": split, **values, "time": round(time.time(), 3)}
        with self._metrics.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        if self._wandb is not None:
            self._wandb.log({f"{split}/{key}": value for key, value in values.items()}, step=state.step)

    def _start_bar(self, start_step: int) -> None:
        console = Console(stderr=True)
        if not console.is_terminal:
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("step {task.completed}/{task.total}  loss {task.fields[loss]}  {task.fields[speed]} images/s"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=console)
        self._bar.add_task(self._folder.name, total=self._total, completed=start_step, loss="-", speed="-")
        self._bar.start()


def _drop_reports_after(path: Path, step: int) -> None:
    """Remove the reports of steps that are about to be made again, and a line that was cut off."""
    if not path.is_file():
        return
    kept: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError):
            continue
    write_atomic(path, "".join(line + "\n" for line in kept))


def _start_wandb(config: Config, folder: RunFolder) -> Any:
    """Start a W&B run, or return None; what goes wrong there is said once and does not stop the training."""
    mode: str = config.tracking.wandb
    if mode == "off":
        return None
    if mode == "auto":
        mode = "online" if os.environ.get("WANDB_MODE") != "offline" and _logged_in_to_wandb() else "offline"
    os.environ.setdefault("WANDB_SILENT", "true")
    if mode != "online":  # offline must mean it: wandb's own telemetry would still call home
        os.environ["WANDB_MODE"] = "offline"
        os.environ["WANDB_ERROR_REPORTING"] = "false"
    try:
        import wandb

        group = folder.path.parent.parent.name if folder.path.parent.name == "members" else None
        return wandb.init(
            project=config.tracking.project,
            entity=config.tracking.entity,
            name=folder.name,
            group=group,
            job_type="member" if group else "train",
            dir=str(folder.path),
            mode="online" if mode == "online" else "offline",
            id=_wandb_id(folder),
            resume="allow" if mode == "online" else None,
            config=to_values(config),
            settings=wandb.Settings(console="off", x_disable_stats=True, x_disable_meta=True),
        )
    except Exception as error:  # a tracker must never cost a training run
        _log.warning("W&B could not start (%s): metrics go to %s only", error, folder.path / "metrics.jsonl")
        return None


def _wandb_id(folder: RunFolder) -> str:
    """Return the run's id, the same at every start, so that a continued run continues its curves."""
    path = folder.path / "wandb-id"
    if not path.is_file():
        write_atomic(path, uuid.uuid4().hex[:16] + "\n")
    return path.read_text(encoding="utf-8").strip()


def _logged_in_to_wandb() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
