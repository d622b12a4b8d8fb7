"""Handlers for the signals that stop a run."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from types import FrameType


class StopSignals(contextlib.AbstractContextManager["StopSignals"]):
    """A context manager that records stop signals instead of letting them end the process; only in the main thread.

    Attributes:
        stop: whether SIGINT, SIGTERM, SIGHUP or SIGUSR1 (sent by schedulers before the time limit) was received.
        kill: whether SIGINT was received twice: the user does not want to wait.
    """

    def __init__(self) -> None:
        self.stop = self.kill = False
        self._first_interrupt: float | None = None
        self._previous_handlers: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSignals:
        """Install the handlers, except for signals that are ignored."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
                if (
                    signal.getsignal(number) is not signal.SIG_IGN
                ):  # ignored under nohup and in background jobs of scripts
                    self._previous_handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        """Restore the previous handlers."""
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.stop = True
        if number == signal.SIGINT:
            now = time.monotonic()
            # Within 0.5 s it is the same interrupt: timeout(1), for example, signals both the process and its group.
            self.kill = self.kill or (self._first_interrupt is not None and now - self._first_interrupt > 0.5)
            self._first_interrupt = self._first_interrupt or now
