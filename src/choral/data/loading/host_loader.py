"""The host stage: orders in, uint8 batches out, in order, some batches ahead of the consumer.

A batch is built in a slot of a ring. The slot belongs to the workers until the batch is complete, then to the consumer
until `HostBatch.release`, then to a later batch: nothing is copied on the way and nothing allocated. What a batch holds
depends on its order alone, not on the number or kind of workers.
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
from choral.data.augment.host_transforms import HostTransforms
from choral.data.loading.bad_samples import BadSamples
from choral.data.loading.crop import Crop
from choral.data.loading.decode import MAX_PIXELS
from choral.data.loading.decoded_cache import DecodedCache
from choral.data.loading.input_spec import ImageSpec
from choral.data.loading.resize import Resize
from choral.data.loading.sample_pipeline import SamplePipeline, Unreadable
from choral.data.loading.slot_ring import Ring, RingShape
from choral.data.loading.targets import Targets
from choral.data.loading.worker_pool import InlineWorkerPool, Task, ThreadWorkerPool, WorkerPool
from choral.data.shards.index import Index
from choral.data.shards.store import LocalStore

_PARTS_A_WORKER = 4  # of a batch: small enough that workers end at about the same time, large enough to cost nothing


@dataclass(frozen=True)
class BatchRequest:
    """A batch to be made: rows of the index, and where in training it belongs."""

    rows: NDArray[np.int64]
    """(b,) int64. With partners (b + e,): behind the batch's own rows those that are read only to be mixed into them.
    row + k * len(index) is the k-th repetition of a row: the same sample, with random numbers of its own."""
    epoch: int
    step: int
    partners: NDArray[np.int64] | None = None
    """(b,) where in `rows` the image is that each own one is mixed with; None: nothing is mixed."""

    @property
    def own(self) -> int:
        """How many rows, from the first on, are the batch's own."""
        return len(self.rows if self.partners is None else self.partners)


@dataclass
class HostBatch:
    """A batch in a slot of the ring; its images may be read until `release` is called, everything else for ever."""

    images: NDArray[np.uint8]
    """(b, S, S, 3), RGB."""
    rows: NDArray[np.int64]
    """(b,) of the index; random numbers go by those of the order, which tell repetitions apart."""
    labels: NDArray[Any]
    """(b,) int64 class ids, or (b, T) float32 labels or numbers; see `Targets.of`."""
    valid: NDArray[np.bool_]
    """(b,) False: the sample could not be read, its image is zero."""
    order: BatchRequest
    _release: Callable[[], None]
    others: tuple[NDArray[np.uint8], ...] = ()
    """The same samples in further forms, (b, S', S', 3) each."""

    @property
    def forms(self) -> tuple[NDArray[np.uint8], ...]:
        """The images in every form, `images` first."""
        return (self.images, *self.others)

    def in_forms(self, positions: Sequence[int]) -> HostBatch:
        """Return the same samples in some of the forms alone, in that order; the slot stays this batch's."""
        images, *others = (self.forms[position] for position in positions)
        return HostBatch(images, self.rows, self.labels, self.valid, self.order, _nothing, tuple(others))

    def kept(self) -> HostBatch:
        """Give the slot back, and return the same batch in memory of its own."""
        images, *others = (own.copy() for own in self.forms)
        self.release()
        return HostBatch(images, self.rows, self.labels, self.valid, self.order, _nothing, tuple(others))

    def release(self) -> None:
        """Give the slot back; once is enough, more does no harm."""
        give_back, self._release = self._release, _nothing
        give_back()


def _nothing() -> None:
    return None


@dataclass
class _PendingBatch:
    """A batch on its way."""

    order: BatchRequest
    slot: int
    pending: int
    bad: list[Unreadable] = field(default_factory=list)
    error: BaseException | None = None


