"""How far a pass over a split has come: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import contextlib
import logging
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_log = logging.getLogger(__name__)
_LINE_EVERY_S = 10.0


class SplitProgress(contextlib.AbstractContextManager["SplitProgress"]):
    """Counts the images that this rank has finished; silent unless it is the main one.

    Args:
        task: what is done, and to which split: "evaluating test".
        total: images of this rank, times the passes over them; None: nobody knows.
        shown: whether this rank shows anything.
    """

    def __init__(self, task: str, total: int | None, shown: bool) -> None:
        self._task, self._total, self._shown = task, total, shown
        self._done = 0
        self._started = self._said = time.monotonic()
        console = Console(stderr=True)
        self._bar: Progress | None = None
        if shown and console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=console, transient=True, redirect_stdout=False)
            self._bar.add_task(task, total=total)
            self._bar.start()

    def advance(self, images: int) -> None:
        """Count images that are done with."""
        self._done += images
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._done)
        elif self._shown and now - self._said > _LINE_EVERY_S:
            self._said = now
            rate = self._done / (now - self._started)
            of = "" if self._total is None else f" of {self._total}"
            _log.info("%s: %d%s images, %.1f images/s", self._task, self._done, of, rate)

    def stop(self) -> None:
        """Take the bar away, before something else is printed there; lines go on."""
        if self._bar is not None:
            self._bar.stop()

    def __exit__(self, *exception: object) -> None:
        self.stop()
