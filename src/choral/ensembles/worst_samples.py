"""The worst predictions of a run, as images with label and prediction."""

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

from choral.core.files import compute_sha256
from choral.data.loading.decode import decode
from choral.data.shards.image_formats import detect_format
from choral.data.shards.index import Index
from choral.data.shards.store import LocalStore
from choral.ensembles.rules import soft_vote
from choral.inference.ledger import Ledger
from choral.metrics.regression_metrics import compute_target_scales
from choral.runs.run_dir import read_json, write_json
from choral.tracking.wandb_run import CaptionedImage

LISTING = "worst.json"
_MAX_SIDE = 320  # pixels
_MIN_PROBABILITY = 1e-38
_NOT_IN_FILE_NAMES = re.compile(r"[^A-Za-z0-9._-]")


@dataclass(frozen=True)
class WorstPrediction:
    """A prediction with a high loss.

    Attributes:
        row: of the ledger.
        loss: multiclass and multilabel: log loss, in nats a label; regression: absolute error in standard deviations of each
            target over the split, averaged over targets.
        label: multiclass: the class; multilabel: names of the labels; regression: number by target.
        prediction: mean over the members: probability by class, of the five most probable, or by label; number by target.
        caption: label and prediction in one line.
    """

    row: int
    loss: float
    label: str | list[str] | dict[str, float]
    prediction: dict[str, float]
    caption: str


def find_worst_predictions(ledger: Ledger, count: int) -> list[WorstPrediction]:
    """Return the predictions with the highest loss of the mean over members, worst first.

    Args:
        ledger: its averaged views are used, if it has them.
        count: at most so many.
    """
    view = next(name for name in ("tta", "identity", ledger.views[0]) if name in ledger.views)
    labels = ledger.labels
    scale = compute_target_scales(labels) if ledger.meta.task == "regression" else np.ones(1)
    worst: list[tuple[float, int, NDArray[np.float64]]] = []
    start = 0
    for block in ledger.blocks(view):
        predictions = soft_vote(block).astype(np.float64)
        losses = _losses(ledger.meta.task, predictions, labels[start : start + len(predictions)], scale)
        highest = np.argsort(-losses, kind="stable")[:count].tolist()
        worst.extend((float(losses[number]), -(start + number), predictions[number]) for number in highest)
        worst = heapq.nlargest(count, worst, key=lambda one: one[:2])
        start += len(predictions)
    return [_describe(ledger, -row, loss, labels[-row], prediction) for loss, row, prediction in worst]


def load_worst_images(ledger: Ledger, index: Index, count: int, max_pixels: int) -> list[CaptionedImage]:
    """Return captioned thumbnails of the `count` predictions with the highest loss, worst first, decoded from the shards.

    Args:
        max_pixels: height x width above which a stored image is refused. Thumbnails have at most 320 pixels per side.
    """
    images = []
    for worst, key, data in _read_worst(ledger, index, count):
        image = Image.fromarray(decode(data, max_pixels=max_pixels))
        image.thumbnail((_MAX_SIDE, _MAX_SIDE))
        images.append(CaptionedImage(np.asarray(image), f"{key}: {worst.caption}"))
    return images


def write_worst_images(ledger: Ledger, index: Index, count: int, folder: Path) -> None:
    """Write the stored images of the worst predictions to a folder, with worst.json describing them.

    Does nothing if the folder already holds them; otherwise its content is replaced.

    Raises:
        DataError: a shard is damaged.
        OSError: the folder cannot be written.
    """
    source = {"ledger": compute_sha256(ledger.path), "requested": count}
    listing = read_json(folder / LISTING) or {}
    if "asked" in listing:  # the key of earlier versions
        listing["requested"] = listing.pop("asked")
    if source.items() <= listing.items():
        return
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    for leftover in folder.parent.glob(f".{folder.name}.*"):  # of a process that was killed
        shutil.rmtree(leftover)
    temporary.mkdir(parents=True)
    try:
        images = []
        for number, (worst, key, data) in enumerate(_read_worst(ledger, index, count), start=1):
            extension = detect_format(data).replace("jpeg", "jpg")
            # Keys are sample names, not paths: they may hold any character.
            name = f"{number:03d}-{_NOT_IN_FILE_NAMES.sub('_', key)[:80]}.{extension}"
            (temporary / name).write_bytes(data)
            entry = {"file": name, "key": key, "loss": worst.loss, "label": worst.label, "prediction": worst.prediction}
            images.append(entry)
        write_json(temporary / LISTING, {**source, "split": ledger.meta.split, "images": images})
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _read_worst(ledger: Ledger, index: Index, count: int) -> Iterator[tuple[WorstPrediction, str, bytes]]:
    """Yield the worst predictions, each with its sample's key and the bytes of its image."""
    rows = {key: row for row, key in enumerate(index.keys(np.arange(len(index))))}
    store = LocalStore(index.dataset)
    for worst in find_worst_predictions(ledger, count):
        key = ledger.keys[worst.row]
        record = index.row(rows[key])
        yield worst, key, store.read(record.shard, record.offset, record.length)


def _losses(
    task: str, predictions: NDArray[np.float64], truth: NDArray[np.generic], scale: NDArray[np.float64]
) -> NDArray[np.float64]:
    if task == "multiclass":
        of_label = predictions[np.arange(len(predictions)), truth.astype(np.int64)]
        losses: NDArray[np.float64] = 0.0 - np.log(np.maximum(of_label, _MIN_PROBABILITY))  # never -0.0
        return losses
    if task == "multilabel":
        of_truth = np.where(truth.astype(bool), predictions, 1 - predictions)
        mean_losses: NDArray[np.float64] = -np.log(np.maximum(of_truth, _MIN_PROBABILITY)).mean(axis=1)
        return mean_losses
    errors: NDArray[np.float64] = (np.abs(predictions - truth.astype(np.float64)) / scale).mean(axis=1)
    return errors


def _describe(
    ledger: Ledger, row: int, loss: float, truth: NDArray[np.generic], prediction: NDArray[np.float64]
) -> WorstPrediction:
    names: Sequence[str] = ledger.classes
    if ledger.meta.task == "multiclass":
        order = np.argsort(-prediction, kind="stable")[:5].tolist()
        label, best = names[int(truth)], order[0]
        caption = f"label {label}, predicted {names[best]} ({prediction[best]:.0%})"
        return WorstPrediction(
            row, loss, label, {names[number]: float(prediction[number]) for number in order}, caption
        )
    predicted = dict(zip(names, prediction.tolist(), strict=True))
    actual = dict(zip(names, np.atleast_1d(truth).tolist(), strict=True))
    if ledger.meta.task == "multilabel":
        caption = "; ".join(
            f"{name} {'yes' if actual[name] else 'no'}, predicted {probability:.0%}"
            for name, probability in predicted.items()
        )
        return WorstPrediction(row, loss, [name for name in names if actual[name]], predicted, caption)
    caption = "; ".join(f"{name} {actual[name]:g}, predicted {number:.4g}" for name, number in predicted.items())
    return WorstPrediction(row, loss, actual, predicted, caption)
