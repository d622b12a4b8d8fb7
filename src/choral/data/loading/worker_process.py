"""Decoding in worker processes: they are isolated from Python-heavy training code and scale to many cores.

A worker is a fresh interpreter, as with `spawn`, but it does not import the caller's main script again, which would
load torch and timm into every worker. It shares three things with its parent:

- the ring, by file descriptor: rows in, images out; no tensor is pickled;
- a pipe of tasks that all workers read. A task has a fixed size far below PIPE_BUF, so that reads and writes are
  atomic, and the next idle worker takes it;
- a connection of its own, on which it receives the sample pipeline and reports finished tasks. When it closes, the
  parent knows that the worker died.

A worker lives as long as the other end of the pipe of tasks, so it also ends when a signal kills the parent. For that
reason the signals that stop a job are blocked in workers: the parent may need some more batches before it saves.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import signal
import struct
import subprocess
import sys
import traceback
import weakref
from collections import deque
from multiprocessing.connection import Connection, Pipe, wait

import cv2
import numpy as np
from numpy.typing import NDArray

from choral.core.errors import DataError
from choral.data.loading.sample_pipeline import SamplePipeline
from choral.data.loading.slot_ring import RingShape, SlotRing, anonymous_memory
from choral.data.loading.worker_pool import DecodeTask, TaskResult, run_task

_TASK_STRUCT = struct.Struct("<5q")
_BLOCKED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
_ORPHAN_CHECK_MS = 2000
_MAX_NAMED_KEYS = 8
_WORKER_SCRIPT = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from choral.data.loading.worker_process import main
main(*map(int, sys.argv[2:]))
"""


class WorkerError(Exception):
    """An exception in a worker process; its argument is the traceback, as text."""

    def __str__(self) -> str:
        """Return the traceback, preceded by its origin."""
        return f"in a decoding process:\n{self.args[0]}"


class ProcessWorkerPool:
    """Worker processes that share the ring in `ring`."""

    def __init__(self, samples: SamplePipeline, shape: RingShape) -> None:
        self._index = samples.index
        descriptor, memory = anonymous_memory(SlotRing.num_bytes(shape))
        self.ring = SlotRing(shape, memory)
        self.ring.busy[:, 0] = -1
        task_reader, self._task_writer = os.pipe()
        # A worker whose task another one took must not block in `read`, where it could not notice its parent's death.
        os.set_blocking(task_reader, False)
        self._connections: list[Connection] = []
        self._workers: list[subprocess.Popen[bytes]] = []
        self._finalizer = weakref.finalize(self, _stop_processes, self._workers, self._connections, self._task_writer)
        try:
            for number in range(shape.workers):
                self._start(number, descriptor, task_reader)
        finally:
            os.close(descriptor)
            os.close(task_reader)
        self._results: deque[TaskResult] = deque()
        for number, connection in enumerate(self._connections):
            try:
                connection.send((samples, shape))
            except OSError:
                raise self._death_error(number) from None

    def _start(self, number: int, descriptor: int, task_reader: int) -> None:
        parent_end, worker_end = Pipe()
        numbers = (number, descriptor, task_reader, worker_end.fileno(), os.getpid())
        command = [sys.executable, "-c", _WORKER_SCRIPT, json.dumps(sys.path), *map(str, numbers)]
        # One thread each, and no GPU: a CUDA context takes half a GiB of GPU memory in every worker.
        single_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        environment = {**os.environ, **single_thread, "CUDA_VISIBLE_DEVICES": ""}
        passed = (descriptor, task_reader, worker_end.fileno())
        # A new process inherits blocked signals from its first instruction on; installing a handler would come too
        # late.
        previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED_SIGNALS)
        try:
            self._workers.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=passed, env=environment))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)
        self._connections.append(parent_end)
        worker_end.close()

    def submit(self, task: DecodeTask) -> None:
        """See `WorkerPool`."""
        try:
            os.write(self._task_writer, _TASK_STRUCT.pack(*task))
        except BrokenPipeError:  # all workers have died: `collect` raises why
            return

    def collect(self, block: bool) -> TaskResult | None:
        """See `WorkerPool`."""
        if not self._results:
            for connection in wait(self._connections, None if block else 0):
                assert isinstance(connection, Connection)
                self._receive(connection)
        return self._results.popleft() if self._results else None

    def _receive(self, connection: Connection) -> None:
        try:
            task, unreadable, traceback_text = connection.recv()
        except (EOFError, OSError):
            raise self._death_error(self._connections.index(connection)) from None
        self._results.append(TaskResult(task, unreadable, WorkerError(traceback_text) if traceback_text else None))

    def _death_error(self, number: int) -> DataError:
        status = self._workers[number].wait()
        reason = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
        hint = " (out of memory?)" if status == -signal.SIGKILL else ""
        return DataError(f"decoding process {number} {reason}{hint} {self._describe_work(number)}")

    def _describe_work(self, number: int) -> str:
        """Return which sample a dead worker was decoding, and which ones were next in its task."""
        slot, position, stop = self.ring.busy[number].tolist()
        if slot < 0:
            return "while it was idle"
        rows = self.ring.rows[slot, position : min(stop, position + _MAX_NAMED_KEYS)]
        keys = self._index.keys(rows % len(self._index))
        following = f"; next in its task: {', '.join(map(repr, keys[1:]))}" if len(keys) > 1 else ""
        return f"while it was decoding sample {keys[0]!r}{following}"

    def close(self) -> None:
        """See `WorkerPool`."""
        self._finalizer()


