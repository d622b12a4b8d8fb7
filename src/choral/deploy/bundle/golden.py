"""Golden samples of a bundle: a few images, their prepared pixels, and the reference predictions before BatchNorm folding."""

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
from choral.data.shards.image_formats import detect_format
from choral.data.shards.index import Index
from choral.data.shards.splits import hash_keys
from choral.data.shards.store import LocalStore
from choral.deploy.bundle.engine import EnsemblePredictions

FOLDER, EXPECTED = "golden", "expected.safetensors"
_MADE = 4
_SUFFIX = {"jpeg": ".jpg", "tiff": ".tif"}


@dataclass(frozen=True)
class GoldenSamples:
    """Reference samples that a bundle is verified with.

    Attributes:
        files: names of the images in the folder.
        pixels: of each input (N, S, S, 3) uint8: the images as they were prepared.
        predicted: the reference predictions for these pixels.
    """

    files: tuple[str, ...]
    pixels: tuple[NDArray[np.uint8], ...]
    predicted: EnsemblePredictions


def iterate_golden_candidates(index: Index) -> Iterator[bytes]:
    """Yield the encoded images of a split, class by class in turn, within a class by a hash of the key."""
    keys = index.keys(np.arange(len(index)))
    order = np.argsort(hash_keys(keys, 0, "golden samples"), kind="stable")
    if index.dataset.task == "multiclass":
        labels = index.labels[order]
        turn = np.empty(len(order), np.int64)  # position of each sample within its class
        for label in np.unique(labels):
            own = np.flatnonzero(labels == label)
            turn[own] = np.arange(len(own))
        order = order[np.argsort(turn, kind="stable")]
    store = LocalStore(index.dataset)
    for row in order:
        record = index.row(int(row))
        yield store.read(record.shard, record.offset, record.length)


def make_synthetic_images(size: int) -> list[bytes]:
    """Return PNG files of smooth synthetic patterns of about this size, for data that must not be shared."""
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
    bundle: Path, images: Sequence[bytes], pixels: Sequence[NDArray[np.uint8]], predicted: EnsemblePredictions
) -> None:
    """Write golden samples into the directory of a bundle.

    Args:
        bundle: the folder.
        images: (N) encoded.
        pixels, predicted: as of `GoldenSamples`.
    """
    folder = bundle / FOLDER
    folder.mkdir()
    for number, data in enumerate(images):
        kind = detect_format(data)
        (folder / f"{number:02}{_SUFFIX.get(kind, f'.{kind}')}").write_bytes(data)
    tensors = {f"pixels_{number}": part for number, part in enumerate(pixels)}
    save_file({**tensors, **_tensors(predicted)}, folder / EXPECTED)


def write_form_predictions(bundle: Path, form: str, predicted: EnsemblePredictions) -> None:
    """Write the predictions of a lower-precision file for the golden samples, as its own reference."""
    save_file(_tensors(predicted), bundle / FOLDER / f"{form}.safetensors")


def read_golden(bundle: Path, inputs: int, form: str = "") -> GoldenSamples:
    """Return the golden samples of a bundle.

    Args:
        bundle: the folder.
        inputs: how many its networks have.
        form: the name of an exported file, whose own reference is used if it has one; "": the models' reference.

    Raises:
        DataError: they are missing, or do not match.
    """
    folder = bundle / FOLDER
    path, own = folder / EXPECTED, folder / f"{form}.safetensors"
    files = tuple(sorted(file.name for file in folder.glob("[0-9][0-9].*")))  # file managers leave others
    try:
        tensors = load_file(path)
        expected = load_file(own) if form and own.is_file() else tensors
        golden = GoldenSamples(
            files,
            tuple(tensors[f"pixels_{number}"] for number in range(inputs)),
            EnsemblePredictions(expected["by_member"], expected["combined"]),
        )
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); export the bundle again") from error
    counts = {len(files), golden.predicted.combined.shape[0], *(len(part) for part in golden.pixels)}
    if len(counts) != 1 or not files:
        raise DataError(f"{folder}: images and reference predictions do not match; export the bundle again")
    return golden


def _tensors(predicted: EnsemblePredictions) -> dict[str, NDArray[np.float32]]:
    return {
        "by_member": np.ascontiguousarray(predicted.by_member),
        "combined": np.ascontiguousarray(predicted.combined),
    }
