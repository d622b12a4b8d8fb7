"""Ask a trained run about new image files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from choral.config import Config
from choral.errors import DataError
from choral.inputs.crop import Crop
from choral.inputs.decode import decode
from choral.inputs.sample import place
from choral.inputs.standardize import Standardizer
from choral.predict.answers import Answer, answer, unreadable
from choral.predict.asking import Manner, member_predictions
from choral.predict.views import expand
from choral.predict.voices import Voice

_BATCH = 32


def predict_images(
    config: Config, voices: Sequence[Voice], images: Sequence[Path], device: torch.device
) -> Iterator[Answer]:
    """Yield an answer for each image, in order, averaged over the views of the config.

    Raises:
        ConfigError: an unknown view.
        ChoralError: a damaged checkpoint.
    """
    manner = Manner(expand(config.evaluate.views), ("tta",), nullcontext, config.evaluate.average)
    networks = {voice.name: voice.load(device) for voice in voices}
    for start in range(0, len(images), _BATCH):
        paths = images[start : start + _BATCH]
        decoded = [_read(path, config.data.max_pixels) for path in paths]
        readable = [item for item in decoded if not isinstance(item, str)]
        by_member: dict[str, NDArray[np.float32]] = {}
        for _, group in groupby(sorted(voices, key=lambda voice: repr(voice.inputs)), key=lambda voice: voice.inputs):
            members = list(group)
            if not readable:
                continue
            batch = _batch(members[0], readable, device)
            for voice in members:
                found = member_predictions(networks[voice.name], voice, batch, manner)
                by_member[voice.name] = found["tta"].cpu().numpy()
        row = 0
        for path, item in zip(paths, decoded, strict=True):
            if isinstance(item, str):
                yield unreadable(str(path), voices[0].outputs, item)
                continue
            yield answer(str(path), voices[0].outputs, {voice.name: by_member[voice.name][row] for voice in voices})
            row += 1


def _read(path: Path, max_pixels: int) -> NDArray[np.uint8] | str:
    """Return the decoded image, or what is wrong with it."""
    try:
        return decode(path.read_bytes(), max_pixels=max_pixels)
    except DataError as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)


def _batch(voice: Voice, images: Sequence[NDArray[np.uint8]], device: torch.device) -> torch.Tensor:
    """Return the images as the voice's loader would have prepared them: (B, 3, S, S) float32, normalised."""
    data = voice.config.data
    crop = Crop(data.eval_crop, crop_pct=data.crop_pct)
    prepared = np.empty((len(images), data.image_size, data.image_size, 3), np.uint8)
    for image, out in zip(images, prepared, strict=True):
        place(image, crop, data.resize, out)
    standardize = Standardizer(voice.mean, voice.std, device, None, voice.config.model.channels_last)
    return standardize(torch.from_numpy(prepared).to(device), {})