def _stop_processes(workers: list[subprocess.Popen[bytes]], connections: list[Connection], task_writer: int) -> None:
    os.close(task_writer)
    for worker in workers:
        worker.kill()  # it holds nothing that could be left half-written
    for worker in workers:
        worker.wait()
    for connection in connections:
        connection.close()


def main(number: int, descriptor: int, tasks: int, connection_descriptor: int, parent: int) -> None:
    """Run worker `number` until the parent ends or closes the pipe of tasks.

    Args:
        number: of the worker.
        descriptor, tasks, connection_descriptor: of the ring's memory, the pipe of tasks and the connection to the
            parent.
        parent: its process id.
    """
    cv2.setNumThreads(0)
    connection = Connection(connection_descriptor)
    try:
        samples, shape = connection.recv()
        ring = SlotRing(shape, mmap.mmap(descriptor, SlotRing.num_bytes(shape)))
        task_poll = select.poll()
        task_poll.register(tasks, select.POLLIN)
        while (task := _next_task(tasks, task_poll, parent)) is not None:
            connection.send(_run_task(samples, ring, task, ring.busy[number]))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent has ended


def _next_task(tasks: int, task_poll: select.poll, parent: int) -> DecodeTask | None:
    while True:
        ready = task_poll.poll(_ORPHAN_CHECK_MS)
        if os.getppid() != parent:  # another process may have inherited the pipe's other end and keep it open
            return None
        if not ready:
            continue
        try:
            data = os.read(tasks, _TASK_STRUCT.size)
        except BlockingIOError:
            continue
        return DecodeTask(*_TASK_STRUCT.unpack(data)) if data else None


def _run_task(
    samples: SamplePipeline, ring: SlotRing, task: DecodeTask, busy: NDArray[np.int64]
) -> tuple[DecodeTask, object, str | None]:
    """Run a task; return it, its unreadable samples, and the traceback of an exception or None."""

    def record_position(position: int) -> None:
        busy[:] = task.slot, position, task.stop

    try:
        unreadable = run_task(samples, ring, task, record_position)
    except Exception:  # sent as text: exceptions of other libraries need not survive pickling
        return task, [], traceback.format_exc()
    finally:
        busy[0] = -1
    return task, unreadable, None
