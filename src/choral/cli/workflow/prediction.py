"""Predicting images with a bundle or a run, in this process or on several ranks."""

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
from choral.deploy.bundle.prediction_files import prediction_format
from choral.inference.prediction_types import Prediction
from choral.jobs.launcher import build_launch_command, run_in_foreground
from choral.runs.run_dir import read_json

if TYPE_CHECKING:
    from choral.data.loading.progress import SplitProgress
    from choral.deploy.bundle.predictor import Predictor
    from choral.deploy.bundle.rank_shares import ImageCounts


@dataclass(frozen=True)
class PredictionStream:
    """Predictions of images, computed as they are consumed.

    Attributes:
        predictor: predicts the images.
        batches: lists of predictions, in the order of the images.
        progress: the progress bar, which a table may interrupt.
    """

    predictor: Predictor
    batches: Iterator[list[Prediction]]
    progress: SplitProgress


@contextmanager
def predicting(request: PredictRequest, show_progress: bool) -> Iterator[PredictionStream]:
    """Load the predictor, and predict the images in this process.

    Args:
        request: images and predictor.
        show_progress: whether a progress bar is shown.

    Raises:
        ChoralError: as `open_predictor`, and from the batches as `predict_images`.
        Stopped: by SIGTERM.
    """
    from choral.core.process_group import set_up_logging
    from choral.data.loading.progress import SplitProgress
    from choral.deploy.bundle.image_pipeline import default_workers, predict_images
    from choral.runs.memory import retain_freed_memory

    set_up_logging(0)
    retain_freed_memory()
    with _stoppable():
        predictor = request.open(_report)
        total, batches = request.batches()
        with SplitProgress("predicting", total, show_progress) as progress:

            def batches_of_predictions() -> Iterator[list[Prediction]]:
                for some in predict_images(predictor, batches, request.workers or default_workers(), request.strict):
                    yield some
                    progress.advance(len(some))

            yield PredictionStream(predictor, batches_of_predictions(), progress)


def predict_to_file(request: PredictRequest, processes: int) -> ImageCounts:
    """Predict images and write the requested file, on several ranks if there are several processes.

    Args:
        request: its `out` names a file.
        processes: ranks; 0: one per GPU.

    Raises:
        ConfigError: a device was given for several ranks.
        ChoralError: as `predicting`.
    """
    from choral.deploy.bundle.rank_shares import encode_batch, write_prediction_file

    if processes == 0:
        processes = max(1, len(gpus())) if request.device == "auto" else 1
    if processes > 1:
        return _on_ranks(request, processes)
    assert request.out is not None
    with predicting(request, show_progress=True) as stream:
        form = prediction_format(request.out, stream.predictor.policy)
        return write_prediction_file(request.out, form, (encode_batch(form, batch) for batch in stream.batches))


def _on_ranks(request: PredictRequest, processes: int) -> ImageCounts:
    from choral.deploy.bundle.rank_shares import ImageCounts
    from choral.deploy.bundle.ranks import STOP, TALLY

    if request.device not in ("auto", "cpu"):
        raise ConfigError(f"--device {request.device}: several processes use one GPU each; see CUDA_VISIBLE_DEVICES")
    on_gpus = request.device == "auto" and bool(gpus())
    with tempfile.TemporaryDirectory(prefix="choral-predict-") as name:
        scratch = Path(name)
        if STDIN in request.images:  # ranks cannot share standard input
            with (scratch / "images").open("wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
            images = [f"@{scratch / 'images'}" if word == STDIN else word for word in request.images]
            request = replace(request, images=tuple(images))
        words = ["--scratch", str(scratch), *replace(request, device="auto").arguments]
        command, env = build_launch_command("choral.deploy.bundle.ranks", words, processes, on_gpus)
        code, asked_to_stop = run_in_foreground(command, env, request_stop=(scratch / STOP).touch)
        counts = read_json(scratch / TALLY)
    if asked_to_stop and counts is None:
        raise Stopped("stopped before all images were predicted; nothing was written")
    if code != 0 or counts is None:
        raise ChoralError(f"{request.out} was not written: see the errors above")
    return ImageCounts(int(counts["images"]), int(counts["bad"]))


def _report(line: str) -> None:
    print(line, file=sys.stderr)


@contextmanager
def _stoppable() -> Iterator[None]:
    """Turn SIGTERM into an exception, as Ctrl-C is, so that nothing unfinished is left."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped("stopped by SIGTERM before all images were predicted; nothing was written")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
