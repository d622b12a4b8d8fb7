"""Analyses with made-up numbers, so that a page is tested without a model, a ledger or packed shards."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from choral.analysis.advice import Advice, AdviceLine, RejectedFamily
from choral.analysis.data_health import BadImage, DataHealth, Drift, Histogram, Outlier, Quantity
from choral.analysis.duplicates import DuplicateGroup, Duplicates, SampleRef
from choral.analysis.groups import Group, Groups
from choral.analysis.label_errors import LabelErrors, LabelSource, SuspectLabel
from choral.analysis.page.stored_images import ImageFinder
from choral.analysis.probe_curves import ProbeCurve, ProbeCurves, ProbePoint
from choral.analysis.results import Analysis
from choral.analysis.samples import SampleTable, SliceColumn
from choral.analysis.summary import Coverage, SummaryMetric
from choral.metrics.reliability import ReliabilityBin

HOSTILE = (
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(2)>",
    'a "quoted" & \u2028 name',
    "../../etc",
)
"""Hostile names of a data set."""


def made_analysis(
    task: str = "multiclass",
    n: int = 300,
    classes: Sequence[str] = ("cat", "dog", "horse"),
    members: Sequence[str] = ("first", "second", "third"),
    keys: Sequence[str] | None = None,
    values: Sequence[str] = ("mono", "poly"),
    seed: int = 0,
) -> Analysis:
    """Return an analysis with something in every section."""
    random = np.random.default_rng(seed)
    keys = list(keys or (f"photo {number:05d}.jpg" for number in range(n)))
    make = {"multiclass": _of_classes, "multilabel": _of_labels, "regression": _of_numbers}[task]
    codes = random.integers(0, len(values), n).astype(np.int16)
    samples = replace(
        make(random, keys, len(classes), len(members)), slices={"type": SliceColumn(tuple(values), codes)}
    )
    share = task != "regression"
    return Analysis(
        run="made",
        split="val",
        predictor="soft+tta" if share else "mean+tta",
        task=task,
        classes=tuple(classes),
        members=tuple(members),
        n=n,
        skipped=0,
        date="2026-11-23T03:00:00+00:00",
        dataset="d" * 64,
        evaluation="e" * 64,
        summary=_summary(samples, share),
        samples=samples,
        groups=_groups(samples, task, classes, values),
        reliability=tuple(_bins()) if share else (),
        coverage=_coverage(share),
        label_errors=_label_errors(keys, classes),
        duplicates=_duplicates(keys, classes),
        health=_health(random, n, classes, share, keys),
    )


def image_finder(size: tuple[int, int] = (48, 40), unreadable: str = "") -> ImageFinder:
    """Return a finder that makes an image for every key, except one that is not an image."""

    def read(split: str, key: str) -> bytes:
        return b"no image" if key == unreadable else made_image(f"{split} {key}", size)

    return lambda places: read


def made_image(name: str, size: tuple[int, int]) -> bytes:
    """Return a JPEG of coloured tiles, the same for the same name."""
    random = np.random.default_rng(list(name.encode()))
    file = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize(size).save(file, "JPEG")
    return file.getvalue()


def made_advice(advised: bool = True) -> Advice:
    """Return advice with one line, or none."""
    drop, gain = {"value": 0.31, "low": 0.25, "high": 0.37}, {"value": 0.12, "low": 0.07, "high": 0.17}
    reason = "Rotating by 30 degrees costs 31.0 points [25.0, 37.0]; rotating back corrects a third of the errors."
    line = AdviceLine(
        "rotation", "rotate", 30, {"rotate": 30}, 30.0, "degrees", drop, 1e-4, "undone", gain, 1e-3, 0.34, 0.1, reason
    )
    rejected = (
        RejectedFamily("hflip", "plausible, but accuracy does not fall"),
        RejectedFamily("noise", "is not in these images"),
    )
    note = "One family costs accuracy and is in the images." if advised else "Nothing is significantly sensitive."
    lines = (line,) if advised else ()
    return Advice("made", "val", "soft", "accuracy", 300, lines, rejected, 14, note, "d" * 64, "e" * 64)


_FAMILIES = (
    ("rotation", "rotate", "degrees", (10.0, 20.0, 30.0, 45.0, 60.0), "turned about the centre", 0.3),
    ("darker", "brightness", "", (0.2, 0.4, 0.6, 0.8), "1 - x times as bright", 0.02),
    ("smaller", "zoom", "", (0.2, 0.35, 0.5), "1 - x times as large, the rest filled with the mirrored image", 0.12),
    ("low_contrast", "contrast", "", (0.25, 0.5, 0.75), "1 - x times the contrast, about the mean", 0.0),
    ("blur", "blur", "pixels of 224", (1.0, 2.0, 3.0, 5.0), "Gaussian blur of this standard deviation", 0.2),
    ("hflip", "hflip", "", (1.0,), "left and right exchanged", 0.01),
)


def made_curves() -> ProbeCurves:
    """Return curves of some families, two of which fall by more than chance."""
    curves = []
    for family, key, unit, strengths, text, most in _FAMILIES:
        points = []
        for strength in strengths:
            drop = most * strength / strengths[-1]
            value, p = 0.877 - drop, 0.0004 if drop > 0.08 else 0.6
            points.append(
                ProbePoint(strength, value, value - 0.03, value + 0.03, drop, drop - 0.02, drop + 0.02, p / 9, p)
            )
        curves.append(ProbeCurve(family, key, unit, text, tuple(points)))
    unperturbed = {"value": 0.877, "low": 0.84, "high": 0.91}
    return ProbeCurves("made", "val", "soft", "accuracy", 300, 300, unperturbed, tuple(curves), "e" * 64, 9)


def _of_classes(random: np.random.Generator, keys: list[str], classes: int, members: int) -> SampleTable:
    n, kept = len(keys), min(3, classes)
    labels = random.integers(0, classes, n).astype(np.int32)
    near = (labels[:, None] + random.integers(0, 3, (n, members))) % classes
    votes = np.where(random.random((n, members)) < 0.85, labels[:, None], near).astype(np.int32)
    predicted = votes[:, 0].copy()
    confidence = random.uniform(1 / classes, 1, n).astype(np.float32)
    top = ((predicted[:, None] + np.arange(kept)) % classes).astype(np.int32)
    rest = np.maximum(1 - confidence, 0)[:, None] / max(1, kept)
    probability = np.concatenate([confidence[:, None], np.repeat(rest, kept - 1, axis=1)], axis=1).astype(np.float32)
    right = predicted == labels
    loss = np.where(right, -np.log(confidence), 2 + 4 * confidence).astype(np.float32)
    sure = random.uniform(0.4, 1, (n, members)).astype(np.float32)
    return SampleTable(keys, labels, predicted, confidence, loss, right, votes, sure, top, probability, {})


def _of_labels(random: np.random.Generator, keys: list[str], labels: int, members: int) -> SampleTable:
    n, kept = len(keys), min(3, labels)
    truth = random.random((n, labels)) < min(0.4, 3 / labels)
    votes = truth[:, None, :] ^ (random.random((n, members, labels)) < 0.2 * min(1, 3 / labels))
    predicted = votes[:, 0]
    right = (predicted == truth).all(axis=1)
    loss = (0.1 + (predicted != truth).mean(axis=1) * 3 + random.random(n) * 0.05).astype(np.float32)
    confidence = random.uniform(0.5, 1, n).astype(np.float32)
    top = np.argsort(predicted == truth, axis=1, kind="stable")[:, :kept].astype(np.int32)
    probability = np.take_along_axis(np.where(predicted, 0.8, 0.2), top, axis=1).astype(np.float32)
    sure = random.uniform(0.5, 1, (n, members)).astype(np.float32)
    return SampleTable(keys, truth, predicted, confidence, loss, right, votes, sure, top, probability, {})


def _of_numbers(random: np.random.Generator, keys: list[str], targets: int, members: int) -> SampleTable:
    n = len(keys)
    truth = random.normal(10, 4, (n, targets)).astype(np.float32)
    votes = (truth[:, None] + random.normal(0, 1.5, (n, members, targets))).astype(np.float32)
    predicted = votes.mean(axis=1)
    loss = np.abs(predicted - truth).mean(axis=1) / 4
    confidence = -votes.std(axis=1).mean(axis=1) / 4
    none = np.empty((n, 0))
    return SampleTable(
        keys,
        truth,
        predicted,
        confidence.astype(np.float32),
        loss.astype(np.float32),
        np.ones(n, dtype=np.bool_),
        votes,
        none.astype(np.float32),
        none.astype(np.int32),
        none.astype(np.float32),
        {},
    )


def _summary(samples: SampleTable, share: bool) -> tuple[SummaryMetric, ...]:
    if not share:
        return (
            SummaryMetric("rmse", "RMSE", 1.52, 1.41, 1.63, False),
            SummaryMetric("r2", "R2", 0.86, 0.83, 0.88, False),
        )
    right = float(samples.right.mean())
    return (
        SummaryMetric("accuracy", "accuracy %", right, right - 0.03, right + 0.03, True),
        SummaryMetric("balanced_accuracy", "balanced accuracy %", right - 0.01, right - 0.05, right + 0.02, True),
        SummaryMetric("f1_macro", "F1, mean of classes %", right - 0.01, right - 0.05, right + 0.02, True),
        SummaryMetric("roc_auc", "ROC AUC %", 0.942, 0.921, 0.959, True),
        SummaryMetric("log_loss", "log loss", 0.3092, 0.2744, 0.3481, False),
        SummaryMetric("ece", "calibration error %", 0.021, 0.0, 0.043, True),
    )


def _groups(samples: SampleTable, task: str, classes: Sequence[str], values: Sequence[str]) -> Groups:
    name = {"multiclass": "class", "multilabel": "label", "regression": "target"}[task]
    share = task == "multiclass"
    one, all_samples = len(values) - 1, samples.right if share else samples.loss

    def group(column: str, value: str, mask: NDArray[np.bool_], significant: bool) -> Group:
        if not mask.any():
            return Group(column, value, 0, None, None, None, None, None, False, {})
        score, rest = float(all_samples[mask].mean()), float(all_samples[~mask].mean()) if (~mask).any() else 0.0
        half = 1 / np.sqrt(mask.sum()) / 2
        numbers = {"value": score, "low": score - half, "high": score + half}
        details: dict[str, Any] = {"f1": numbers, "precision": numbers} if column == name else {}
        gap = {"value": score - rest, "low": score - rest - half, "high": score - rest + half}
        p = 0.003 if significant else 0.4
        other = {"value": rest, "low": rest, "high": rest}
        return Group(column, value, int(mask.sum()), numbers, other, gap, p / 2, p, significant, details)

    def of_class(number: int) -> NDArray[np.bool_]:
        if task == "regression":
            return np.ones(len(samples), dtype=np.bool_)
        return samples.labels == number if share else samples.labels[:, number]

    by_class = tuple(group(name, value, of_class(number), number == 0) for number, value in enumerate(classes))
    codes = samples.slices["type"].codes
    slices = tuple(group("type", value, codes == number, number == one) for number, value in enumerate(values))
    note = "Intervals by bootstrap; p values of differences after Holm's correction."
    return Groups(
        "accuracy" if share else "loss" if task == "multilabel" else "error",
        share,
        share,
        by_class,
        {"type": slices},
        len(by_class) + len(slices),
        {"path": "has too few samples per value: less than half are in slices of at least 5"},
        note,
    )


def _bins() -> list[ReliabilityBin]:
    places = np.linspace(0.55, 0.99, 10)
    return [
        ReliabilityBin(30, float(x), float(x**1.2), float(x**1.2 - 0.12), float(min(1, x**1.2 + 0.1))) for x in places
    ]


def _coverage(share: bool) -> Coverage:
    x = np.linspace(0.05, 1, 20)
    value = 1 - 0.14 * x**2 if share else 0.3 + 0.2 * x
    return Coverage(x, value, value - 0.03, np.minimum(value + 0.03, 1.0), 0.043 if share else None)


def _label_errors(keys: Sequence[str], classes: Sequence[str]) -> LabelErrors:
    count = min(30, len(keys))
    listed = [
        SuspectLabel("val" if place % 2 else "train", keys[place], classes[0], classes[-1], 0.01 * place, 0.02, 0.95)
        for place in range(count)
    ]
    held_out = LabelSource(
        "train", "held-out", 1500, 15, 0.021, "Each sample is judged by networks trained without it."
    )
    own = LabelSource(
        "val", "evaluation", 300, 15, None, "The networks did not train on it; it chose their checkpoints."
    )
    return LabelErrors(tuple(listed), (held_out, own), "")


def _duplicates(keys: Sequence[str], classes: Sequence[str]) -> Duplicates:
    pair = lambda split, a, b: (SampleRef("train", a, classes[0]), SampleRef(split, b, classes[-1]))  # noqa: E731
    groups = (
        DuplicateGroup(pair("val", keys[0], keys[1]), "near", 0.034, False, True, True),
        DuplicateGroup(pair("test", keys[2], keys[3]), "bytes", 0.0, False, True, True),
        DuplicateGroup((SampleRef("train", keys[4], classes[0]),) * 2, "pixels", 0.0, True, False, False),
    )
    return Duplicates(
        groups,
        3,
        2,
        2,
        {"val": 1, "test": 1},
        2624,
        "mean absolute difference of pixels, 0 to 1",
        "By perceptual hashes, verified.",
    )


def _health(
    random: np.random.Generator, n: int, classes: Sequence[str], share: bool, keys: Sequence[str]
) -> DataHealth:
    def quantity(name: str, unit: str, low: float, high: float, drifted: bool) -> Quantity:
        edges = np.linspace(low, high, 25)
        splits = {}
        for split, at in (("train", 0.5), ("val", 0.5), ("test", 0.7 if drifted else 0.5)):
            values = np.clip(random.normal(low + at * (high - low), (high - low) / 9, 900), low, high)
            quantiles = tuple(np.quantile(values, [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1]).tolist())
            splits[split] = Histogram(np.histogram(values, edges)[0], quantiles)
        drift = (
            Drift("val", 0.03, 0.7, False),
            Drift("test", 0.4 if drifted else 0.03, 0.001 if drifted else 0.8, drifted),
        )
        return Quantity(name, unit, edges, splits, drift)

    counts = tuple(random.integers(50, 400, len(classes)).tolist())
    return DataHealth(
        {"train": 1706, "val": n, "test": 656},
        dict.fromkeys(("train", "val", "test"), counts) if share else {},
        {"train": {"jpeg": 1700, "png": 6}, "val": {"jpeg": n}, "test": {"jpeg": 656}},
        (
            quantity("width", "pixels", 100, 900, False),
            quantity("height", "pixels", 100, 900, False),
            quantity("brightness", "0 to 1", 0, 1, True),
            quantity("contrast", "0 to 1", 0, 0.5, False),
            quantity("sharpness", "", 0, 9, False),
        ),
        tuple(Outlier("val", key, "brightness", 0.02, 0.2, 0.8) for key in keys[:5]),
        (BadImage("train", "broken", "cut short"),),
        (BadImage("train", keys[6 % len(keys)], "all pixels alike"),),
        1,
        1,
        2624,
        ("All images are grey.",),
    )
