"""A folder of photos, and the same packed."""

from __future__ import annotations

from pathlib import Path

import pytest

from choral.data.packing.options import PackOptions
from choral.data.packing.pack import pack
from choral.data.shards.index import Dataset
from shard_samples import CLASSES, make_photos


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "photos", CLASSES)


@pytest.fixture
def packed(photos: Path, tmp_path: Path) -> Dataset:
    return pack(str(photos), tmp_path / "packed", PackOptions(processes=1))
