"""Long work on the main rank alone, while the other ranks wait and every rank can still be asked to stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

import torch

from choral.core.errors import ChoralError
from choral.core.process_group import Runtime

_POLL_S = 0.2
T = TypeVar("T")


class _CancelledError(Exception):
    """Raised inside the work at a cancellation point, after a stop was requested."""


def run_on_main_rank(runtime: Runtime, work: Callable[[Callable[[], None]], T], description: str) -> T | None:
    """Return the result of `work` on the main rank and None on the others; every rank must call it.

    The work runs in a thread. Meanwhile the ranks exchange flags several times a second, so `train.timeout_s` limits how
    long a rank may be silent, not how long the work may take.

    Args:
        runtime: this rank.
        work: takes a function to call at its cancellation points, which ends the work if a stop was requested.
        description: of the work, for messages, such as "fitting the head".

    Raises:
        Stopped: on all ranks, after the work was cancelled.
        ChoralError: on the other ranks, if the work failed; the main rank raises the work's own exception.
    """
    stop = threading.Event()
    results: list[T] = []
    failures: list[BaseException] = []

    def cancel_if_stopped() -> None:
        if stop.is_set():
            raise _CancelledError

    def body() -> None:
        try:
            results.append(work(cancel_if_stopped))
        except BaseException as error:  # raised again in the main thread
            failures.append(error)

    thread = threading.Thread(target=body, name=description, daemon=True) if runtime.is_main else None
    if thread is not None:
        thread.start()
    while True:
        if thread is not None:
            thread.join(_POLL_S)
        else:
            time.sleep(_POLL_S / 2)
        over = thread is not None and not thread.is_alive()
        cancelled = over and any(isinstance(failure, _CancelledError) for failure in failures)
        failed = over and bool(failures) and not cancelled
        flags = torch.tensor([over, cancelled, failed, runtime.stop_requested], device=runtime.device)
        any_over, any_cancelled, any_failed, any_stop = (runtime.sum(flags.float()) > 0).tolist()
        if any_stop:
            stop.set()
        if any_cancelled:
            raise runtime.stop_error(f"while {description}")
        if any_failed:
            raise failures[0] if failures else ChoralError(f"{description} failed on the main rank; see its message")
        if any_over:
            return results[0] if results else None
