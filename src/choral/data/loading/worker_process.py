"""Decoding in processes of their own: they shield from Python-heavy training code and scale to many cores.

A worker is a fresh interpreter (`spawn`, but without importing the caller's main script again, which would load torch
and timm into every worker). It shares three things with its parent:

- the ring, by descriptor: rows in, images out; no tensor is pickled;
- a pipe of tasks, read by all workers: a task has a fixed size far below PIPE_BUF, so reads and writes of it are
  atomic, and whoever is free takes the next one;
- a connection of its own, on which it gets the recipe and reports what is done. It also tells its parent of its death.

A worker lives as long as the other end of the pipe of tasks: when the parent ends, by whatever signal, it ends too. For
that reason the signals that stop a job are kept from it; the parent may want some more batches before it saves.
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
from choral.data.loading.slot_ring import Ring, RingShape, anonymous_memory
from choral.data.loading.worker_pool import Done, Task, perform
from choral.data.shards.index import Index

_TASK = struct.Struct("<5q")
_LEFT_TO_THE_PARENT = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
_ORPHAN_CHECK_MS = 2000
_KEYS_NAMED = 8
_START = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from choral.data.loading.worker_process import main
main(*map(int, sys.argv[2:]))
"""


class WorkerError(Exception):
    """The traceback of an exception in a worker process, as text."""

    def __str__(self) -> str:
        """Say where it comes from."""
        return f"in a decoding process:\n{self.args[0]}"


class ProcessWorkerPool:
    """Worker processes on one ring, which is in `ring`."""

    def __init__(self, recipe: SamplePipeline, shape: RingShape, index: Index) -> None:
        self._index = index
        descriptor, memory = anonymous_memory(Ring.bytes_of(shape))
        self.ring = Ring(shape, memory)
        self.ring.busy[:, 0] = -1
        task_reader, self._tasks = os.pipe()
        os.set_blocking(
            task_reader, False
        )  # a worker that another one forestalled must not wait where it cannot see a death
        self._connections: list[Connection] = []
        self._workers: list[subprocess.Popen[bytes]] = []
        self._finalizer = weakref.finalize(self, _end, self._workers, self._connections, self._tasks)
        try:
            for number in range(shape.workers):
                self._start(number, descriptor, task_reader)
        finally:
            os.close(descriptor)
            os.close(task_reader)
        self._done: deque[Done] = deque()
        for number, connection in enumerate(self._connections):
            try:
                connection.send((recipe, shape))
            except OSError:
                raise self._death(number) from None

    def _start(self, number: int, descriptor: int, task_reader: int) -> None:
        ours, theirs = Pipe()
        numbers = (number, descriptor, task_reader, theirs.fileno(), os.getpid())
        command = [sys.executable, "-c", _START, json.dumps(sys.path), *map(str, numbers)]
        # One thread each, and no GPU: a CUDA context in every worker would cost half a GiB of its memory.
        single = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        environment = {**os.environ, **single, "CUDA_VISIBLE_DEVICES": ""}
        passed = (descriptor, task_reader, theirs.fileno())
        # A new process keeps signals blocked from its first instruction on; a handler of its own would come too late.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_THE_PARENT)
        try:
            self._workers.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=passed, env=environment))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        self._connections.append(ours)
        theirs.close()

    def submit(self, task: Task) -> None:
        """See `Crew`."""
        try:
            os.write(self._tasks, _TASK.pack(*task))
        except BrokenPipeError:  # all have died: `collect` says of what
            return

    def collect(self, block: bool) -> Done | None:
        """See `Crew`."""
        if not self._done:
            for connection in wait(self._connections, None if block else 0):
                assert isinstance(connection, Connection)
                self._receive(connection)
        return self._done.popleft() if self._done else None

    def _receive(self, connection: Connection) -> None:
        try:
            task, bad, failure = connection.recv()
        except (EOFError, OSError):
            raise self._death(self._connections.index(connection)) from None
        self._done.append(Done(task, bad, WorkerError(failure) if failure else None))

    def _death(self, number: int) -> DataError:
        status = self._workers[number].wait()
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
        hint = " (out of memory?)" if status == -signal.SIGKILL else ""
        return DataError(f"decoding process {number} {how}{hint} {self._held(number)}")

    def _held(self, number: int) -> str:
        slot, position, stop = self.ring.busy[number].tolist()
        if slot < 0:
            return "while it held no sample"
        rows = self.ring.rows[slot, position : min(stop, position + _KEYS_NAMED)]
        keys = self._index.keys(rows % len(self._index))
        following = f"; next in its hands: {', '.join(map(repr, keys[1:]))}" if len(keys) > 1 else ""
        return f"while it read sample {keys[0]!r}{following}"

    def close(self) -> None:
        """See `Crew`."""
        self._finalizer()


def _end(workers: list[subprocess.Popen[bytes]], connections: list[Connection], tasks: int) -> None:
    os.close(tasks)
    for worker in workers:
        worker.kill()  # it holds nothing that could be left half-done
    for worker in workers:
        worker.wait()
    for connection in connections:
        connection.close()


def main(number: int, descriptor: int, tasks: int, reports: int, parent: int) -> None:
    """Be worker `number`, until the parent ends or closes the pipe of tasks."""
    cv2.setNumThreads(0)
    connection = Connection(reports)
    try:
        recipe, shape = connection.recv()
        ring = Ring(shape, mmap.mmap(descriptor, Ring.bytes_of(shape)))
        waiting = select.poll()
        waiting.register(tasks, select.POLLIN)
        while (task := _next_task(tasks, waiting, parent)) is not None:
            connection.send(_attempt(recipe, ring, task, ring.busy[number]))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent has gone


def _next_task(tasks: int, waiting: select.poll, parent: int) -> Task | None:
    while True:
        ready = waiting.poll(_ORPHAN_CHECK_MS)
        if os.getppid() != parent:  # somebody else may have inherited the pipe's other end and keep it open
            return None
        if not ready:
            continue
        try:
            data = os.read(tasks, _TASK.size)
        except BlockingIOError:
            continue
        return Task(*_TASK.unpack(data)) if data else None


def _attempt(
    recipe: SamplePipeline, ring: Ring, task: Task, busy: NDArray[np.int64]
) -> tuple[Task, object, str | None]:
    def starting(position: int) -> None:
        busy[:] = task.slot, position, task.stop

    try:
        bad = perform(recipe, ring, task, starting)
    except Exception:  # reported as text: exceptions of other libraries need not survive pickling
        return task, [], traceback.format_exc()
    finally:
        busy[0] = -1
    return task, bad, None
