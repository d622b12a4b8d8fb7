"""From images on disk to answers: threads read, decode and prepare; this thread asks about one batch after the other.

Two batches are on their way while one is asked about, so that the memory in use does not depend on the number of images, and
answers come in the order of the images.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress

import cv2
import numpy as np
from numpy.typing import NDArray

from choral.core.errors import DataError
from choral.deploy.bundle.image_sources import Picture
from choral.deploy.bundle.predictor import Predictor
from choral.inference.prediction_types import Answer, unreadable

_AHEAD = 2  # batches
_SPARE_BYTES = 64 << 20
_PIXEL_BYTES = 8  # of the largest kind, 16 bits and alpha, without compression

Prepared = tuple[NDArray[np.uint8], ...]


def usual_workers(ranks: int = 1) -> int:
    """Return how many threads prepare images: a core each, of those that a rank has, up to sixteen."""
    return max(1, min(16, len(os.sched_getaffinity(0)) // ranks))


def answered(
    predictor: Predictor, batches: Iterable[Sequence[Picture]], workers: int, strict: bool = False
) -> Iterator[list[Answer]]:
    """Yield the answers for each batch of images, in order.

    Args:
        predictor: that is asked.
        batches: of images; an iterator is drawn from as answers are.
        workers: threads that read, decode and prepare, at least 1.
        strict: whether an image that cannot be read ends it; else its answer says why.

    Raises:
        DataError: an image cannot be read, under `strict`, naming it.
        OutOfMemory: a batch does not fit.
    """
    with _threads(workers) as pool:
        waiting: deque[tuple[Sequence[Picture], list[Future[Prepared | str]]]] = deque()
        for batch in batches:
            waiting.append((batch, [pool.submit(_prepared, predictor, image) for image in batch]))
            if len(waiting) > _AHEAD:
                yield _asked(predictor, *waiting.popleft(), strict)
        while waiting:
            yield _asked(predictor, *waiting.popleft(), strict)


def _prepared(predictor: Predictor, image: Picture) -> Prepared | str:
    """Return an image as the networks see it, or why it cannot be read."""
    try:
        data = image.read(_PIXEL_BYTES * predictor.max_pixels + _SPARE_BYTES)
        return predictor.prepare(predictor.decode(data))
    except DataError as error:
        return str(error)
    except MemoryError:
        return "not enough memory to decode it"


def _asked(
    predictor: Predictor, batch: Sequence[Picture], futures: Sequence[Future[Prepared | str]], strict: bool
) -> list[Answer]:
    from choral.runs.memory import explained

    found = [future.result() for future in futures]
    if strict:
        for image, item in zip(batch, found, strict=True):
            if isinstance(item, str):
                raise DataError(f"{image.name}: {item}")
    good = [(image.name, item) for image, item in zip(batch, found, strict=True) if not isinstance(item, str)]
    answers: Iterator[Answer] = iter(())
    if good:
        with explained(len(good), "--batch-size", "lower it"):
            predicted = predictor.ask([item for _, item in good])
        answers = iter(predictor.answers([name for name, _ in good], predicted))
    return [
        unreadable(image.name, predictor.task, item) if isinstance(item, str) else next(answers)
        for image, item in zip(batch, found, strict=True)
    ]


@contextmanager
def _threads(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Give threads that have started, each with its own torch limited to one thread; what waits is dropped at the end.

    torch keeps the number of threads per thread, but remembers the last one that anybody set for threads yet to come. So
    all set theirs, and then the caller's is set again.
    """
    import torch

    cv2.setNumThreads(0)  # OpenCV's own threads would fight ours
    before, ready = torch.get_num_threads(), threading.Barrier(workers + 1)

    def start() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # a thread's first look takes over the number remembered: now, before it changes again
        with suppress(threading.BrokenBarrierError):  # raised, it would leave the pool without what wakes the others
            ready.wait()

    pool = ThreadPoolExecutor(workers, "choral-prepare", initializer=start)
    try:
        for _ in range(workers):
            pool.submit(int)  # a thread starts with a task of its own, as long as none is idle
        ready.wait()
        torch.set_num_threads(before)
        yield pool
    finally:
        ready.abort()  # some threads may wait for others that never came, after an interruption
        pool.shutdown(cancel_futures=True)
