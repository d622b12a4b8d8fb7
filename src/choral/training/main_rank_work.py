"""Work that the main rank does alone, however long it takes, while the others wait and everybody can be asked to stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

import torch

from choral.core.errors import ChoralError
from choral.core.process_group import Runtime

_TURN_S = 0.2
T = TypeVar("T")


class _GivenUpError(Exception):
    """Raised inside the work, where it can be left, once a stop was asked for."""


def on_main_rank(run: Runtime, work: Callable[[Callable[[], None]], T], what: str) -> T | None:
    """Return what `work` returns on the main rank, None on the others; every rank must call it.

    The work is done in a thread. Meanwhile ranks tell each other several times a second that they are there, so that
    `train.timeout_s` is about ranks that are silent, not about work that takes long.

    Args:
        run: this rank.
        work: is given a function to call where it can be left, which ends it if a stop was asked for.
        what: is being done, such as "fitting the head".

    Raises:
        Stopped: on all ranks, once the work was left.
        ChoralError: on the other ranks, where the work failed; on the main rank the work's own exception.
    """
    stop = threading.Event()
    results: list[T] = []
    failures: list[BaseException] = []

    def leave_if_asked() -> None:
        if stop.is_set():
            raise _GivenUpError

    def body() -> None:
        try:
            results.append(work(leave_if_asked))
        except BaseException as error:  # it is raised in the main thread
            failures.append(error)

    thread = threading.Thread(target=body, name=what, daemon=True) if run.is_main else None
    if thread is not None:
        thread.start()
    while True:
        if thread is not None:
            thread.join(_TURN_S)
        else:
            time.sleep(_TURN_S / 2)
        over = thread is not None and not thread.is_alive()
        given_up = over and any(isinstance(failure, _GivenUpError) for failure in failures)
        failed = over and bool(failures) and not given_up
        told = torch.tensor([over, given_up, failed, run.told_to_stop], device=run.device)
        is_over, is_given_up, has_failed, is_to_stop = (run.sum(told.float()) > 0).tolist()
        if is_to_stop:
            stop.set()
        if is_given_up:
            raise run.stopped(f"while {what}")
        if has_failed:
            raise failures[0] if failures else ChoralError(f"{what} failed on the main rank, which says why")
        if is_over:
            return results[0] if results else None
