"""Statistics of the images of a data set: size, brightness, colour, sharpness; outliers; drift between splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from choral.analysis.image_survey import Survey, order_splits
from choral.metrics.multiple_comparisons import holm

UNITS = {
    "height": "pixels",
    "width": "pixels",
    "aspect": "width / height",
    "brightness": "mean grey level, 0 to 1",
    "contrast": "standard deviation of grey levels",
    "saturation": "mean spread of the channels, 0 to 1",
    "sharpness": "log10 variance of the Laplacian",
}
SIGNIFICANCE_LEVEL = 0.05
_BINS = 24
_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_FENCE = 3.0
"""Interquartile ranges beyond the quartiles: what Tukey 1977, "Exploratory data analysis", calls far out."""
_MAX_OUTLIERS = 12  # per quantity
_MAX_BAD_IMAGES = 200  # listed
_MIN_DRIFT = 0.05  # Kolmogorov-Smirnov distance: with very many images less is significant, but irrelevant
_FEW_SAMPLES = 10  # of a class in the training split
_IMBALANCE = 10  # samples of the largest class over those of the smallest


@dataclass(frozen=True)
class Histogram:
    """The distribution of a quantity in one split.

    Attributes:
        counts: (b,) images in each bin.
        quantiles: at 0, 5, 25, 50, 75, 95 and 100 %.
    """

    counts: NDArray[np.int64]
    quantiles: tuple[float, ...]


@dataclass(frozen=True)
class Drift:
    """Whether a quantity is distributed in a split as in the training split: two-sample Kolmogorov-Smirnov test.

    Attributes:
        split: compared with the training split.
        distance: the largest difference between the distribution functions, 0 to 1.
        p_adjusted: after Holm's correction for all splits and quantities.
        significant: whether p_adjusted is below 0.05 and the distance large enough to matter.
    """

    split: str
    distance: float
    p_adjusted: float
    significant: bool


@dataclass(frozen=True)
class Quantity:
    """A quantity measured on every image.

    Attributes:
        name, unit: such as brightness, and "0 to 1".
        edges: (b + 1,) of the bins, the same for all splits.
        splits: split to its distribution.
        drift: of each split but the training split; empty where there is no training split.
    """

    name: str
    unit: str
    edges: NDArray[np.float64]
    splits: dict[str, Histogram]
    drift: tuple[Drift, ...]


@dataclass(frozen=True)
class Outlier:
    """An image with an unusual value of one quantity; low and high are the ends of the usual range."""

    split: str
    key: str
    quantity: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class BadImage:
    """An image that cannot be decoded, or is constant (all pixels the same), with the reason."""

    split: str
    key: str
    reason: str


@dataclass(frozen=True)
class DataHealth:
    """The state of the images of a data set.

    Attributes:
        samples: split to number of samples.
        class_counts: split to samples of each class or label, in the order of the task; empty for regression.
        formats: split to image format (jpeg, png) to number of samples.
        quantities: sizes, brightness and so on.
        outliers: the most unusual images of each quantity.
        unreadable, constant: those listed.
        unreadable_found, constant_found: how many there are.
        measured: number of images.
        notes: findings, each a sentence; such as that all images are grey.
    """

    samples: dict[str, int]
    class_counts: dict[str, tuple[int, ...]]
    formats: dict[str, dict[str, int]]
    quantities: tuple[Quantity, ...]
    outliers: tuple[Outlier, ...]
    unreadable: tuple[BadImage, ...]
    constant: tuple[BadImage, ...]
    unreadable_found: int
    constant_found: int
    measured: int
    notes: tuple[str, ...]


def compute_data_health(surveys: Mapping[str, Survey], *, train: str) -> DataHealth:
    """Return the state of the images of all splits.

    Args:
        surveys: of all splits.
        train: the split that the others are compared with.
    """
    ordered = dict(order_splits(dict(surveys)))
    indices = {split: survey.index for split, survey in ordered.items()}
    dataset = next(iter(indices.values())).dataset
    quantities = _measure_quantities(ordered, train)
    unreadable = [
        BadImage(split, survey.index.keys([row])[0], reason)
        for split, survey in ordered.items()
        for row, reason in enumerate(survey.reasons)
        if reason
    ]
    constant = [
        BadImage(
            split,
            survey.index.keys([row])[0],
            f"all pixels are the same, brightness {survey.measures['brightness'][row]:.2f}",
        )
        for split, survey in ordered.items()
        for row in np.flatnonzero(survey.constant).tolist()
    ]
    counts = {split: index.class_counts for split, index in indices.items()} if dataset.task != "regression" else {}
    formats = {
        split: {str(ext): count for ext, count in sorted(Counter(index.table["ext"].to_pylist()).items())}
        for split, index in indices.items()
    }
    notes = [
        *_image_notes(ordered, len(unreadable), len(constant)),
        *_class_notes(counts.get(train, ()), dataset.classes, train),
        *_drift_notes(quantities, train),
    ]
    return DataHealth(
        samples={split: len(survey) for split, survey in ordered.items()},
        class_counts=counts,
        formats=formats,
        quantities=quantities,
        outliers=tuple(outlier for quantity in quantities for outlier in _find_outliers(quantity.name, ordered)),
        unreadable=tuple(unreadable[:_MAX_BAD_IMAGES]),
        constant=tuple(constant[:_MAX_BAD_IMAGES]),
        unreadable_found=len(unreadable),
        constant_found=len(constant),
        measured=sum(len(survey) for survey in ordered.values()),
        notes=tuple(notes),
    )


def _measure_quantities(surveys: Mapping[str, Survey], train: str) -> tuple[Quantity, ...]:
    values = {name: {split: _drop_nan(survey.measures[name]) for split, survey in surveys.items()} for name in UNITS}
    values = {name: by_split for name, by_split in values.items() if any(len(one) for one in by_split.values())}
    drifts = _test_drift(values, train)
    quantities = []
    for name, by_split in values.items():
        together = np.concatenate(list(by_split.values()))
        low, high = float(together.min()), float(together.max())
        edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
        histograms = {
            split: Histogram(np.histogram(one, edges)[0].astype(np.int64), tuple(np.quantile(one, _QUANTILES).tolist()))
            for split, one in by_split.items()
            if len(one)
        }
        quantities.append(Quantity(name, UNITS[name], edges, histograms, drifts[name]))
    return tuple(quantities)


def _test_drift(values: Mapping[str, Mapping[str, NDArray[np.float64]]], train: str) -> dict[str, tuple[Drift, ...]]:
    """Compare each split with the training split by each quantity that varies; p values are adjusted for all tests."""
    from scipy.stats import ks_2samp  # a third of a second to import

    compared = [
        (name, split)
        for name, by_split in values.items()
        for split, one in by_split.items()
        if split != train
        and len(by_split.get(train, ()))
        and len(one)
        and np.ptp(np.concatenate([by_split[train], one])) > 0
    ]
    results = [ks_2samp(values[name][train], values[name][split], method="asymp") for name, split in compared]
    adjusted = holm([float(result.pvalue) for result in results])
    drifts: dict[str, tuple[Drift, ...]] = dict.fromkeys(values, ())
    for (name, split), result, p in zip(compared, results, adjusted, strict=True):
        distance = float(result.statistic)
        drifts[name] += (Drift(split, distance, p, p < SIGNIFICANCE_LEVEL and distance >= _MIN_DRIFT),)
    return drifts


def _find_outliers(quantity: str, surveys: Mapping[str, Survey]) -> list[Outlier]:
    """Return the images farthest beyond the fences of all splits together."""
    values = _drop_nan(np.concatenate([survey.measures[quantity] for survey in surveys.values()]))
    lower, upper = np.quantile(values, [0.25, 0.75])
    low, high = float(lower - _FENCE * (upper - lower)), float(upper + _FENCE * (upper - lower))
    beyond: list[tuple[float, str, int]] = []
    for split, survey in surveys.items():
        distance = np.maximum(low - survey.measures[quantity], survey.measures[quantity] - high)
        beyond += [(float(distance[row]), split, row) for row in np.flatnonzero(distance > 1e-9).tolist()]
    beyond.sort(key=lambda one: (-one[0], one[1], one[2]))
    return [
        Outlier(
            split,
            surveys[split].index.keys([row])[0],
            quantity,
            float(surveys[split].measures[quantity][row]),
            low,
            high,
        )
        for _, split, row in beyond[:_MAX_OUTLIERS]
    ]


def _image_notes(surveys: Mapping[str, Survey], unreadable: int, constant: int) -> list[str]:
    notes = []
    total = sum(len(survey) for survey in surveys.values())
    if unreadable:
        notes.append(f"{unreadable} of {total} images cannot be decoded.")
    if constant:
        notes.append(f"{constant} of {total} images are constant: all their pixels are the same.")
    grey = sum(int(survey.grey.sum()) for survey in surveys.values())
    readable = total - unreadable
    if readable and grey == readable:
        notes.append("All images are grey, so colour augmentation has no effect on hue or saturation.")
    elif grey:
        notes.append(f"{grey} of {readable} images ({grey / readable:.1%}) are grey, the others are in colour.")
    return notes


def _class_notes(counts: Sequence[int], classes: Sequence[str], train: str) -> list[str]:
    if not counts:
        return []
    notes = []
    rare = [name for name, count in zip(classes, counts, strict=True) if count < _FEW_SAMPLES]
    if rare:
        more = f" and {len(rare) - 5} more" if len(rare) > 5 else ""
        notes.append(f"Classes with fewer than {_FEW_SAMPLES} samples in {train}: {', '.join(rare[:5])}{more}.")
    largest, smallest = max(counts), min(counts)
    if smallest and largest / smallest >= _IMBALANCE:
        notes.append(
            f"The largest class of {train} has {largest / smallest:.0f} times as many samples as the smallest."
        )
    return notes


def _drift_notes(quantities: Sequence[Quantity], train: str) -> list[str]:
    return [
        f"The distribution of {quantity.name} in {drift.split} differs from {train}: Kolmogorov-Smirnov distance "
        f"{drift.distance:.2f}, adjusted p {drift.p_adjusted:.2g}."
        for quantity in quantities
        for drift in quantity.drift
        if drift.significant
    ]


def _drop_nan(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values[~np.isnan(values)]
