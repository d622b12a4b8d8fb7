"""Small image sources for tests, and the fixtures `photos` and `packed`.

The colour of an image is its label; 7 + 5 + 1 images, so that nothing divides evenly.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from PIL import Image

from choral.data.packing.options import PackOptions
from choral.data.packing.pack import pack
from choral.data.shards.index import Dataset

CLASSES = {"red": 7, "green": 5, "blue": 1}


def image_bytes(color: str | tuple[int, ...] = "red", size: tuple[int, int] = (8, 6), fmt: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, fmt)
    return buffer.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], fmt: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=fmt) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def samples(start: int, count: int, classes: int = 3) -> list[tuple[str, bytes]]:
    """Return the members of a WebDataset tar: samples s0000, s0001, ... with labels 0, 1, ... in turn."""
    members = []
    for number in range(start, start + count):
        members.append((f"s{number:04d}.cls", str(number % classes).encode()))
        members.append((f"s{number:04d}.png", image_bytes((number, 0, 0))))
    return members


def make_photos(root: Path, classes: dict[str, int]) -> Path:
    """Write class folders and return `root`; all images differ in a pixel value, half of them are JPEG."""
    for label, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for number in range(count):
            color = [number, 0, 0]
            color[label % 3] += 100
            fmt = ("PNG", "JPEG")[number % 2]
            (root / name / f"{number:03d}.{fmt.lower()}").write_bytes(image_bytes(tuple(color), fmt=fmt))
    return root


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return class folders with 13 images."""
    return make_photos(tmp_path / "photos", CLASSES)


@pytest.fixture
def packed(photos: Path, tmp_path: Path) -> Dataset:
    """Return `photos`, packed with the default splits."""
    return pack(str(photos), tmp_path / "packed", PackOptions(processes=1))
