"""The slots in which batches are built, in private memory or in memory shared with worker processes.

Shared memory has no name: it is a memfd, or an unlinked file where the system has none, passed to the workers as a file
descriptor. It disappears with the last process that maps it, however that process ends. Nothing stays in /dev/shm, and
Docker's default limit of 64 MB there does not apply.
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
    """Dimensions of a `SlotRing`."""

    slots: int
    capacity: int
    """Samples in a slot."""
    sizes: tuple[int, ...]
    """Side in pixels of each image that is made of a sample."""
    workers: int


class SlotRing:
    """The images of several batches, their rows, and which sample each worker is decoding.

    Args:
        shape: dimensions.
        memory: at least `SlotRing.num_bytes(shape)` writable zero bytes; None: private memory.

    Attributes:
        images: one (slots, capacity, size, size, 3) uint8 array for each of the sizes. A slot belongs to the workers
            from the submission of its batch until the last part is decoded, then to the consumer until it releases the
            batch.
        rows: (slots, capacity) int64; written by the loader, read by the workers.
        busy: (workers, 3) int64: slot and position of the sample that a worker process is decoding, and the end of its
            task; slot -1: idle.
    """

    def __init__(self, shape: RingShape, memory: Any = None) -> None:
        buffer = np.zeros(SlotRing.num_bytes(shape), np.uint8) if memory is None else np.frombuffer(memory, np.uint8)
        views = _array_views(buffer, shape)
        self.shape = shape
        self.busy: NDArray[np.int64] = next(views)
        self.rows: NDArray[np.int64] = next(views)
        self.images: tuple[NDArray[np.uint8], ...] = tuple(views)

    @staticmethod
    def num_bytes(shape: RingShape) -> int:
        """Return the memory that a ring needs."""
        return sum(_array_bytes(*layout) for layout in _array_layouts(shape))


def _array_layouts(shape: RingShape) -> list[tuple[tuple[int, ...], Any]]:
    """Return shape and dtype of each array, in the order in which they lie in memory."""
    images = [((shape.slots, shape.capacity, size, size, 3), np.uint8) for size in shape.sizes]
    return [((shape.workers, 3), np.int64), ((shape.slots, shape.capacity), np.int64), *images]


def _array_views(buffer: NDArray[np.uint8], shape: RingShape) -> Iterator[NDArray[Any]]:
    start = 0
    for array_shape, dtype in _array_layouts(shape):
        length = _array_bytes(array_shape, dtype)
        yield buffer[start : start + length].view(dtype).reshape(array_shape)
        start += length


def _array_bytes(shape: tuple[int, ...], dtype: Any) -> int:
    return math.prod(shape) * int(np.dtype(dtype).itemsize)


def anonymous_memory(length: int) -> tuple[int, mmap.mmap]:
    """Return a descriptor of `length` shared zero bytes without a name, and their map; the caller closes the former."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("choral-batches")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, length)
    return descriptor, mmap.mmap(descriptor, length)
