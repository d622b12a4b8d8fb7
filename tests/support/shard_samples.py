"""Small sources: images whose colour is the label, 7 + 5 + 1 of them, so that nothing divides evenly."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

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
    """Members of a WebDataset tar: samples s0000 and so on, labels in turn."""
    members = []
    for number in range(start, start + count):
        members.append((f"s{number:04d}.cls", str(number % classes).encode()))
        members.append((f"s{number:04d}.png", image_bytes((number, 0, 0))))
    return members


def make_photos(root: Path, classes: dict[str, int]) -> Path:
    """A folder of class folders; every image differs in one pixel value, half are JPEG."""
    for label, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for number in range(count):
            color = [number, 0, 0]
            color[label % 3] += 100
            fmt = ("PNG", "JPEG")[number % 2]
            (root / name / f"{number:03d}.{fmt.lower()}").write_bytes(image_bytes(tuple(color), fmt=fmt))
    return root
