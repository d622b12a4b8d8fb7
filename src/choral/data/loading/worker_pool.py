"""Who makes the images of a batch: the calling thread, threads, or (in worker.py) processes.

All of them take the same tasks, parts of a batch, from one queue, so that a slow image holds up one worker only, and
report each part when it is done. Whatever they are, the pixels are the same.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import NamedTuple, Protocol

import cv2

from choral.data.loading.sample_pipeline import SamplePipeline, Unreadable
from choral.data.loading.slot_ring import Ring


class Task(NamedTuple):
    """Part of a batch: positions `start` to `stop` of the batch number `ticket`, which is built in `slot`."""

    ticket: int
    slot: int
    start: int
    stop: int
    epoch: int


class Done(NamedTuple):
    """A task that ended: the samples that could not be read (positions in the batch), or what went wrong altogether."""

    task: Task
    bad: list[Unreadable]
    error: BaseException | None


class WorkerPool(Protocol):
    """What the loader needs of its workers."""

    def submit(self, task: Task) -> None:
        """Hand out a task; its rows are in the ring already."""

    def collect(self, block: bool) -> Done | None:
        """Return a task that ended, in any order; None if there is none and `block` is False.

        Raises:
            DataError: a worker process died.
        """

    def close(self) -> None:
        """End all workers; may be called more than once."""


def perform(recipe: SamplePipeline, ring: Ring, task: Task, starting: Callable[[int], None]) -> list[Unreadable]:
    """Make the images of one task; `starting` is called with each position in the batch."""
    rows = ring.rows[task.slot, task.start : task.stop]
    images = [own[task.slot, task.start : task.stop] for own in ring.images]
    bad = recipe.fill(rows, task.epoch, images, lambda position: starting(task.start + position))
    return [Unreadable(task.start + position, reason) for position, reason in bad]


class InlineWorkerPool:
    """No workers: a task is done when somebody waits for it."""

    def __init__(self, recipe: SamplePipeline, ring: Ring) -> None:
        cv2.setNumThreads(0)
        self._recipe, self._ring = recipe, ring
        self._tasks: deque[Task] = deque()

    def submit(self, task: Task) -> None:
        """See `WorkerPool`."""
        self._tasks.append(task)

    def collect(self, block: bool) -> Done | None:
        """See `WorkerPool`."""
        if not block:
            return None
        task = self._tasks.popleft()
        try:
            return Done(task, perform(self._recipe, self._ring, task, lambda position: None), None)
        except Exception as error:
            return Done(task, [], error)

    def close(self) -> None:
        """See `WorkerPool`."""
        self._tasks.clear()


class _ClosedError(Exception):
    """Ends a task whose loader was closed."""


class ThreadWorkerPool:
    """Threads of this process: decoding and resizing release the GIL."""

    def __init__(self, recipe: SamplePipeline, ring: Ring, workers: int) -> None:
        # One setting for the whole process, and the only one that OpenCV has: its own threads would fight ours.
        cv2.setNumThreads(0)
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._done: SimpleQueue[Done] = SimpleQueue()
        closing = threading.Event()
        uses_torch = any(form.resize == "antialias" for form in recipe.forms)
        ready = threading.Barrier(workers + 1)
        arguments = (recipe, ring, self._tasks, self._done, closing, ready, uses_torch)
        threads = [
            threading.Thread(target=_serve, args=arguments, name=f"choral-decode-{number}", daemon=True)
            for number in range(workers)
        ]
        _start(threads, ready, uses_torch)
        self._finalizer = weakref.finalize(self, _end, threads, self._tasks, closing)

    def submit(self, task: Task) -> None:
        """See `WorkerPool`."""
        self._tasks.put(task)

    def collect(self, block: bool) -> Done | None:
        """See `WorkerPool`."""
        try:
            return self._done.get(block)
        except Empty:
            return None

    def close(self) -> None:
        """See `WorkerPool`."""
        self._finalizer()


def _start(threads: list[threading.Thread], ready: threading.Barrier, uses_torch: bool) -> None:
    """Start the threads, each with its own torch limited to one thread, and leave the caller's setting as it was.

    torch keeps the number of OpenMP threads per thread, but also remembers the last one that anybody set, for threads
    yet to come. So each worker sets one for itself, and when all have, the caller's number is set again.
    """
    if not uses_torch:
        for thread in threads:
            thread.start()
        ready.wait()
        return
    import torch

    before = torch.get_num_threads()
    for thread in threads:
        thread.start()
    ready.wait()
    torch.set_num_threads(before)


def _serve(
    recipe: SamplePipeline,
    ring: Ring,
    tasks: SimpleQueue[Task | None],
    done: SimpleQueue[Done],
    closing: threading.Event,
    ready: threading.Barrier,
    uses_torch: bool,
) -> None:
    if uses_torch:
        import torch

        torch.set_num_threads(1)
        torch.get_num_threads()  # a thread's first look takes over the number remembered: now, before it changes again
    ready.wait()

    def starting(position: int) -> None:
        if closing.is_set():
            raise _ClosedError

    while (task := tasks.get()) is not None:
        try:
            done.put(Done(task, perform(recipe, ring, task, starting), None))
        except _ClosedError:
            return
        except BaseException as error:  # it is the consumer's to raise
            done.put(Done(task, [], error))


def _end(threads: list[threading.Thread], tasks: SimpleQueue[Task | None], closing: threading.Event) -> None:
    closing.set()
    for _ in threads:
        tasks.put(None)
    for thread in threads:
        if thread is not threading.current_thread():  # garbage may be collected by any thread
            thread.join()
