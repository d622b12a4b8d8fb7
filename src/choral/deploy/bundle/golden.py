"""Golden samples: a few images in a bundle, their pixels as the networks saw them, and what these said before anything
was fused."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file, save_file

from choral.core.errors import DataError
from choral.data.loading.resize import resize_into
from choral.data.shards.image_formats import sniff
from choral.data.shards.index import Index
from choral.data.shards.splits import key_hashes
from choral.data.shards.store import LocalStore
from choral.deploy.bundle.engine import Predicted

FOLDER, EXPECTED = "golden", "expected.safetensors"
_MADE = 4
_SUFFIX = {"jpeg": ".jpg", "tiff": ".tif"}


@dataclass(frozen=True)
class Golden:
    """What a bundle is held to.

    Attributes:
        files: names of the images in the folder.
        pixels: of each input (N, S, S, 3) uint8: the images as they were prepared.
        predicted: what was said about these pixels.
    """

    files: tuple[str, ...]
    pixels: tuple[NDArray[np.uint8], ...]
    predicted: Predicted


def chosen_images(index: Index) -> Iterator[bytes]:
    """Yield the encoded images of a split, class by class in turn, within a class by a hash of the key."""
    keys = index.keys(np.arange(len(index)))
    order = np.argsort(key_hashes(keys, 0, "golden samples"), kind="stable")
    if index.dataset.task == "multiclass":
        labels = index.labels[order]
        turn = np.empty(len(order), np.int64)  # the how-manieth of its class each is
        for label in np.unique(labels):
            own = np.flatnonzero(labels == label)
            turn[own] = np.arange(len(own))
        order = order[np.argsort(turn, kind="stable")]
    store = LocalStore(index.dataset)
    for row in order:
        record = index.row(int(row))
        yield store.read(record.shard, record.offset, record.length)


def made_images(size: int) -> list[bytes]:
    """Return PNGs of smooth made patterns of about a size, for data that must not be passed on."""
    rng = np.random.default_rng(0)
    images = []
    for number in range(_MADE):
        coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        image = np.empty((size + 7 * number, size + 31 * number, 3), np.uint8)
        resize_into(coarse, image, "fast")
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        images.append(buffer.getvalue())
    return images


def write_golden(
    bundle: Path, images: Sequence[bytes], pixels: Sequence[NDArray[np.uint8]], predicted: Predicted
) -> None:
    """Put golden samples into the folder of a bundle.

    Args:
        bundle: the folder.
        images: (N) encoded.
        pixels, predicted: as of `Golden`.
    """
    folder = bundle / FOLDER
    folder.mkdir()
    for number, data in enumerate(images):
        kind = sniff(data)
        (folder / f"{number:02}{_SUFFIX.get(kind, f'.{kind}')}").write_bytes(data)
    tensors = {f"pixels_{number}": part for number, part in enumerate(pixels)}
    save_file({**tensors, **_tensors(predicted)}, folder / EXPECTED)


def write_own_golden(bundle: Path, form: str, predicted: Predicted) -> None:
    """Keep what a form of lower precision says about the golden samples, which is what it is held to."""
    save_file(_tensors(predicted), bundle / FOLDER / f"{form}.safetensors")


def read_golden(bundle: Path, inputs: int, form: str = "") -> Golden:
    """Return the golden samples of a bundle.

    Args:
        bundle: the folder.
        inputs: how many its networks have.
        form: a file name: what that form is held to, where it has something of its own.

    Raises:
        DataError: they are not there, or do not belong together.
    """
    folder = bundle / FOLDER
    path, own = folder / EXPECTED, folder / f"{form}.safetensors"
    files = tuple(sorted(file.name for file in folder.glob("[0-9][0-9].*")))  # file managers leave others
    try:
        tensors = load_file(path)
        said = load_file(own) if form and own.is_file() else tensors
        golden = Golden(
            files,
            tuple(tensors[f"pixels_{number}"] for number in range(inputs)),
            Predicted(said["by_member"], said["combined"]),
        )
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); export the bundle again") from error
    counts = {len(files), golden.predicted.combined.shape[0], *(len(part) for part in golden.pixels)}
    if len(counts) != 1 or not files:
        raise DataError(
            f"{folder}: images and what was said about them do not belong together; export the bundle again"
        )
    return golden


def _tensors(predicted: Predicted) -> dict[str, NDArray[np.float32]]:
    return {
        "by_member": np.ascontiguousarray(predicted.by_member),
        "combined": np.ascontiguousarray(predicted.combined),
    }
