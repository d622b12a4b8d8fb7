"""The samples that a run gets most wrong, as images with what was said of them."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from choral.ensemble.combine import soft
from choral.inputs.decode import decode
from choral.predict.ledger import Ledger
from choral.shards.index import Index
from choral.shards.store import LocalStore
from choral.tracking.wandb_run import Picture

_SIDE = 320  # pixels, at most


def worst_rows(ledger: Ledger, count: int) -> list[tuple[int, str]]:
    """Return the rows of a ledger whose mean prediction is the furthest from the truth, worst first, each with a caption.

    multiclass: by the probability of the true class; multilabel: by the log loss; regression: by the absolute error in
    standard deviations of each target over the split, their mean.

    Args:
        ledger: its averaged views count, where it has them.
        count: at most so many rows.
    """
    view = next(name for name in ("tta", "identity", ledger.views[0]) if name in ledger.views)
    labels = ledger.labels
    scale = np.maximum(labels.std(axis=0), 1e-12) if ledger.meta.task == "regression" else np.ones(1)
    worst: list[tuple[float, int, str]] = []
    start = 0
    for block in ledger.blocks(view):
        said = soft(block).astype(np.float64)
        truth = labels[start : start + len(said)]
        badness = _badness(ledger.meta.task, said, truth, scale)
        for number in np.argsort(-badness, kind="stable")[:count].tolist():
            caption = _caption(ledger, truth[number], said[number])
            worst.append((float(badness[number]), -(start + number), caption))
        worst = heapq.nlargest(count, worst)
        start += len(said)
    return [(-row, caption) for _, row, caption in worst]


def worst_pictures(ledger: Ledger, index: Index, count: int, max_pixels: int) -> list[Picture]:
    """Return the images of the worst predictions, decoded from the shards, at most 320 pixels wide and high."""
    rows = {key: row for row, key in enumerate(index.keys(np.arange(len(index))))}
    store = LocalStore(index.dataset)
    pictures = []
    for row, caption in worst_rows(ledger, count):
        key = ledger.keys[row]
        record = index.row(rows[key])
        image = Image.fromarray(decode(store.read(record.shard, record.offset, record.length), max_pixels=max_pixels))
        image.thumbnail((_SIDE, _SIDE))
        pictures.append(Picture(np.asarray(image), f"{key}: {caption}"))
    return pictures


def _badness(
    task: str, said: NDArray[np.float64], truth: NDArray[np.generic], scale: NDArray[np.float64]
) -> NDArray[np.float64]:
    if task == "multiclass":
        wrong: NDArray[np.float64] = 1 - said[np.arange(len(said)), truth.astype(np.int64)]
        return wrong
    if task == "multilabel":
        sure = np.clip(np.where(truth.astype(bool), said, 1 - said), 1e-12, None)
        loss: NDArray[np.float64] = -np.log(sure).mean(axis=1)
        return loss
    error: NDArray[np.float64] = (np.abs(said - truth.astype(np.float64)) / scale).mean(axis=1)
    return error


def _caption(ledger: Ledger, truth: NDArray[np.generic], said: NDArray[np.float64]) -> str:
    names: Sequence[str] = ledger.classes
    if ledger.meta.task == "multiclass":
        best = int(said.argmax())
        return f"is {names[int(truth)]}, said {names[best]} ({said[best]:.0%})"
    pairs = zip(names, np.atleast_1d(truth).tolist(), said.tolist(), strict=True)
    if ledger.meta.task == "multilabel":
        return "; ".join(f"{name} {'yes' if is_so else 'no'}, said {p:.0%}" for name, is_so, p in pairs)
    return "; ".join(f"{name} {value:g}, said {number:.4g}" for name, value, number in pairs)
