"""A split of 13 images of different kinds, for tests that read samples."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from choral.data.packing.pack import PackOptions, pack
from choral.data.shards.index import Dataset, Index
from choral.data.shards.store import LocalStore
from image_bytes import encoded, photo

SAMPLES = 13


def _image(number: int) -> bytes:
    pixels = photo(90 + 3 * number, 140 - 4 * number, seed=number)
    if number % 4 == 1:
        return encoded(pixels[..., 0], "JPEG")  # grey
    if number % 4 == 2:
        return encoded(pixels, "PNG")
    return encoded(pixels, "JPEG", orientation=6 if number % 4 == 3 else None)


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed folder of 13 images, at most 5 per shard: colour and grey JPEGs, PNGs, photos with EXIF orientation."""
    root = tmp_path_factory.mktemp("inputs")
    for number in range(SAMPLES):
        path = root / "images" / f"class {number % 3}" / f"sample{number:02}.img"
        path = path.with_suffix(".png" if number % 4 == 2 else ".jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_image(number))
    pack(str(root / "images"), root / "packed", PackOptions(val=0.0, test=0.0, samples_per_shard=5, processes=1))
    return root / "packed"


@pytest.fixture
def index(packed: Path) -> Index:
    return Index.open(Dataset.open(packed), "train")


@pytest.fixture
def store(index: Index) -> LocalStore:
    return LocalStore(index.dataset)


@pytest.fixture
def damaged(packed: Path, tmp_path: Path) -> Callable[..., Index]:
    """A copy of the split in which the images of some rows are overwritten."""

    def damage(*rows: int) -> Index:
        folder = tmp_path / "damaged"
        shutil.copytree(packed, folder)
        index = Index.open(Dataset.open(folder), "train")
        for row in rows:
            record = index.row(row)
            with index.dataset.shard_path(record.shard).open("r+b") as file:
                file.seek(record.offset)
                file.write(np.zeros(record.length, np.uint8).tobytes())
        return index

    return damage
