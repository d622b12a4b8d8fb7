"""The host stage: batch requests in, uint8 batches out, in order, some batches ahead of the consumer.

A batch is built in a slot of a ring. The slot belongs to the workers until the batch is complete, then to the consumer
until `HostBatch.release`, then to a later batch: nothing is copied or allocated on the way. A batch depends on its
request alone, not on the number or kind of workers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from choral.core.errors import ChoralError
from choral.data.loading.bad_samples import BadSamples
from choral.data.loading.sample_pipeline import SamplePipeline, UnreadableSample
from choral.data.loading.slot_ring import RingShape, SlotRing
from choral.data.loading.targets import Targets
from choral.data.loading.worker_pool import DecodeTask, InlineWorkerPool, ThreadWorkerPool, WorkerPool

# Tasks in a batch: small enough that workers finish at about the same time, large enough to cost nothing.
_TASKS_PER_WORKER = 4


@dataclass(frozen=True)
class BatchRequest:
    """The rows of a batch, and its epoch and step in training."""

    rows: NDArray[np.int64]
    """(b,) int64 rows of the index. With partners (b + e,): after the batch's own rows come those that are read only to
    be mixed into them. row + k * len(index) is the k-th repetition of a row: the same sample, with other random
    numbers."""
    epoch: int
    step: int
    partners: NDArray[np.int64] | None = None
    """(b,) position in `rows` of the image that each sample is mixed with; None: no mixing."""

    @property
    def batch_size(self) -> int:
        """Number of the batch's own rows, which come first."""
        return len(self.rows if self.partners is None else self.partners)


@dataclass
class HostBatch:
    """A batch in a slot of the ring. Its images are valid until `release` is called, everything else for ever."""

    images: NDArray[np.uint8]
    """(b, S, S, 3), RGB."""
    rows: NDArray[np.int64]
    """(b,) of the index. Random numbers depend on the rows of the request instead, which tell repetitions apart."""
    labels: NDArray[Any]
    """(b,) int64 class ids, or (b, T) float32 labels or regression targets; see `Targets.take`."""
    valid: NDArray[np.bool_]
    """(b,) False: the sample cannot be read, and its image is zero."""
    request: BatchRequest
    _release: Callable[[], None]
    other_images: tuple[NDArray[np.uint8], ...] = ()
    """The same samples prepared to the other image specs, (b, S', S', 3) each."""

    @property
    def all_images(self) -> tuple[NDArray[np.uint8], ...]:
        """The images of every image spec, `images` first."""
        return (self.images, *self.other_images)

    def select_images(self, positions: Sequence[int]) -> HostBatch:
        """Return a batch with only some of `all_images`, in the given order; releasing it does not affect this one."""
        return self._with_images([self.all_images[position] for position in positions])

    def copy_and_release(self) -> HostBatch:
        """Return a copy of the batch in memory of its own, and release the slot."""
        copied = self._with_images([images.copy() for images in self.all_images])
        self.release()
        return copied

    def release(self) -> None:
        """Return the slot to the loader; further calls have no effect."""
        release, self._release = self._release, _no_release
        release()

    def _with_images(self, all_images: Sequence[NDArray[np.uint8]]) -> HostBatch:
        images, *others = all_images
        return HostBatch(images, self.rows, self.labels, self.valid, self.request, _no_release, tuple(others))


def _no_release() -> None:
    return None


@dataclass
class _PendingBatch:
    """A batch that workers are building."""

    request: BatchRequest
    slot: int
    pending_tasks: int
    unreadable: list[UnreadableSample] = field(default_factory=list)
    error: BaseException | None = None


