"""The progress bar of training, for terminals."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class ProgressBar:
    """A metric sink that displays step, loss and images per second if stderr is a terminal.

    Args:
        name: of the run.
        start_step: optimizer steps that are already done.
        total_steps: of the whole training.
    """

    def __init__(self, name: str, start_step: int, total_steps: int) -> None:
        self._progress: Progress | None = None
        console = Console(stderr=True)
        if not console.is_terminal:
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("step {task.completed}/{task.total}  loss {task.fields[loss]}  {task.fields[speed]} images/s"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=console)
        self._progress.add_task(name, total=total_steps, completed=start_step, loss="-", speed="-")
        self._progress.start()

    def log(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Advance the bar; only values of the split "train" are displayed."""
        if self._progress is not None and split == "train":
            loss, speed = f"{values['loss']:.3f}", f"{values['images_per_s']:.0f}"
            self._progress.update(self._progress.task_ids[0], completed=step, loss=loss, speed=speed)

    def close(self, failed: bool) -> None:
        """Stop updating; the bar stays on the terminal."""
        if self._progress is not None:
            self._progress.stop()
