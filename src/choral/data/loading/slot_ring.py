"""The slots in which batches are built, in memory of this process or shared with worker processes.

Shared memory has no name: a memfd (elsewhere an unlinked file), handed to the workers as a descriptor. So it ends with
the last process that maps it, however that process ends; nothing is left in /dev/shm, and Docker's 64 MB there do not
matter.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class RingShape(NamedTuple):
    """Slots, samples a slot, sides in pixels of the images that are made of each sample, workers."""

    slots: int
    capacity: int
    sizes: tuple[int, ...]
    workers: int


class Ring:
    """Images of several batches, the rows they stand for, and what each worker is busy with.

    Args:
        shape: of the ring.
        memory: at least `Ring.bytes_of(shape)` writable zero bytes; None: memory of this process.

    Attributes:
        images: for each of the sizes (slots, capacity, size, size, 3) uint8; a slot belongs to the workers from when its
            batch is handed to them until the last part of it is done, then to the consumer until it releases it.
        rows: (slots, capacity) int64; belongs to the loader, workers only read it.
        busy: (workers, 3) int64: slot and position of the sample that a worker process is at, and where its task stops;
            slot -1: none.
    """

    def __init__(self, shape: RingShape, memory: Any = None) -> None:
        buffer = np.zeros(Ring.bytes_of(shape), np.uint8) if memory is None else np.frombuffer(memory, np.uint8)
        views = _views(buffer, shape)
        self.shape = shape
        self.busy: NDArray[np.int64] = next(views)
        self.rows: NDArray[np.int64] = next(views)
        self.images: tuple[NDArray[np.uint8], ...] = tuple(views)

    @staticmethod
    def bytes_of(shape: RingShape) -> int:
        """Return the memory that a ring needs."""
        return sum(_bytes(*part) for part in _parts(shape))


def _parts(shape: RingShape) -> list[tuple[tuple[int, ...], Any]]:
    images = [((shape.slots, shape.capacity, size, size, 3), np.uint8) for size in shape.sizes]
    return [((shape.workers, 3), np.int64), ((shape.slots, shape.capacity), np.int64), *images]


def _views(buffer: NDArray[np.uint8], shape: RingShape) -> Iterator[NDArray[Any]]:
    start = 0
    for part_shape, dtype in _parts(shape):
        length = _bytes(part_shape, dtype)
        yield buffer[start : start + length].view(dtype).reshape(part_shape)
        start += length


def _bytes(shape: tuple[int, ...], dtype: Any) -> int:
    return math.prod(shape) * int(np.dtype(dtype).itemsize)


def anonymous_memory(length: int) -> tuple[int, mmap.mmap]:
    """Return a descriptor, to be closed by the caller, of `length` shared zero bytes without a name, and their map."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("choral-batches")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, length)
    return descriptor, mmap.mmap(descriptor, length)
