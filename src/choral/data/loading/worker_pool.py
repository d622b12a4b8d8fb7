"""Who decodes the samples of a batch: the calling thread, worker threads, or worker processes (in worker_process.py).

All take tasks, each a part of a batch, from one queue, so that a slow image delays only one worker, and report each
part when it is done. The pixels are the same whoever decodes them.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import NamedTuple, Protocol

import cv2

from choral.data.loading.sample_pipeline import SamplePipeline, UnreadableSample
from choral.data.loading.slot_ring import SlotRing


class DecodeTask(NamedTuple):
    """Part of a batch: positions `start` to `stop` of batch number `batch`, which is built in `slot`."""

    batch: int
    slot: int
    start: int
    stop: int
    epoch: int


class TaskResult(NamedTuple):
    """A finished task."""

    task: DecodeTask
    unreadable: list[UnreadableSample]
    """With positions in the batch."""
    error: BaseException | None
    """The exception that ended the task early; None: it ran to its end."""


class WorkerPool(Protocol):
    """The workers of a `HostLoader`."""

    def submit(self, task: DecodeTask) -> None:
        """Queue a task; its rows are already in the ring."""

    def collect(self, block: bool) -> TaskResult | None:
        """Return a finished task, in any order; None if there is none and `block` is False.

        Raises:
            DataError: a worker process died.
        """

    def close(self) -> None:
        """Stop all workers; may be called more than once."""


def run_task(
    samples: SamplePipeline, ring: SlotRing, task: DecodeTask, on_start: Callable[[int], None]
) -> list[UnreadableSample]:
    """Load the images of a task into the ring; `on_start` is called with the position of each sample in the batch."""
    rows = ring.rows[task.slot, task.start : task.stop]
    images = [slots[task.slot, task.start : task.stop] for slots in ring.images]
    unreadable = samples.load(rows, task.epoch, images, lambda position: on_start(task.start + position))
    return [UnreadableSample(task.start + position, reason) for position, reason in unreadable]


class InlineWorkerPool:
    """No workers: `collect` runs the task in the calling thread."""

    def __init__(self, samples: SamplePipeline, ring: SlotRing) -> None:
        cv2.setNumThreads(0)
        self._samples, self._ring = samples, ring
        self._tasks: deque[DecodeTask] = deque()

    def submit(self, task: DecodeTask) -> None:
        """See `WorkerPool`."""
        self._tasks.append(task)

    def collect(self, block: bool) -> TaskResult | None:
        """See `WorkerPool`."""
        if not block:
            return None
        task = self._tasks.popleft()
        try:
            return TaskResult(task, run_task(self._samples, self._ring, task, lambda position: None), None)
        except Exception as error:
            return TaskResult(task, [], error)

    def close(self) -> None:
        """See `WorkerPool`."""
        self._tasks.clear()


class _ClosedError(Exception):
    """Ends a task after its loader was closed."""


@dataclass(frozen=True)
class _SharedState:
    """What a pool and its threads share."""

    samples: SamplePipeline
    ring: SlotRing
    tasks: SimpleQueue[DecodeTask | None]
    results: SimpleQueue[TaskResult]
    closing: threading.Event
    ready: threading.Barrier
    uses_torch: bool


class ThreadWorkerPool:
    """Threads of this process; decoding and resizing release the GIL."""

    def __init__(self, samples: SamplePipeline, ring: SlotRing, workers: int) -> None:
        # OpenCV has one setting for the whole process. Its own threads would compete with ours.
        cv2.setNumThreads(0)
        self._tasks: SimpleQueue[DecodeTask | None] = SimpleQueue()
        self._results: SimpleQueue[TaskResult] = SimpleQueue()
        uses_torch = any(spec.resize == "antialias" for spec in samples.image_specs)
        shared = _SharedState(
            samples, ring, self._tasks, self._results, threading.Event(), threading.Barrier(workers + 1), uses_torch
        )
        threads = [
            threading.Thread(target=_worker_loop, args=(shared,), name=f"choral-decode-{number}", daemon=True)
            for number in range(workers)
        ]
        _start_threads(threads, shared)
        self._finalizer = weakref.finalize(self, _stop_threads, threads, shared)

    def submit(self, task: DecodeTask) -> None:
        """See `WorkerPool`."""
        self._tasks.put(task)

    def collect(self, block: bool) -> TaskResult | None:
        """See `WorkerPool`."""
        try:
            return self._results.get(block)
        except Empty:
            return None

    def close(self) -> None:
        """See `WorkerPool`."""
        self._finalizer()


def _start_threads(threads: list[threading.Thread], shared: _SharedState) -> None:
    """Start the threads, each with torch limited to one thread, and leave the caller's torch setting unchanged.

    torch keeps the number of OpenMP threads per thread, but also remembers the last number that any thread set, for
    threads that start later. So each worker sets its own number to one, and once all have, the caller's number is set
    again.
    """
    if not shared.uses_torch:
        for thread in threads:
            thread.start()
        shared.ready.wait()
        return
    import torch

    before = torch.get_num_threads()
    for thread in threads:
        thread.start()
    shared.ready.wait()
    torch.set_num_threads(before)


def _worker_loop(shared: _SharedState) -> None:
    if shared.uses_torch:
        import torch

        torch.set_num_threads(1)
        # The first call in a thread adopts the remembered number: call it now, before that number changes again.
        torch.get_num_threads()
    shared.ready.wait()

    def stop_if_closed(position: int) -> None:
        if shared.closing.is_set():
            raise _ClosedError

    while (task := shared.tasks.get()) is not None:
        try:
            shared.results.put(TaskResult(task, run_task(shared.samples, shared.ring, task, stop_if_closed), None))
        except _ClosedError:
            return
        except BaseException as error:  # raised again in the consumer's thread
            shared.results.put(TaskResult(task, [], error))


def _stop_threads(threads: list[threading.Thread], shared: _SharedState) -> None:
    shared.closing.set()
    for _ in threads:
        shared.tasks.put(None)
    for thread in threads:
        if thread is not threading.current_thread():  # the garbage collector may run this in a worker
            thread.join()