class HostLoader:
    """Iterates over the batches of `orders`, once; work begins when it is made.

    Args:
        index, store: the split.
        orders: which rows make each batch; may be endless. No order may hold more rows than the first.
        size: side of the square images, in pixels.
        crop, resize: how an image becomes one.
        workers: threads or processes; 0: the calling thread works, when it asks for a batch.
        kind: "thread" or "process".
        cache: decoded images of the split, instead of the store.
        policy: what happens with samples that cannot be read.
        slots: batches in memory: those on their way and those the consumer holds.
        max_pixels: as in `decode`; must be what the cache was made with.
        targets: what the labels are; None: the class ids of the index.
        host: transforms of the resized images; None in evaluation.
        also: further forms that are made of each sample, from the same decode.

    Raises:
        ConfigError: the crop shrinks in the decoder, beside a cache or further forms.
        DataError, from the iteration: a sample cannot be read and may not be skipped (naming shard, key and offset), a
            worker process died (naming the samples it held).
        RuntimeError, from the iteration: a defect in a worker, with its cause; or no slot was released.
    """

    def __init__(
        self,
        index: Index,
        store: LocalStore,
        orders: Iterable[BatchRequest],
        *,
        size: int,
        crop: Crop,
        resize: Resize,
        workers: int,
        kind: Literal["thread", "process"],
        cache: DecodedCache | None,
        policy: BadSamples,
        slots: int = 3,
        max_pixels: int = MAX_PIXELS,
        targets: Targets | None = None,
        host: HostTransforms | None = None,
        also: Sequence[ImageSpec] = (),
    ) -> None:
        self._index, self._policy, self._workers = index, policy, workers
        self._targets = targets or Targets("multiclass", index.dataset.classes, index)
        self._tickets: dict[int, _PendingBatch] = {}
        self._line: deque[int] = deque()  # numbers of the tickets, oldest first
        self._next_ticket = 0
        self._crew: WorkerPool | None = None
        self._orders = iter(orders)
        self._following = next(self._orders, None)
        self._free: deque[int] = deque(range(slots))
        forms = (ImageSpec(size, crop, resize), *also)
        recipe = SamplePipeline(index, store, cache, forms, max_pixels, host)
        if self._following is not None:  # a rank without samples needs no workers
            sizes = tuple(form.size for form in forms)
            shape = RingShape(slots, len(self._following.rows), sizes, workers)
            self._crew, self._ring = _hire(recipe, shape, kind, index)
            self._refill()

    def __iter__(self) -> Self:
        """Return itself: a loader is read once."""
        return self

    def __next__(self) -> HostBatch:
        """Return the next batch, waiting for it."""
        self._refill()
        if not self._line:
            if self._following is not None and self._crew is not None:
                raise RuntimeError(
                    f"all {self._ring.shape.slots} slots are held: release() a batch before asking for another"
                )
            self.close()
            raise StopIteration
        ticket = self._tickets[self._line[0]]
        while ticket.pending:
            self._collect(block=True)
        del self._tickets[self._line.popleft()]
        return self._batch_of(ticket)

    def ready(self) -> bool:
        """Return whether the next batch is complete, so that asking for it does not wait."""
        while self._collect(block=False):
            pass
        return bool(self._line) and self._tickets[self._line[0]].pending == 0

    def close(self) -> None:
        """End the workers and forget what is on its way; may be called more than once, and while batches are held."""
        crew, self._crew = self._crew, None
        if crew is not None:
            crew.close()
        self._tickets.clear()
        self._line.clear()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def _refill(self) -> None:
        """Hand out as many batches as there are free slots."""
        while self._free and self._following is not None and self._crew is not None:
            order, slot, number = self._following, self._free.popleft(), self._next_ticket
            count = len(order.rows)
            if count > self._ring.shape.capacity:
                raise ValueError(f"an order of {count} rows after a first one of {self._ring.shape.capacity}")
            self._ring.rows[slot, :count] = order.rows
            length = max(1, -(-count // (_PARTS_A_WORKER * self._workers))) if self._workers else max(1, count)
            starts = range(0, count, length)
            self._tickets[number] = _PendingBatch(order, slot, len(starts))
            self._line.append(number)
            self._next_ticket += 1
            for start in starts:
                self._crew.submit(Task(number, slot, start, min(start + length, count), order.epoch))
            self._following = next(self._orders, None)

    def _collect(self, block: bool) -> bool:
        try:
            done = self._crew.collect(block) if self._crew is not None else None
        except ChoralError:  # a worker died
            self.close()
            raise
        if done is None:
            return False
        ticket = self._tickets[done.task.ticket]
        ticket.pending -= 1
        ticket.bad += done.bad
        ticket.error = ticket.error or done.error
        return True

    def _batch_of(self, ticket: _PendingBatch) -> HostBatch:
        order, count = ticket.order, len(ticket.order.rows)
        if ticket.error is not None:
            self.close()
            if isinstance(ticket.error, ChoralError):
                raise ticket.error
            raise RuntimeError(f"decoding failed in epoch {order.epoch}, step {order.step}") from ticket.error
        rows = order.rows % len(self._index)
        valid = np.ones(count, np.bool_)
        for position, reason in sorted(ticket.bad):
            valid[position] = False
            if position < order.own:  # others are recorded by the rank whose own they are
                self._record(int(rows[position]), reason)
        images, *others = (own[ticket.slot, :count] for own in self._ring.images)
        labels = self._targets.of(rows)
        return HostBatch(images, rows, labels, valid, order, lambda: self._free.append(ticket.slot), tuple(others))

    def _record(self, row: int, reason: str) -> None:
        record = self._index.row(row)
        shard = str(self._index.dataset.shard_path(record.shard))
        try:
            self._policy.record(record.key, shard, record.offset, reason, len(self._index))
        except ChoralError:
            self.close()
            raise


def _hire(
    recipe: SamplePipeline, shape: RingShape, kind: Literal["thread", "process"], index: Index
) -> tuple[WorkerPool, Ring]:
    if shape.workers and kind == "process":
        from choral.data.loading.worker_process import ProcessWorkerPool  # needs POSIX, which threads do not

        crew = ProcessWorkerPool(recipe, shape, index)
        return crew, crew.ring
    ring = Ring(shape)
    return (ThreadWorkerPool(recipe, ring, shape.workers) if shape.workers else InlineWorkerPool(recipe, ring)), ring
