"""A function over many tasks in worker processes that neither outlive their parent nor swallow Ctrl-C."""

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


def run(function: Callable[[Task], Result], tasks: Sequence[Task], processes: int) -> Iterator[tuple[int, Result]]:
    """Yield (number of the task, result) as tasks finish, in any order; one process works in the caller.

    `function` and the tasks must be picklable; processes are spawned. An exception of a task is raised here, after the
    other workers have stopped; closing the iterator stops them too.

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
    waiting: dict[Future[Result], int] = {}
    todo = iter(enumerate(tasks))
    try:
        _submit(pool, function, todo, waiting, 2 * processes)
        while waiting:
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                yield waiting.pop(future), future.result()
            _submit(pool, function, todo, waiting, 2 * processes - len(waiting))
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process died (out of memory?): run again with fewer processes, it continues"
        ) from error
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def in_worker() -> bool:
    """Tell whether this process was started by `run` and ends with it."""
    return _stop is not None


def stopping() -> bool:
    """Tell a task in a worker process whether its result is still wanted; long tasks ask now and then."""
    return _stop is not None and _stop.is_set()


def _submit(
    pool: ProcessPoolExecutor,
    function: Callable[[Task], Result],
    todo: Iterator[tuple[int, Task]],
    waiting: dict[Future[Result], int],
    count: int,
) -> None:
    # The first submit starts the processes. Ctrl-C goes to the whole foreground group: blocked here, it stays blocked
    # in them until they have learnt to ignore it, and reaches the parent, which stops them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        for _ in range(count):
            if (item := next(todo, None)) is None:
                break
            waiting[pool.submit(function, item[1])] = item[0]
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(stop: Event) -> None:
    global _stop
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A pool's workers would wait for ever for tasks of a parent that was killed with -9."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
