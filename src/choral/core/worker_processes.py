"""Map a function over tasks in worker processes that end with their parent and do not block Ctrl-C."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.synchronize import Event
from typing import TypeVar

from choral.core.errors import DataError

Task = TypeVar("Task")
Result = TypeVar("Result")

_stop: Event | None = None  # set in worker processes


def map_unordered(
    function: Callable[[Task], Result], tasks: Sequence[Task], processes: int
) -> Iterator[tuple[int, Result]]:
    """Yield (index of the task, result) as tasks finish, in any order; with `processes=1` tasks run in this process.

    `function` and the tasks must be picklable; processes are spawned. An exception in a task is raised here, after the
    other workers have stopped. Closing the iterator stops them too.

    Raises:
        DataError: a worker process died.
    """
    processes = min(processes, len(tasks))
    if processes <= 1:
        for number, task in enumerate(tasks):
            yield number, function(task)
        return
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker, initargs=(stop,))
    pending: dict[Future[Result], int] = {}
    remaining = iter(enumerate(tasks))
    try:
        _submit(pool, function, remaining, pending, 2 * processes)
        while pending:
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                yield pending.pop(future), future.result()
            _submit(pool, function, remaining, pending, 2 * processes - len(pending))
    except BrokenProcessPool as error:
        raise DataError("a worker process died (out of memory?): run again with fewer processes to continue") from error
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def is_worker_process() -> bool:
    """Return whether this process is a worker of `map_unordered`."""
    return _stop is not None


def stop_requested() -> bool:
    """Return whether a task in a worker process should stop early; long tasks check this regularly."""
    return _stop is not None and _stop.is_set()


def _submit(
    pool: ProcessPoolExecutor,
    function: Callable[[Task], Result],
    remaining: Iterator[tuple[int, Task]],
    pending: dict[Future[Result], int],
    count: int,
) -> None:
    # The first submit starts the processes. Ctrl-C goes to the whole foreground group. SIGINT is blocked here and so
    # stays blocked in the workers until they ignore it; the parent gets it and stops them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        for _ in range(count):
            if (item := next(remaining, None)) is None:
                break
            pending[pool.submit(function, item[1])] = item[0]
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(stop: Event) -> None:
    global _stop
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Exit when the parent is gone: after kill -9 of the parent, workers would otherwise wait for tasks forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
