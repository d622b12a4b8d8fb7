"""Packed data sets with planted faults, and a run with synthetic ledgers for them; nothing is trained."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from choral.config import Config
from choral.data.packing.options import PackOptions
from choral.data.packing.pack import pack
from choral.data.shards.index import Dataset, Index
from choral.runs.run_dir import RunDir
from made_runs import made_run, predictions, write_ledger

Picture = NDArray[np.uint8]
SIDE = 96


def picture(seed: int, side: int = SIDE, common: Picture | None = None) -> Picture:
    """Return random clouds of all sizes in three similar channels, like a photograph; different for each seed."""
    random = np.random.default_rng(seed)
    total = np.zeros((side, side, 3), np.float32)
    for cells in (3, 6, 12, 24, 48):
        coarse = random.normal(0, 1, (cells, cells, 3)).astype(np.float32) * np.array([1.0, 0.9, 0.8], np.float32)
        total += cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC) * (3 / cells) ** 0.7
    levels = 128 + 45 * total + random.normal(0, 3, total.shape)
    if common is not None:
        levels = 0.25 * levels + 0.75 * common.astype(np.float32)
    return np.clip(levels, 0, 255).astype(np.uint8)


def saved(image: Picture, kind: str = "PNG", quality: int = 90) -> bytes:
    """Return the encoded image."""
    data = io.BytesIO()
    Image.fromarray(image).save(data, kind, **({"quality": quality} if kind == "JPEG" else {}))
    return data.getvalue()


def cropped(image: Picture, part: float, y: float = 0.3, x: float = 0.8) -> Picture:
    """Return a crop with `part` of the sides."""
    size = round(len(image) * part)
    top, left = round((len(image) - size) * y), round((len(image) - size) * x)
    return np.ascontiguousarray(image[top : top + size, left : left + size])


def lit(image: Picture, gain: float, offset: float = 0) -> Picture:
    """Return the image brighter or darker."""
    return np.clip(image.astype(np.float32) * gain + offset, 0, 255).astype(np.uint8)


def resized(image: Picture, part: float) -> Picture:
    """Return the image with its sides times `part`."""
    return np.asarray(cv2.resize(image, None, fx=part, fy=part, interpolation=cv2.INTER_AREA), np.uint8)


VARIANTS: Mapping[str, Callable[[Picture], bytes]] = {
    "bytes": saved,
    "pixels": lambda image: saved(image, "BMP"),
    "jpeg": lambda image: saved(image, "JPEG", 60),
    "half": lambda image: saved(resized(image, 0.5)),
    "large": lambda image: saved(resized(image, 1.5)),
    "cut": lambda image: saved(cropped(image, 0.95)),
    "dark": lambda image: saved(lit(image, 0.75)),
    "bright": lambda image: saved(lit(image, 1.1, 10)),
    "all": lambda image: saved(lit(resized(cropped(image, 0.95), 0.8), 0.85), "JPEG", 75),
    "mirrored": lambda image: saved(np.ascontiguousarray(image[:, ::-1])),
    "turned": lambda image: saved(np.ascontiguousarray(np.rot90(image))),
}


def packed(folder: Path, files: Mapping[str, bytes]) -> Dataset:
    """Pack files named SPLIT/CLASS/NAME."""
    for name, data in files.items():
        path = folder / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    pack(str(folder / "photos"), folder / "shards", PackOptions(processes=1))
    return Dataset.open(folder / "shards")


def run_about(folder: Path, dataset: Dataset, seed: int = 0) -> tuple[RunDir, Config]:
    """Make a run with synthetic predictions for val and test of a data set of three classes."""
    ledgers, keys = {}, {}
    for number, split in enumerate(("val", "test")):
        index = Index.open(dataset, split)
        order = np.argsort(index.keys(np.arange(len(index))), kind="stable")
        keys[split] = [index.keys(order)[place] for place in range(len(index))]
        labels = index.labels[order]
        _, columns = predictions(len(index), seed=seed + number)
        for values in columns.values():
            values[np.arange(len(labels)), labels] += 0.8
            values /= values.sum(axis=1, keepdims=True)
        ledgers[split] = labels, columns
    run, config = made_run(
        folder,
        {},
        ["ensemble.members=[{name: a}, {name: b}, {name: c}]", f"data.shards={dataset.folder}"],
    )
    for split, (labels, columns) in ledgers.items():
        write_ledger(
            run.predictions / f"{split}.parquet",
            labels,
            columns,
            classes=dataset.classes,
            keys=keys[split],
            dataset=dataset.fingerprint,
        )
    return run, config