class HostLoader:
    """Iterates once over the requested batches; decoding starts when the loader is made.

    Args:
        samples: loads the images.
        requests: the rows of each batch; may be endless. No request may hold more rows than the first.
        workers: number of threads or processes; 0: the calling thread decodes when it asks for a batch.
        worker_kind: "thread" or "process".
        policy: what happens with samples that cannot be read.
        targets: where labels come from; None: the class ids of the index.
        slots: batches in memory, both in progress and held by the consumer.

    Raises:
        DataError, from the iteration: a sample cannot be read and may not be skipped (names shard, key and offset), or
            a worker process died (names the samples it was decoding).
        RuntimeError, from the iteration: a bug in a worker, with its cause; or no slot was released.
    """

    def __init__(
        self,
        samples: SamplePipeline,
        requests: Iterable[BatchRequest],
        *,
        workers: int,
        worker_kind: Literal["thread", "process"],
        policy: BadSamples,
        targets: Targets | None = None,
        slots: int = 3,
    ) -> None:
        self._index, self._policy, self._workers = samples.index, policy, workers
        self._targets = targets or Targets("multiclass", self._index.dataset.classes, self._index)
        self._batches: dict[int, _PendingBatch] = {}
        self._queue: deque[int] = deque()  # numbers of the pending batches, oldest first
        self._next_number = 0
        self._pool: WorkerPool | None = None
        self._requests = iter(requests)
        self._next_request = next(self._requests, None)
        self._free_slots: deque[int] = deque(range(slots))
        if self._next_request is not None:  # a rank without samples needs no workers
            sizes = tuple(spec.size for spec in samples.image_specs)
            shape = RingShape(slots, len(self._next_request.rows), sizes, workers)
            self._pool, self._ring = _start_workers(samples, shape, worker_kind)
            self._refill()

    def __iter__(self) -> Self:
        """Return itself: a loader is read once."""
        return self

    def __next__(self) -> HostBatch:
        """Return the next batch, waiting for it."""
        self._refill()
        if not self._queue:
            if self._next_request is not None and self._pool is not None:
                raise RuntimeError(
                    f"all {self._ring.shape.slots} slots are held: release() a batch before the next one"
                )
            self.close()
            raise StopIteration
        batch = self._batches[self._queue[0]]
        while batch.pending_tasks:
            self._collect(block=True)
        del self._batches[self._queue.popleft()]
        return self._finish(batch)

    def ready(self) -> bool:
        """Return whether the next batch is complete, so that `next` does not wait."""
        while self._collect(block=False):
            pass
        return bool(self._queue) and self._batches[self._queue[0]].pending_tasks == 0

    def close(self) -> None:
        """Stop the workers and drop pending batches; may be called more than once, and while batches are held."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()
        self._batches.clear()
        self._queue.clear()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the loader."""
        self.close()

    def _refill(self) -> None:
        """Submit as many batches as there are free slots."""
        while self._free_slots and self._next_request is not None and self._pool is not None:
            request, slot, number = self._next_request, self._free_slots.popleft(), self._next_number
            count = len(request.rows)
            if count > self._ring.shape.capacity:
                raise ValueError(f"a request of {count} rows after a first one of {self._ring.shape.capacity}")
            self._ring.rows[slot, :count] = request.rows
            length = max(1, -(-count // (_TASKS_PER_WORKER * self._workers))) if self._workers else max(1, count)
            starts = range(0, count, length)
            self._batches[number] = _PendingBatch(request, slot, len(starts))
            self._queue.append(number)
            self._next_number += 1
            for start in starts:
                self._pool.submit(DecodeTask(number, slot, start, min(start + length, count), request.epoch))
            self._next_request = next(self._requests, None)

    def _collect(self, block: bool) -> bool:
        try:
            result = self._pool.collect(block) if self._pool is not None else None
        except ChoralError:  # a worker died
            self.close()
            raise
        if result is None:
            return False
        batch = self._batches[result.task.batch]
        batch.pending_tasks -= 1
        batch.unreadable += result.unreadable
        batch.error = batch.error or result.error
        return True

    def _finish(self, batch: _PendingBatch) -> HostBatch:
        request, count = batch.request, len(batch.request.rows)
        if batch.error is not None:
            self.close()
            if isinstance(batch.error, ChoralError):
                raise batch.error
            raise RuntimeError(f"decoding failed in epoch {request.epoch}, step {request.step}") from batch.error
        rows = request.rows % len(self._index)
        valid = np.ones(count, np.bool_)
        for position, reason in sorted(batch.unreadable):
            valid[position] = False
            if position < request.batch_size:  # a mixing partner is recorded by the rank whose batch it belongs to
                self._record_unreadable(int(rows[position]), reason)
        images, *others = (slots[batch.slot, :count] for slots in self._ring.images)
        labels = self._targets.take(rows)
        return HostBatch(
            images, rows, labels, valid, request, lambda: self._free_slots.append(batch.slot), tuple(others)
        )

    def _record_unreadable(self, row: int, reason: str) -> None:
        record = self._index.row(row)
        shard = str(self._index.dataset.shard_path(record.shard))
        try:
            self._policy.record(record.key, shard, record.offset, reason, len(self._index))
        except ChoralError:
            self.close()
            raise


def _start_workers(
    samples: SamplePipeline, shape: RingShape, kind: Literal["thread", "process"]
) -> tuple[WorkerPool, SlotRing]:
    if shape.workers and kind == "process":
        from choral.data.loading.worker_process import ProcessWorkerPool  # needs POSIX, which threads do not

        pool = ProcessWorkerPool(samples, shape)
        return pool, pool.ring
    ring = SlotRing(shape)
    return (ThreadWorkerPool(samples, ring, shape.workers) if shape.workers else InlineWorkerPool(samples, ring)), ring
