"""What a bundle or a run answers for images, in this process or on several ranks."""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from choral.cli.workflow.launch import gpus
from choral.core.errors import ChoralError, ConfigError, Stopped
from choral.deploy.bundle.image_sources import STDIN
from choral.deploy.bundle.predict_request import PredictRequest
from choral.deploy.bundle.prediction_files import answer_format
from choral.inference.prediction_types import Answer
from choral.jobs.launcher import launch_command, run_in_foreground
from choral.runs.run_dir import read_json

if TYPE_CHECKING:
    from choral.data.loading.progress import SplitProgress
    from choral.deploy.bundle.predictor import Predictor
    from choral.deploy.bundle.rank_shares import Tally


@dataclass(frozen=True)
class Asked:
    """Images that are being answered for.

    Attributes:
        predictor: that is asked.
        answers: some at a time, in the order of the images; each waits for its images to be asked about.
        progress: whose bar may have to make room.
    """

    predictor: Predictor
    answers: Iterator[list[Answer]]
    progress: SplitProgress


@contextmanager
def predicting(request: PredictRequest, shown: bool) -> Iterator[Asked]:
    """Load what is asked, and give its answers, in this process.

    Args:
        request: images, and who is asked.
        shown: whether progress is shown.

    Raises:
        ChoralError: as `choral.deploy.bundle.open_predictor.open_predictor` and, from the answers, `choral.deploy.bundle.image_pipeline.answered`.
        Stopped: by SIGTERM.
    """
    from choral.core.process_group import set_up_logging
    from choral.data.loading.progress import SplitProgress
    from choral.deploy.bundle.image_pipeline import answered, usual_workers
    from choral.runs.memory import keep_freed

    set_up_logging(0)
    keep_freed()
    with _stoppable():
        predictor = request.open(_say)
        total, batches = request.batches()
        with SplitProgress("predicting", total, shown) as progress:

            def answers() -> Iterator[list[Answer]]:
                for some in answered(predictor, batches, request.workers or usual_workers(), request.strict):
                    yield some
                    progress.advance(len(some))

            yield Asked(predictor, answers(), progress)


def predict_to_file(request: PredictRequest, processes: int) -> Tally:
    """Write what is answered to the file that is asked for, through the launcher where there are several processes.

    Args:
        request: with a file.
        processes: ranks; 0: all GPUs.

    Raises:
        ConfigError: a device for several ranks.
        ChoralError: as `predicting`.
    """
    from choral.deploy.bundle.rank_shares import encoded_answers, write_answers

    if processes == 0:
        processes = max(1, len(gpus())) if request.device == "auto" else 1
    if processes > 1:
        return _on_ranks(request, processes)
    assert request.out is not None
    with predicting(request, shown=True) as asked:
        form = answer_format(request.out, asked.predictor.answering)
        return write_answers(request.out, form, (encoded_answers(form, answers) for answers in asked.answers))


def _on_ranks(request: PredictRequest, processes: int) -> Tally:
    from choral.deploy.bundle.rank_shares import Tally
    from choral.deploy.bundle.ranks import STOP, TALLY

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
        command, env = launch_command("choral.deploy.bundle.ranks", words, processes, on_gpus)
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
