"""Signals that ask a whole run to stop."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from types import FrameType


class StopSignals(contextlib.AbstractContextManager["StopSignals"]):
    """Takes note of signals that ask for a stop, instead of dying from them, while it is entered in the main thread.

    Attributes:
        stop: SIGINT, SIGTERM, SIGHUP or SIGUSR1 (schedulers: time is running out) came.
        kill: SIGINT came again: somebody at the keyboard does not want to wait.
    """

    def __init__(self) -> None:
        self.stop = self.kill = False
        self._first_interrupt: float | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSignals:
        """Take over the signals that are not ignored."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
                if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, background jobs of scripts
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        """Give them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.stop = True
        if number == signal.SIGINT:
            now = time.monotonic()
            # Not the same one twice: timeout(1), for one, signals both the process and its group.
            self.kill = self.kill or (self._first_interrupt is not None and now - self._first_interrupt > 0.5)
            self._first_interrupt = self._first_interrupt or now
