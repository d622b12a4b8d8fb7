"""What a bundle or a run answers for images, in this process or on several ranks."""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from choral.errors import ChoralError, ConfigError, Stopped
from choral.export.request import PredictRequest
from choral.export.sources import STDIN
from choral.jobs.launcher import launch_command, run_in_foreground
from choral.predict.answers import Answer
from choral.runfolder import read_json
from choral.workflow.launching import gpus

if TYPE_CHECKING:
    from choral.export.shares import Tally
    from choral.inputs.progress import SplitProgress


def predict(request: PredictRequest, shown: bool) -> Iterator[tuple[list[Answer], SplitProgress]]:
    """Yield what is answered, some images at a time, and the progress, whose bar may have to make room.

    Args:
        request: images, and who is asked.
        shown: whether progress may be shown.

    Raises:
        ChoralError: as `choral.export.target.open_predictor` and `choral.export.pipeline.answered`.
        Stopped: by SIGTERM.
    """
    from choral.export.pipeline import answered, usual_workers
    from choral.inputs.progress import SplitProgress
    from choral.runtime import set_up_logging

    set_up_logging(0)
    with _stoppable():
        predictor = request.open(_say)
        total, batches = request.batches()
        with SplitProgress("predicting", total, shown) as progress:
            for answers in answered(predictor, batches, request.workers or usual_workers(), request.strict):
                yield answers, progress
                progress.advance(len(answers))


def predict_to_file(request: PredictRequest, processes: int) -> Tally:
    """Write what is answered to the file that is asked for, through the launcher where there are several processes.

    Args:
        request: with a file.
        processes: ranks; 0: all GPUs.

    Raises:
        ConfigError: a device for several ranks.
        ChoralError: as `predict`.
    """
    if processes == 0:
        processes = max(1, len(gpus())) if request.device == "auto" else 1
    if processes > 1:
        return _on_ranks(request, processes)
    from choral.export.answer_files import answer_format
    from choral.export.pipeline import answered, usual_workers
    from choral.export.shares import Encoded, encoded_answers, write_answers
    from choral.inputs.progress import SplitProgress
    from choral.runtime import set_up_logging

    assert request.out is not None
    set_up_logging(0)
    with _stoppable():
        predictor = request.open(_say)
        form = answer_format(request.out, predictor.answering)
        total, batches = request.batches()
        with SplitProgress("predicting", total, True) as progress:

            def encoded() -> Iterator[Encoded]:
                for answers in answered(predictor, batches, request.workers or usual_workers(), request.strict):
                    yield encoded_answers(form, answers)
                    progress.advance(len(answers))

            return write_answers(request.out, form, encoded())


def _on_ranks(request: PredictRequest, processes: int) -> Tally:
    from choral.export.ranks import STOP, TALLY
    from choral.export.shares import Tally

    if request.device not in ("auto", "cpu"):
        raise ConfigError(f"--device {request.device}: several processes take a GPU each; see CUDA_VISIBLE_DEVICES")
    on_gpus = request.device == "auto" and bool(gpus())
    with tempfile.TemporaryDirectory(prefix="choral-predict-") as name:
        scratch = Path(name)
        if STDIN in request.images:  # which ranks cannot share
            with (scratch / "images").open("wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
            images = [f"@{scratch / 'images'}" if word == STDIN else word for word in request.images]
            request = replace(request, images=tuple(images))
        words = ["--scratch", str(scratch), *replace(request, device="auto").words]
        command, env = launch_command("choral.export.ranks", words, processes, on_gpus)
        code, asked_to_stop = run_in_foreground(command, env, request_stop=(scratch / STOP).touch)
        tally = read_json(scratch / TALLY)
    if asked_to_stop and tally is None:
        raise Stopped("stopped before all images were answered for; nothing was written")
    if code != 0 or tally is None:
        raise ChoralError(f"{request.out} was not written: see above")
    return Tally(int(tally["images"]), int(tally["bad"]))


def _say(line: str) -> None:
    print(line, file=sys.stderr)


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGTERM unwind what is under way, as Ctrl-C does, so that nothing unfinished is left."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped("stopped by SIGTERM before all images were answered for; nothing was written")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
