"""What the trained members of a run answer for image files."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from choral.assess.answer import Answering, answer_path, check_answer, read_answer
from choral.assess.answering import answers_of, described, plain_answering
from choral.config import Config
from choral.errors import DataError
from choral.predict.answers import Answer, unreadable
from choral.predict.plan import evaluation_of
from choral.predict.views import expand
from choral.predict.voices import Voice, voices_of
from choral.runfolder import RunFolder
from choral.workflow.evaluation import say_absent


def predict(folder: RunFolder, images: Sequence[Path]) -> Iterator[Answer]:
    """Yield what the trained members of a run answer for each image file: as RUN/answer.json says, where there is one.

    Raises:
        ChoralError: no member is trained.
        DataError: answer.json is damaged, or was fitted to other weights.
    """
    import torch

    from choral.predict.images import predict_images

    config = folder.config()
    voices, _ = voices_of(folder, config)
    say_absent(folder, config)
    answering = _answering(folder, config, voices)
    by_name = {voice.name: voice for voice in voices}
    heard = [by_name[name] for name in answering.members]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    seen_images = predict_images(heard, images, answering.views, answering.average, config.data.max_pixels, device)
    for seen in seen_images:
        if seen.error:
            yield unreadable(str(seen.image), answering.task, seen.error)
        else:
            by_member = np.stack([seen.by_member[name] for name in answering.members])[:, None]
            yield from answers_of(answering, [str(seen.image)], by_member, answering.said(by_member))


def _answering(folder: RunFolder, config: Config, voices: Sequence[Voice]) -> Answering:
    """Return how a run answers, and say so where that was fitted."""
    answering = read_answer(folder)
    if answering is None:
        outputs = voices[0].outputs
        return plain_answering(
            outputs.task,
            outputs.names,
            [voice.name for voice in voices],
            expand(config.evaluate.views),
            config.evaluate.average,
        )
    check_answer(folder, answering, evaluation_of(voices, config.train.precision))
    unknown = sorted(set(answering.members) - {voice.name for voice in voices})
    if unknown:
        raise DataError(
            f"{answer_path(folder)}: is damaged (no member {', '.join(unknown)}); run `choral calibrate` again"
        )
    print(f"as {answer_path(folder)} says: {described(answering)}", file=sys.stderr)
    return answering
