"""What the images of a data set are like: sizes, light, colour, sharpness; which are unlike the others; what drifts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from choral.analysis.image_survey import Survey, in_order
from choral.analysis.results import BadImage, Drift, Health, Histogram, Outlier, Quantity
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
SIGNIFICANT = 0.05
_BINS = 24
_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_FENCE = 3.0
"""Interquartile ranges beyond the quartiles: what Tukey 1977, "Exploratory data analysis", calls far out."""
_OUTLIERS = 12  # a quantity
_BAD = 200  # listed
_LEAST_DRIFT = 0.05  # between distribution functions: of very many images, less is significant and says nothing
_RARE = 10  # samples of a class in train
_UNBALANCED = 10  # times as many samples of the largest class as of the smallest


def health_of(surveys: Mapping[str, Survey], *, train: str) -> Health:
    """Return what the images of all splits are like.

    Args:
        surveys: of all splits.
        train: the split that the others are compared with.
    """
    named = dict(in_order(dict(surveys)))
    indices = {name: own.index for name, own in named.items()}
    dataset = next(iter(indices.values())).dataset
    quantities = _quantities(named, train)
    unreadable = [
        BadImage(name, own.index.keys([row])[0], reason)
        for name, own in named.items()
        for row, reason in enumerate(own.reasons)
        if reason
    ]
    constant = [
        BadImage(name, own.index.keys([row])[0], f"all pixels alike, brightness {own.measures['brightness'][row]:.2f}")
        for name, own in named.items()
        for row in np.flatnonzero(own.constant).tolist()
    ]
    counts = {name: own.class_counts for name, own in indices.items()} if dataset.task != "regression" else {}
    formats = {
        name: {str(ext): count for ext, count in sorted(Counter(own.table["ext"].to_pylist()).items())}
        for name, own in indices.items()
    }
    return Health(
        samples={name: len(own) for name, own in named.items()},
        class_counts=counts,
        formats=formats,
        quantities=quantities,
        outliers=tuple(one for own in quantities for one in _outliers(own.name, named)),
        unreadable=tuple(unreadable[:_BAD]),
        constant=tuple(constant[:_BAD]),
        unreadable_found=len(unreadable),
        constant_found=len(constant),
        measured=sum(len(own) for own in named.values()),
        notes=tuple(_notes(named, quantities, counts, dataset.classes, train, len(unreadable), len(constant))),
    )


def _quantities(named: Mapping[str, Survey], train: str) -> tuple[Quantity, ...]:
    values = {quantity: {name: _known(own.measures[quantity]) for name, own in named.items()} for quantity in UNITS}
    values = {name: own for name, own in values.items() if any(len(one) for one in own.values())}
    drifts = _drifts(values, train)
    found = []
    for name, own in values.items():
        together = np.concatenate(list(own.values()))
        low, high = float(together.min()), float(together.max())
        edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
        splits = {
            split: Histogram(np.histogram(one, edges)[0].astype(np.int64), tuple(np.quantile(one, _QUANTILES).tolist()))
            for split, one in own.items()
            if len(one)
        }
        found.append(Quantity(name, UNITS[name], edges, splits, drifts[name]))
    return tuple(found)


def _drifts(values: Mapping[str, Mapping[str, NDArray[np.float64]]], train: str) -> dict[str, tuple[Drift, ...]]:
    """Compare each split with train, by each quantity that varies; p values count all of these comparisons."""
    from scipy.stats import ks_2samp  # a third of a second to import

    compared = [
        (name, split)
        for name, own in values.items()
        for split, one in own.items()
        if split != train and len(own.get(train, ())) and len(one) and np.ptp(np.concatenate([own[train], one])) > 0
    ]
    results = [ks_2samp(values[name][train], values[name][split], method="asymp") for name, split in compared]
    adjusted = holm([float(one.pvalue) for one in results])
    found: dict[str, tuple[Drift, ...]] = dict.fromkeys(values, ())
    for (name, split), one, p in zip(compared, results, adjusted, strict=True):
        distance = float(one.statistic)
        found[name] += (Drift(split, distance, p, p < SIGNIFICANT and distance >= _LEAST_DRIFT),)
    return found


def _outliers(quantity: str, named: Mapping[str, Survey]) -> list[Outlier]:
    """Return the images farthest beyond the fences of all splits together."""
    known = _known(np.concatenate([own.measures[quantity] for own in named.values()]))
    lower, upper = np.quantile(known, [0.25, 0.75])
    low, high = float(lower - _FENCE * (upper - lower)), float(upper + _FENCE * (upper - lower))
    found: list[tuple[float, str, int]] = []
    for name, own in named.items():
        values = own.measures[quantity]
        away = np.maximum(low - values, values - high)
        found += [(float(away[row]), name, row) for row in np.flatnonzero(away > 1e-9).tolist()]
    found.sort(key=lambda one: (-one[0], one[1], one[2]))
    return [
        Outlier(name, named[name].index.keys([row])[0], quantity, float(named[name].measures[quantity][row]), low, high)
        for _, name, row in found[:_OUTLIERS]
    ]


def _notes(
    named: Mapping[str, Survey],
    quantities: Sequence[Quantity],
    counts: Mapping[str, tuple[int, ...]],
    classes: Sequence[str],
    train: str,
    unreadable: int,
    constant: int,
) -> list[str]:
    """Return what stands out, each a sentence."""
    notes = []
    total = sum(len(own) for own in named.values())
    if unreadable:
        notes.append(f"{unreadable} of {total} images cannot be decoded.")
    if constant:
        notes.append(f"{constant} of {total} images are constant: all their pixels are alike.")
    grey = sum(int(own.grey.sum()) for own in named.values())
    readable = total - unreadable
    if readable and grey == readable:
        notes.append("All images are grey: changes of colour teach nothing.")
    elif grey:
        notes.append(f"{grey} of {readable} images ({grey / readable:.1%}) are grey, the others are in colour.")
    if counts.get(train):
        rare = [name for name, count in zip(classes, counts[train], strict=True) if count < _RARE]
        if rare:
            more = f" and {len(rare) - 5} more" if len(rare) > 5 else ""
            notes.append(f"Fewer than {_RARE} samples of {train} in: {', '.join(rare[:5])}{more}.")
        most, least = max(counts[train]), min(counts[train])
        if least and most / least >= _UNBALANCED:
            notes.append(f"The largest class of {train} has {most / least:.0f} times the samples of the smallest.")
    for own in quantities:
        notes += [
            f"{own.name.capitalize()} of {drift.split} is distributed otherwise than of {train}: "
            f"Kolmogorov-Smirnov distance {drift.distance:.2f}, adjusted p {drift.p_adjusted:.2g}."
            for drift in own.drift
            if drift.significant
        ]
    return notes


def _known(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values[~np.isnan(values)]
