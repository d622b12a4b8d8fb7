"""From the bytes of a request to predictions: decoded in threads, predicted in batches, refused when overloaded."""

from __future__ import annotations

import asyncio
import mmap
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from starlette.requests import Request

from choral.core.errors import DataError
from choral.data.loading.decode import TooManyPixels, decode, stored_size
from choral.data.shards.image_formats import detect_format
from choral.deploy.serve.batching import Batcher, Predicting, Prepared
from choral.deploy.serve.limits import Limits
from choral.deploy.serve.metrics import Counter, Gauge, Histogram
from choral.deploy.serve.problems import Problem, busy
from choral.deploy.serve.uploads import Buffer, Upload, read_uploads
from choral.inference.prediction_types import Prediction
from choral.runs.memory import trim_memory

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_LARGE = 8_000_000  # pixels
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Service:
    """Predicts uploads. Created and closed in its event loop.

    Args:
        predictor: predicts the images; one dark image goes through it first, so that the first request waits
            for no initialisation.
        limits: what is accepted.
    """

    def __init__(self, predictor: Predicting, limits: Limits) -> None:
        self.predictor, self.limits = predictor, limits
        self.requests = Counter("choral_requests_total", "Requests by address and status.", ("path", "status"))
        self.request_seconds = Histogram(
            "choral_request_seconds", "Seconds from head to response of /predict.", _SECONDS
        )
        self._images = Counter("choral_images_total", "Images by what became of them.", ("outcome",))
        self._batches = Histogram("choral_batch_images", "Images per batch.", _SIZES)
        self._engine_seconds = Histogram("choral_batch_seconds", "Seconds of the engine for a batch.", _SECONDS)
        self._in_flight = 0
        self._buffer = Buffer(limits.buffer)
        self._decoding = _Turnstile(limits.max_pixels)
        self._pool = ThreadPoolExecutor(limits.workers, thread_name_prefix="decode")
        self._batcher = Batcher(predictor, limits.batch_size, limits.wait_ms / 1000, self._count_batch)
        self.closing = False
        dark = predictor.prepare(np.zeros((8, 8, 3), np.uint8))
        predictor.build_predictions([""], predictor.predict_batch([dark]))

    def figures(self) -> list[Counter | Histogram | Gauge]:
        """Return the text of /metrics."""
        return [
            self.requests,
            self.request_seconds,
            self._images,
            self._batches,
            self._engine_seconds,
            Gauge("choral_images_in_flight", "Images being decoded, waiting or predicted.", lambda: self._in_flight),
            Gauge("choral_queue_images", "Images that wait for the engine.", lambda: self._batcher.depth),
            Gauge("choral_upload_bytes", "Bytes of uploads that are held.", lambda: self._buffer.held),
            Gauge("choral_ready", "Whether requests are answered in time.", lambda: self.ready),
            Gauge("process_resident_memory_bytes", "Memory of the process.", _resident_bytes),
        ]

    @property
    def answered(self) -> int:
        """Number of predicted images."""
        return int(self._images.of("answered"))

    @property
    def live(self) -> bool:
        """Whether the engine's thread runs; where not, only a new process helps."""
        return self._batcher.alive

    @property
    def ready(self) -> bool:
        """Whether requests are answered in time: the service is not closing, and nothing waits longer than the timeout."""
        return self.live and not self.closing and self._batcher.longest_wait_s < self.limits.timeout_s

    async def answer(self, request: Request) -> list[tuple[str, Prediction | Problem]]:
        """Return for each image of a request its name and its prediction, or the problem.

        Raises:
            Problem: the request as a whole is refused.
        """
        with self._buffer.share() as share:
            uploads = await read_uploads(request, self.limits, share)
            self._check_room(len(uploads))
            self._in_flight += len(uploads)
            self._batcher.announce(len(uploads))
            try:
                outcomes = await self._in_time(request, uploads)
                return list(zip([one.name for one in uploads], outcomes, strict=True))
            finally:
                self._in_flight -= len(uploads)

    def _check_room(self, count: int) -> None:
        """Refuse at once what would be refused after its time has run out."""
        if not self._in_flight:
            return
        waiting = self._in_flight * self._batcher.seconds_an_image
        if self._in_flight + count > self.limits.queue:
            raise busy(f"{self._in_flight} images wait already", {"queue": self.limits.queue}, waiting)
        if waiting > 2 * self.limits.timeout_s:  # of many at once, each may take half of what a lone one took
            detail = f"{self._in_flight} images wait already, which takes about {waiting:.0f} s"
            raise busy(detail, {"timeout_s": self.limits.timeout_s}, waiting / 2)

    def close(self) -> None:
        """Finish accepted images, and end all threads; blocks."""
        self.closing = True
        self._pool.shutdown()
        self._batcher.close()

    def abandon(self) -> None:
        """End without another prediction."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _in_time(self, request: Request, uploads: Sequence[Upload]) -> list[Prediction | Problem]:
        """Wait for predictions until the timeout, or until the client disconnects."""
        work = asyncio.create_task(self._outcomes(uploads))
        gone: asyncio.Future[Any] = asyncio.ensure_future(
            request.receive()
        )  # the body has been read: what comes next is the disconnect
        both: set[asyncio.Future[Any]] = {work, gone}
        try:
            done, _ = await asyncio.wait(both, timeout=self.limits.timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if work in done:
                return work.result()
            if gone in done:
                raise Problem(499, "the client has gone")
            self._images.add("late", by=len(uploads))
            raise Problem(
                504, f"no prediction within {self.limits.timeout_s:g} s", {"timeout_s": self.limits.timeout_s}
            )
        finally:
            gone.cancel()
            work.cancel()

    async def _outcomes(self, uploads: Sequence[Upload]) -> list[Prediction | Problem]:
        return await asyncio.gather(*map(self._outcome, uploads))

    async def _outcome(self, upload: Upload) -> Prediction | Problem:
        try:
            prepared = await asyncio.get_running_loop().run_in_executor(self._pool, self._prepared, upload)
        except Problem as problem:
            self._batcher.withdraw()
            self._images.add("refused")
            return problem
        except BaseException:  # cancelled before its turn, or a defect
            self._batcher.withdraw()
            raise
        try:
            answer = await asyncio.wrap_future(self._batcher.put(upload.name, prepared))
        except Exception as error:  # whatever an engine raises; it is in the log
            self._images.add("failed")
            raise Problem(500, "the engine failed; see the log of the service") from error
        self._images.add("answered")
        return answer

    def _prepared(self, upload: Upload) -> Prepared:
        """Return an image as the engine takes it. In a thread."""
        data = upload.data.taken()
        try:
            detect_format(data)
        except DataError as error:
            raise Problem(415, str(error)) from None
        most = self.limits.max_pixels
        try:
            height, width = stored_size(data)
            if height * width > most:
                raise TooManyPixels(f"{width} x {height} pixels, more than the limit of {most:,}")
            with self._decoding.hold(height * width):
                prepared = self.predictor.prepare(decode(data, max_pixels=most))
                if height * width >= _LARGE:
                    trim_memory()  # each thread would keep what its largest image took
                return prepared
        except TooManyPixels as error:
            raise Problem(413, str(error), {"max_pixels": most}) from None
        except DataError as error:
            raise Problem(422, str(error)) from None
        except MemoryError:
            raise busy("not enough memory to decode it", {}) from None

    def _count_batch(self, count: int, seconds: float) -> None:
        self._batches.add(count)
        self._engine_seconds.add(seconds)


class _Turnstile:
    """Lets so many pixels be decoded at the same time, whatever the number of threads."""

    def __init__(self, most: int) -> None:
        self._most, self._held = most, 0
        self._changed = threading.Condition()
        self._next = threading.Lock()  # one waits for room, the others for their turn: no large image waits forever

    @contextmanager
    def hold(self, pixels: int) -> Iterator[None]:
        with self._next, self._changed:
            self._changed.wait_for(lambda: self._held + pixels <= self._most)
            self._held += pixels
        try:
            yield
        finally:
            with self._changed:
                self._held -= pixels
                self._changed.notify_all()


def _resident_bytes() -> float:
    """Return the memory of this process; 0 where the system has no /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0.0
    return float(pages * mmap.PAGESIZE)
