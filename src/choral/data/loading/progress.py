"""Progress of a pass over a split: a bar on a terminal, otherwise a log line every ten seconds."""

from __future__ import annotations

import contextlib
import logging
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_log = logging.getLogger(__name__)
_LINE_EVERY_S = 10.0


class SplitProgress(contextlib.AbstractContextManager["SplitProgress"]):
    """Counts the images that this rank has finished.

    Args:
        task: the activity and its split, such as "evaluating test".
        total: images of this rank, times the passes over them; None: unknown.
        enabled: whether to report progress; usually only on the main rank.
    """

    def __init__(self, task: str, total: int | None, enabled: bool) -> None:
        self._task, self._total, self._enabled = task, total, enabled
        self._done = 0
        self._started = self._last_logged = time.monotonic()
        console = Console(stderr=True)
        self._bar: Progress | None = None
        if enabled and console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=console, transient=True, redirect_stdout=False)
            self._bar.add_task(task, total=total)
            self._bar.start()

    def advance(self, images: int) -> None:
        """Add finished images."""
        self._done += images
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._done)
        elif self._enabled and now - self._last_logged > _LINE_EVERY_S:
            self._last_logged = now
            rate = self._done / (now - self._started)
            total = "" if self._total is None else f" of {self._total}"
            _log.info("%s: %d%s images, %.1f images/s", self._task, self._done, total, rate)

    def stop(self) -> None:
        """Remove the bar before other output is printed; log lines continue."""
        if self._bar is not None:
            self._bar.stop()

    def __exit__(self, *exception: object) -> None:
        self.stop()
