"""Ask a trained run about new image files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from choral.config import Average
from choral.errors import DataError
from choral.inputs.crop import Crop
from choral.inputs.decode import decode
from choral.inputs.sample import place
from choral.inputs.standardize import Standardizer
from choral.predict.asking import Manner, predictions_of
from choral.predict.voices import Voice

_BATCH = 32


@dataclass(frozen=True)
class Seen:
    """What members said about one image.

    Attributes:
        image: the file.
        by_member: member to its (outputs,) float32 predictions, its views averaged.
        error: "" unless the image could not be read; then nobody said anything.
    """

    image: Path
    by_member: Mapping[str, NDArray[np.float32]]
    error: str = ""


def predict_images(
    voices: Sequence[Voice],
    images: Sequence[Path],
    views: Mapping[str, float],
    average: Average,
    max_pixels: int,
    device: torch.device,
) -> Iterator[Seen]:
    """Yield what each voice says about each image, in order.

    Args:
        voices: that are asked.
        images: files.
        views: canonical name to what it counts; the sum is 1. Where all count the same, they are averaged as in a ledger.
        average: of views that count the same; others are averages of probabilities, or of numbers.
        max_pixels: of an image.
        device: that computes.

    Raises:
        ConfigError: an unknown view.
        ChoralError: a damaged checkpoint.
    """
    even = len(set(views.values())) == 1
    manner = Manner(tuple(views), ("tta",) if even else tuple(views), nullcontext, average)
    networks = {voice.name: voice.load(device) for voice in voices}
    for start in range(0, len(images), _BATCH):
        paths = images[start : start + _BATCH]
        decoded = [_read(path, max_pixels) for path in paths]
        readable = [item for item in decoded if not isinstance(item, str)]
        by_member: dict[str, NDArray[np.float32]] = {}
        for _, group in groupby(sorted(voices, key=lambda voice: repr(voice.inputs)), key=lambda voice: voice.inputs):
            members = list(group)
            if not readable:
                continue
            batch = _batch(members[0], readable, device)
            asked = [(networks[voice.name], voice.outputs) for voice in members]
            for voice, found in zip(members, predictions_of(asked, members[0].look, batch, manner), strict=True):
                mean = found["tta"] if even else sum(weight * found[view].double() for view, weight in views.items())
                by_member[voice.name] = torch.as_tensor(mean).float().cpu().numpy()
        row = 0
        for path, item in zip(paths, decoded, strict=True):
            if isinstance(item, str):
                yield Seen(path, {}, item)
                continue
            yield Seen(path, {voice.name: by_member[voice.name][row] for voice in voices})
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
