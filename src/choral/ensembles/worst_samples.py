"""The samples that a run gets most wrong, as images with what was said of them."""

from __future__ import annotations

import heapq
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from choral.core.files import sha256_of
from choral.data.loading.decode import decode
from choral.data.shards.image_formats import sniff
from choral.data.shards.index import Index
from choral.data.shards.store import LocalStore
from choral.ensembles.rules import soft
from choral.inference.ledger import Ledger
from choral.metrics.regression_metrics import deviations
from choral.runs.run_dir import read_json, write_json
from choral.tracking.wandb_run import Picture

LISTING = "worst.json"
_SIDE = 320  # pixels, at most
_LEAST = 1e-38  # probability
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]")


@dataclass(frozen=True)
class Wrong:
    """A prediction that is far from the truth.

    Attributes:
        row: of the ledger.
        loss: multiclass and multilabel: log loss, in nats a label; regression: absolute error in standard deviations of
            each target over the split, their mean.
        label: multiclass, a class; multilabel, names of labels; regression, numbers by target.
        prediction: of all members together: probabilities by class, the five highest, or by label; numbers by target.
        caption: both in a line.
    """

    row: int
    loss: float
    label: str | list[str] | dict[str, float]
    prediction: dict[str, float]
    caption: str


def worst_rows(ledger: Ledger, count: int) -> list[Wrong]:
    """Return the rows of a ledger whose mean prediction has the highest loss, worst first.

    Args:
        ledger: its averaged views count, where it has them.
        count: at most so many rows.
    """
    view = next(name for name in ("tta", "identity", ledger.views[0]) if name in ledger.views)
    labels = ledger.labels
    scale = deviations(labels) if ledger.meta.task == "regression" else np.ones(1)
    worst: list[tuple[float, int, NDArray[np.float64]]] = []
    start = 0
    for block in ledger.blocks(view):
        said = soft(block).astype(np.float64)
        losses = _losses(ledger.meta.task, said, labels[start : start + len(said)], scale)
        highest = np.argsort(-losses, kind="stable")[:count].tolist()
        worst.extend((float(losses[number]), -(start + number), said[number]) for number in highest)
        worst = heapq.nlargest(count, worst, key=lambda one: one[:2])
        start += len(said)
    return [_wrong(ledger, -row, loss, labels[-row], said) for loss, row, said in worst]


def worst_pictures(ledger: Ledger, index: Index, count: int, max_pixels: int) -> list[Picture]:
    """Return the images of the worst predictions, decoded from the shards, at most 320 pixels wide and high."""
    pictures = []
    for wrong, key, data in _stored(ledger, index, count):
        image = Image.fromarray(decode(data, max_pixels=max_pixels))
        image.thumbnail((_SIDE, _SIDE))
        pictures.append(Picture(np.asarray(image), f"{key}: {wrong.caption}"))
    return pictures


def keep_worst(ledger: Ledger, index: Index, count: int, folder: Path) -> None:
    """Write the images of the worst predictions, as they are stored, into a folder, with worst.json saying what they are.

    Nothing is done where the folder already holds them; else its content is replaced.

    Raises:
        DataError: a shard is damaged.
        OSError: the folder cannot be written.
    """
    source = {"ledger": sha256_of(ledger.path), "asked": count}
    if source.items() <= (read_json(folder / LISTING) or {}).items():
        return
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    for leftover in folder.parent.glob(f".{folder.name}.*"):  # of a call that was killed
        shutil.rmtree(leftover)
    aside.mkdir(parents=True)
    try:
        images = []
        for number, (wrong, key, data) in enumerate(_stored(ledger, index, count), start=1):
            ending = sniff(data).replace("jpeg", "jpg")
            name = f"{number:03d}-{_NOT_IN_NAMES.sub('_', key)[:80]}.{ending}"  # keys name samples, they are no paths
            (aside / name).write_bytes(data)
            entry = {"file": name, "key": key, "loss": wrong.loss, "label": wrong.label, "prediction": wrong.prediction}
            images.append(entry)
        write_json(aside / LISTING, {**source, "split": ledger.meta.split, "images": images})
        if folder.exists():
            shutil.rmtree(folder)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _stored(ledger: Ledger, index: Index, count: int) -> Iterator[tuple[Wrong, str, bytes]]:
    """Yield the worst predictions, each with its sample's key and the bytes of its image."""
    rows = {key: row for row, key in enumerate(index.keys(np.arange(len(index))))}
    store = LocalStore(index.dataset)
    for wrong in worst_rows(ledger, count):
        key = ledger.keys[wrong.row]
        record = index.row(rows[key])
        yield wrong, key, store.read(record.shard, record.offset, record.length)


def _losses(
    task: str, said: NDArray[np.float64], truth: NDArray[np.generic], scale: NDArray[np.float64]
) -> NDArray[np.float64]:
    if task == "multiclass":
        right = said[np.arange(len(said)), truth.astype(np.int64)]
        surprise: NDArray[np.float64] = 0.0 - np.log(np.maximum(right, _LEAST))  # no -0.0
        return surprise
    if task == "multilabel":
        right = np.where(truth.astype(bool), said, 1 - said)
        loss: NDArray[np.float64] = -np.log(np.maximum(right, _LEAST)).mean(axis=1)
        return loss
    error: NDArray[np.float64] = (np.abs(said - truth.astype(np.float64)) / scale).mean(axis=1)
    return error


def _wrong(ledger: Ledger, row: int, loss: float, truth: NDArray[np.generic], said: NDArray[np.float64]) -> Wrong:
    names: Sequence[str] = ledger.classes
    if ledger.meta.task == "multiclass":
        order = np.argsort(-said, kind="stable")[:5].tolist()
        label, best = names[int(truth)], order[0]
        caption = f"is {label}, said {names[best]} ({said[best]:.0%})"
        return Wrong(row, loss, label, {names[number]: float(said[number]) for number in order}, caption)
    numbers = dict(zip(names, said.tolist(), strict=True))
    values = dict(zip(names, np.atleast_1d(truth).tolist(), strict=True))
    if ledger.meta.task == "multilabel":
        caption = "; ".join(f"{name} {'yes' if values[name] else 'no'}, said {p:.0%}" for name, p in numbers.items())
        return Wrong(row, loss, [name for name in names if values[name]], numbers, caption)
    caption = "; ".join(f"{name} {values[name]:g}, said {number:.4g}" for name, number in numbers.items())
    return Wrong(row, loss, values, numbers, caption)
