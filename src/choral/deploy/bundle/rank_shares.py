"""Predicting many images on several ranks: each rank takes every Nth batch, and the main rank merges the rows in order.

Every rank iterates over the whole list, which costs little, and reads only its own images. Its rows stay in a file of its
own until all ranks are done, so that nothing but one number is exchanged. Batches and rows are the same for any number of
ranks.
"""

from __future__ import annotations

import hashlib
import shutil
import struct
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from secrets import randbits
from typing import BinaryIO, NamedTuple

import torch

from choral.core.errors import DataError
from choral.core.files import atomic_file
from choral.core.process_group import Runtime
from choral.data.loading.progress import SplitProgress
from choral.deploy.bundle.image_pipeline import default_workers, predict_images
from choral.deploy.bundle.image_sources import ImageSource
from choral.deploy.bundle.predict_request import PredictRequest
from choral.deploy.bundle.prediction_files import PredictionFormat, prediction_format
from choral.deploy.bundle.predictor import Predictor
from choral.inference.prediction_types import Prediction

_FRAME = struct.Struct("<QQQ")  # images, bad ones, bytes of their rows
_TOKEN_BITS = 62
_LOOK_EVERY_S = 0.1


@dataclass(frozen=True)
class ImageCounts:
    """The number of predicted images, and of those that could not be read."""

    images: int
    bad: int

    def summary(self, path: Path) -> str:
        """Return one line about the written file."""
        bad = f", {self.bad} of them not read (column error)" if self.bad else ""
        return f"{path}: {self.images} images{bad}"


class EncodedBatch(NamedTuple):
    """A batch of predictions, encoded as rows of a file."""

    images: int
    bad: int
    rows: bytes


class _RankBatches:
    """Passes batches on, of which a rank takes every Nth, and remembers what all of them were."""

    def __init__(self, batches: Iterator[list[ImageSource]], rank: int, ranks: int) -> None:
        self._batches, self._rank, self._ranks = batches, rank, ranks
        self._hash = hashlib.sha256()

    def __iter__(self) -> Iterator[list[ImageSource]]:
        """Yield the batches of this rank."""
        for number, batch in enumerate(self._batches):
            self._hash.update("\n".join([*(image.name for image in batch), ""]).encode())
            if number % self._ranks == self._rank:
                yield batch

    @property
    def digest(self) -> bytes:
        """Of the names of all images so far, 32 bytes."""
        return self._hash.digest()


def predict_as_rank(request: PredictRequest, run: Runtime) -> ImageCounts | None:
    """Predict the share of a rank; the main rank writes the file and returns the counts.

    Args:
        request: the same on all ranks, with a file to write.
        run: this rank.

    Raises:
        ChoralError: as `predict_images` and `open_predictor`.
        DataError: ranks did not find the same images.
        Stopped: a stop was requested; nothing is left on disk.
    """
    assert request.out is not None
    out, token = request.out, torch.tensor([randbits(_TOKEN_BITS)], device=run.device)

    def folder_of(token: torch.Tensor) -> Path:
        return out.with_name(f".{out.name}.{int(token):016x}.parts")

    if run.is_main:
        folder_of(token).mkdir()  # before the others know of it: none makes it again after it was taken away
    folder = folder_of(run.broadcast(token))
    try:
        predictor = request.open(lambda line: print(line, file=sys.stderr) if run.is_main else None, str(run.device))
        form = prediction_format(out, predictor.policy)
        _predict_share(request, run, predictor, form, folder / str(run.rank))
        if not run.is_main:
            return None
        return write_prediction_file(out, form, _merge_in_order(_wait_for_parts(folder, run)))
    except FileNotFoundError:
        if folder.is_dir():
            raise
        raise run.stop_error("with the main rank; nothing was written") from None  # which took the folder away
    finally:
        if run.is_main:
            shutil.rmtree(folder, ignore_errors=True)


def write_prediction_file(path: Path, form: PredictionFormat, encoded: Iterable[EncodedBatch]) -> ImageCounts:
    """Write the prediction file atomically."""
    images = bad = 0

    def counted() -> Iterator[bytes]:
        nonlocal images, bad
        for batch in encoded:
            images, bad = images + batch.images, bad + batch.bad
            yield batch.rows

    with atomic_file(path) as file:
        form.write(file, counted())
    return ImageCounts(images, bad)


def encode_batch(form: PredictionFormat, predictions: Sequence[Prediction]) -> EncodedBatch:
    """Encode a batch of predictions as rows of a file."""
    return EncodedBatch(
        len(predictions), sum(bool(prediction.error) for prediction in predictions), form.encode(predictions)
    )


def _predict_share(
    request: PredictRequest, run: Runtime, predictor: Predictor, form: PredictionFormat, path: Path
) -> None:
    """Write the rows of this rank's batches, then which images there are, to a file that is there once it is complete."""
    total, batches = request.batches()
    seen = _RankBatches(batches, run.rank, run.world_size)
    workers = request.workers or default_workers(run.local_world_size)
    # Not written aside by `atomic_file`: nobody needs it after a power cut.
    unfinished, done = path.with_suffix(".unfinished"), 0
    with unfinished.open("wb") as part, SplitProgress("predicting", total, run.is_main) as progress:
        for predictions in predict_images(predictor, seen, workers, request.strict):
            if run.stop_requested:
                raise run.stop_error("before all images were predicted; nothing was written")
            batch = encode_batch(form, predictions)
            part.write(_FRAME.pack(batch.images, batch.bad, len(batch.rows)) + batch.rows)
            others = len(predictions) * run.world_size  # who are about as far
            progress.advance(others if total is None else min(others, total - done))
            done += others
        part.write(_FRAME.pack(0, 0, len(seen.digest)) + seen.digest)
    unfinished.replace(path)


def _wait_for_parts(folder: Path, run: Runtime) -> list[Path]:
    """Wait for the parts of all ranks; not at a barrier, which nobody can be called away from."""
    paths = [folder / str(rank) for rank in range(run.world_size)]
    while not all(path.is_file() for path in paths):
        if run.stop_requested:
            raise run.stop_error("before all images were predicted; nothing was written")
        time.sleep(_LOOK_EVERY_S)
    return paths


def _merge_in_order(paths: Sequence[Path]) -> Iterator[EncodedBatch]:
    """Yield the batches of all ranks in the order of the images.

    Raises:
        DataError: ranks did not find the same images.
    """
    with ExitStack() as stack:
        parts = [stack.enter_context(path.open("rb")) for path in paths]
        for part in cycle(parts):
            batch = _read_frame(part)
            if batch.images == 0:
                break
            yield batch
        # The rank whose turn it was has no more batches; nor have the others, if they saw the same images.
        lists = {batch.rows, *(_read_frame(other).rows for other in parts if other is not part)}
    if len(lists) != 1:
        raise DataError("the ranks did not find the same images: files came or went meanwhile; run it again")


def _read_frame(part: BinaryIO) -> EncodedBatch:
    images, bad, length = _FRAME.unpack(part.read(_FRAME.size))
    return EncodedBatch(images, bad, part.read(length))
