"""Many images are shared among ranks: each answers for every Nth batch, and the main one puts the rows together in order.

Every rank goes through the whole list, which costs little, and reads its own images alone. What it says lies in a file of its
own until all are done, so that nothing but one number is exchanged. Batches are the same for any number of ranks, and so
are the rows.
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
from choral.core.files import written_aside
from choral.core.process_group import Runtime
from choral.data.loading.progress import SplitProgress
from choral.deploy.bundle.image_pipeline import answered, usual_workers
from choral.deploy.bundle.image_sources import Picture
from choral.deploy.bundle.predict_request import PredictRequest
from choral.deploy.bundle.prediction_files import AnswerFormat, answer_format
from choral.deploy.bundle.predictor import Predictor
from choral.inference.prediction_types import Answer

_FRAME = struct.Struct("<QQQ")  # images, bad ones, bytes of their rows
_TOKEN_BITS = 62
_LOOK_EVERY_S = 0.1


@dataclass(frozen=True)
class Tally:
    """How many images were asked about, and how many could not be read."""

    images: int
    bad: int

    def said(self, path: Path) -> str:
        """Return in a line what was written."""
        bad = f", {self.bad} of them not read (column error)" if self.bad else ""
        return f"{path}: {self.images} images{bad}"


class Encoded(NamedTuple):
    """A batch of answers as rows of a file."""

    images: int
    bad: int
    rows: bytes


class _Seen:
    """Passes batches on, of which a rank takes every Nth, and remembers what all of them were."""

    def __init__(self, batches: Iterator[list[Picture]], rank: int, ranks: int) -> None:
        self._batches, self._rank, self._ranks = batches, rank, ranks
        self._hash = hashlib.sha256()

    def __iter__(self) -> Iterator[list[Picture]]:
        """Yield the batches of this rank."""
        for number, batch in enumerate(self._batches):
            self._hash.update("\n".join([*(image.name for image in batch), ""]).encode())
            if number % self._ranks == self._rank:
                yield batch

    @property
    def digest(self) -> bytes:
        """Of the names of all images so far, 32 bytes."""
        return self._hash.digest()


def predict_as_rank(request: PredictRequest, run: Runtime) -> Tally | None:
    """Answer for the share of a rank; the main one writes the file and returns how many images there were.

    Args:
        request: the same on all ranks, with a file to write.
        run: this rank.

    Raises:
        ChoralError: as `answered` and `open_predictor`.
        DataError: ranks did not find the same images.
        Stopped: this rank was told to stop; nothing is left.
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
        form = answer_format(out, predictor.answering)
        _answer_share(request, run, predictor, form, folder / str(run.rank))
        if not run.is_main:
            return None
        return write_answers(out, form, _in_order(_finished(folder, run)))
    except FileNotFoundError:
        if folder.is_dir():
            raise
        raise run.stopped("with the main rank; nothing was written") from None  # which took the folder away
    finally:
        if run.is_main:
            shutil.rmtree(folder, ignore_errors=True)


def write_answers(path: Path, form: AnswerFormat, encoded: Iterable[Encoded]) -> Tally:
    """Write the file of answers, which is there once it is complete."""
    images = bad = 0

    def counted() -> Iterator[bytes]:
        nonlocal images, bad
        for batch in encoded:
            images, bad = images + batch.images, bad + batch.bad
            yield batch.rows

    with written_aside(path) as file:
        form.write(file, counted())
    return Tally(images, bad)


def encoded_answers(form: AnswerFormat, answers: Sequence[Answer]) -> Encoded:
    """Return a batch of answers as rows of a file."""
    return Encoded(len(answers), sum(bool(answer.error) for answer in answers), form.encode(answers))


def _answer_share(request: PredictRequest, run: Runtime, predictor: Predictor, form: AnswerFormat, path: Path) -> None:
    """Write the rows of this rank's batches, then which images there are, to a file that is there once it is complete."""
    total, batches = request.batches()
    seen = _Seen(batches, run.rank, run.world_size)
    workers = request.workers or usual_workers(run.local_world_size)
    # Not written aside by `written_aside`: nobody needs it after a power cut.
    unfinished, done = path.with_suffix(".unfinished"), 0
    with unfinished.open("wb") as part, SplitProgress("predicting", total, run.is_main) as progress:
        for answers in answered(predictor, seen, workers, request.strict):
            if run.told_to_stop:
                raise run.stopped("before all images were answered for; nothing was written")
            batch = encoded_answers(form, answers)
            part.write(_FRAME.pack(batch.images, batch.bad, len(batch.rows)) + batch.rows)
            others = len(answers) * run.world_size  # who are about as far
            progress.advance(others if total is None else min(others, total - done))
            done += others
        part.write(_FRAME.pack(0, 0, len(seen.digest)) + seen.digest)
    unfinished.replace(path)


def _finished(folder: Path, run: Runtime) -> list[Path]:
    """Wait for the parts of all ranks; not at a barrier, which nobody can be called away from."""
    paths = [folder / str(rank) for rank in range(run.world_size)]
    while not all(path.is_file() for path in paths):
        if run.told_to_stop:
            raise run.stopped("before all images were answered for; nothing was written")
        time.sleep(_LOOK_EVERY_S)
    return paths


def _in_order(paths: Sequence[Path]) -> Iterator[Encoded]:
    """Yield the batches of all ranks in the order of the images.

    Raises:
        DataError: ranks did not find the same images.
    """
    with ExitStack() as stack:
        parts = [stack.enter_context(path.open("rb")) for path in paths]
        for part in cycle(parts):
            batch = _frame(part)
            if batch.images == 0:
                break
            yield batch
        # The rank whose turn it was has no more batches; nor have the others, if they saw the same images.
        lists = {batch.rows, *(_frame(other).rows for other in parts if other is not part)}
    if len(lists) != 1:
        raise DataError("the ranks did not find the same images: files came or went meanwhile; run it again")


def _frame(part: BinaryIO) -> Encoded:
    images, bad, length = _FRAME.unpack(part.read(_FRAME.size))
    return Encoded(images, bad, part.read(length))
