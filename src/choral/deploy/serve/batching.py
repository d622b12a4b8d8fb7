"""Batching: images that wait at the same time are predicted together, which is faster than one after the other."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from choral.inference.prediction_types import Prediction

if TYPE_CHECKING:
    from choral.deploy.bundle.engine import EnsemblePredictions
    from choral.scoring.policy import PredictionPolicy

Prepared = tuple[NDArray[np.uint8], ...]
"""An image in each form that the members want, (S, S, 3) uint8 RGB."""
_LATELY = 16  # batches
_log = logging.getLogger("choral.deploy.serve")


class Predicting(Protocol):
    """What a service needs of a predictor; `choral.deploy.bundle.predictor.Predictor` is one."""

    name: str
    policy: PredictionPolicy

    @property
    def task(self) -> str:
        """Multiclass, multilabel or regression."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, labels or targets."""

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the networks."""

    def prepare(self, image: NDArray[np.uint8]) -> Prepared:
        """Return the forms of a decoded image, (H, W, 3) uint8 RGB; several threads may call it."""

    def predict_batch(self, prepared: Sequence[Prepared]) -> EnsemblePredictions:
        """Return the predictions for a batch."""

    def build_predictions(self, names: Sequence[str], predicted: EnsemblePredictions) -> list[Prediction]:
        """Return a batch as typed predictions with these image names."""


@dataclass(eq=False)
class _Waiting:
    name: str
    prepared: Prepared
    answer: Future[Prediction] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


class Batcher:
    """One thread that predicts waiting images in batches; safe to use from several threads.

    A batch is taken as soon as it is full, or nothing more is on its way, or its first image has waited long enough.

    Args:
        predictor: predicts the batches.
        batch_size: images at once, at most.
        wait_s: how long an image waits for others that are announced.
        on_batch: called after each batch with its size and its seconds.
    """

    def __init__(
        self, predictor: Predicting, batch_size: int, wait_s: float, on_batch: Callable[[int, float], None]
    ) -> None:
        self._predictor, self._batch_size, self._wait_s, self._on_batch = predictor, batch_size, wait_s, on_batch
        self._waiting: deque[_Waiting] = deque()
        self._announced, self._closed = 0, False
        self._running_since: float | None = None  # when the first image of the batch in progress arrived
        self._lately: deque[float] = deque(maxlen=_LATELY)
        self._changed = threading.Condition()
        # A daemon: a second Ctrl-C ends the process without waiting for an engine.
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def announce(self, count: int) -> None:
        """Announce images that are being decoded; each is then put in or withdrawn."""
        with self._changed:
            self._announced += count

    def withdraw(self) -> None:
        """Withdraw one announced image."""
        with self._changed:
            self._announced -= 1
            self._changed.notify_all()

    def put(self, name: str, prepared: Prepared) -> Future[Prediction]:
        """Let an image that was announced wait; one whose future is cancelled before its turn is forgotten at once."""
        one = _Waiting(name, prepared)
        with self._changed:
            self._announced -= 1
            self._waiting.append(one)
            self._changed.notify_all()
        # Clients that come and go while an engine is slow, or stuck, would fill memory with what nobody waits for.
        one.answer.add_done_callback(lambda answer: self._forget(one) if answer.cancelled() else None)
        return one.answer

    def _forget(self, one: _Waiting) -> None:
        with self._changed, suppress(ValueError):  # or its turn has come just now
            self._waiting.remove(one)

    @property
    def depth(self) -> int:
        """How many images wait."""
        return len(self._waiting)

    @property
    def longest_wait_s(self) -> float:
        """Seconds that the oldest image without a prediction has waited, for its batch or the engine; 0 without any."""
        with self._changed:
            since = self._running_since or (self._waiting[0].since if self._waiting else None)
            return 0.0 if since is None else time.monotonic() - since

    @property
    def seconds_an_image(self) -> float:
        """The least that an image took in the last batches: what is late by this is late for sure; 0: there was none."""
        return min(tuple(self._lately), default=0.0)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Predict the waiting images, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        while (batch := self._next_batch()) is not None:
            if batch:
                self._answer(batch)
            self._running_since = None

    def _next_batch(self) -> list[_Waiting] | None:
        """Wait for a batch and return it, without what was cancelled; None once there will be none."""
        with self._changed:
            while not self._waiting:
                if self._closed:
                    return None
                self._changed.wait()
            due = self._waiting[0].since + self._wait_s
            while self._announced and len(self._waiting) < self._batch_size and not self._closed:
                left = due - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            taken = [self._waiting.popleft() for _ in range(min(self._batch_size, len(self._waiting)))]
            self._running_since = taken[0].since if taken else None
        return [one for one in taken if one.answer.set_running_or_notify_cancel()]

    def _answer(self, batch: Sequence[_Waiting]) -> None:
        started = time.monotonic()
        try:
            predicted = self._predictor.predict_batch([one.prepared for one in batch])
            answers = self._predictor.build_predictions([one.name for one in batch], predicted)
        except Exception as error:  # whatever an engine raises: this batch is lost, the next one may do
            _log.exception("the engine failed on a batch of %d", len(batch))
            for one in batch:
                one.answer.set_exception(error)
            return
        seconds = time.monotonic() - started
        self._lately.append(seconds / len(batch))
        self._on_batch(len(batch), seconds)
        for one, answer in zip(batch, answers, strict=True):
            one.answer.set_result(answer)
