"""Images on disk to predictions: threads read, decode and prepare; the calling thread predicts one batch after the other.

Two batches are prepared ahead, so that memory does not depend on the number of images. Predictions keep the order of the
images.
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
from choral.deploy.bundle.image_sources import ImageSource
from choral.deploy.bundle.predictor import Predictor
from choral.inference.prediction_types import Prediction, unreadable_prediction

_AHEAD = 2  # batches
_SPARE_BYTES = 64 << 20
_PIXEL_BYTES = 8  # of the largest kind, 16 bits and alpha, without compression

Prepared = tuple[NDArray[np.uint8], ...]


def default_workers(ranks: int = 1) -> int:
    """Return the number of preparing threads: one per core of this rank, at most 16."""
    return max(1, min(16, len(os.sched_getaffinity(0)) // ranks))


def predict_images(
    predictor: Predictor, batches: Iterable[Sequence[ImageSource]], workers: int, strict: bool = False
) -> Iterator[list[Prediction]]:
    """Yield the predictions of each batch of images, in order.

    Args:
        predictor: predicts the batches.
        batches: batches of images, consumed lazily.
        workers: threads that read, decode and prepare, at least 1.
        strict: whether an unreadable image raises; otherwise its prediction holds the reason.

    Raises:
        DataError: `strict` is set and an image cannot be read; the message names it.
        OutOfMemory: a batch does not fit.
    """
    with _threads(workers) as pool:
        waiting: deque[tuple[Sequence[ImageSource], list[Future[Prepared | str]]]] = deque()
        for batch in batches:
            waiting.append((batch, [pool.submit(_read_and_prepare, predictor, image) for image in batch]))
            if len(waiting) > _AHEAD:
                yield _predict_batch(predictor, *waiting.popleft(), strict)
        while waiting:
            yield _predict_batch(predictor, *waiting.popleft(), strict)


def _read_and_prepare(predictor: Predictor, image: ImageSource) -> Prepared | str:
    """Return the prepared arrays of an image, or the reason why it cannot be read."""
    try:
        data = image.read(_PIXEL_BYTES * predictor.max_pixels + _SPARE_BYTES)
        return predictor.prepare(predictor.decode(data))
    except DataError as error:
        return str(error)
    except MemoryError:
        return "not enough memory to decode it"


def _predict_batch(
    predictor: Predictor, batch: Sequence[ImageSource], futures: Sequence[Future[Prepared | str]], strict: bool
) -> list[Prediction]:
    from choral.runs.memory import explain_out_of_memory

    found = [future.result() for future in futures]
    if strict:
        for image, item in zip(batch, found, strict=True):
            if isinstance(item, str):
                raise DataError(f"{image.name}: {item}")
    good = [(image.name, item) for image, item in zip(batch, found, strict=True) if not isinstance(item, str)]
    predictions: Iterator[Prediction] = iter(())
    if good:
        with explain_out_of_memory(len(good), "--batch-size", "lower it"):
            predicted = predictor.predict_batch([item for _, item in good])
        predictions = iter(predictor.build_predictions([name for name, _ in good], predicted))
    return [
        unreadable_prediction(image.name, predictor.task, item) if isinstance(item, str) else next(predictions)
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
        torch.get_num_threads()  # the first call in a thread takes the remembered number: force it now
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
