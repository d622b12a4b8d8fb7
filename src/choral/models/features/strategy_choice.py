"""Chooses a fine-tuning strategy from the size of the data set and how well frozen features separate its classes.

The two criteria are the usual ones: how much data there is, and how similar it is to the pretraining data (Yosinski et
al. 2014; the table is that of Stanford's CS231n notes on transfer learning). Here the similarity is measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from choral.core.counter_rng import uniform
from choral.models.features.linear_heads import GRID, LabelledFeatures, fit_linear_path

ChosenStrategy = Literal["full", "partial", "linear", "lp_ft"]

TYPICAL = 0.9
"""Share of the range from chance to 1 that full fine-tuning typically reaches: the median accuracy over the twelve data
sets of Kornblith et al. 2019 ("Do better ImageNet models transfer better?", fine-tuned) is about 90 %."""
SIMILAR = 0.85
"""Data with at least this similarity count as similar: fine-tuning would typically add no more than the noise between
its settings, and on such data it can just as well lose accuracy (Kumar et al. 2022)."""
MANY = 1000
"""Samples per class from which all layers are trained: as many as an ImageNet class has, and the region in which
Kornblith et al. 2019 found that pretraining matters less and less."""
FEW = 100
"""Samples per class below which training all layers, even from a good head, mostly overfits: VTAB-1k (Zhai et al. 2019),
which allows it, has 1,000 samples in total. A judgement, not a measurement."""
_PROBE_STREAM = 31  # random stream that selects the samples


@dataclass(frozen=True)
class LinearProbe:
    """The result of a linear probe on frozen features."""

    samples_per_class: float
    """Median over the classes of the training split."""
    probed: int
    """Number of training samples that were used."""
    accuracy: float
    """Balanced accuracy (mean recall over classes) of the probe on held-out samples."""
    chance: float
    """1 / classes, the balanced accuracy of guessing."""

    @property
    def similarity(self) -> float:
        """0: frozen features separate the classes no better than chance; 1: as well as full fine-tuning typically does."""
        typical = self.chance + TYPICAL * (1 - self.chance)
        return float(np.clip((self.accuracy - self.chance) / (typical - self.chance), 0, 1))


def choose_strategy(probe: LinearProbe) -> tuple[ChosenStrategy, str]:
    """Return the strategy for these data, and the reason as text."""
    many, similar = probe.samples_per_class >= MANY, probe.similarity >= SIMILAR
    if many:
        return "full", f"many samples ({MANY:,} per class or more): train all layers"
    if similar:
        return "linear", "few samples, similar to the pretraining data: a linear head on frozen features"
    if probe.samples_per_class < FEW:
        return (
            "partial",
            f"fewer than {FEW} samples per class, different from the pretraining data: head and last stages",
        )
    return "lp_ft", "few samples, different from the pretraining data: a linear head first, then all layers"


def select_probe_rows(labels: NDArray[np.int64], max_samples: int, seed: int) -> NDArray[np.int64]:
    """Return (n,) sorted rows of a random sample, stratified by class, of at most `max_samples` rows.

    Args:
        labels: (N,) class ids of the training split.
        max_samples: at least 1.
        seed: of the run.
    """
    if len(labels) <= max_samples:
        return np.arange(len(labels))
    draws = uniform(seed, 0, np.arange(len(labels)), 1, _PROBE_STREAM)[:, 0]
    # The k-th of n samples of a class, in random order, gets position (k + draw) / n: the lowest positions are stratified.
    order = np.lexsort((draws, labels))
    counts = np.bincount(labels)
    starts = np.cumsum(counts) - counts
    position = np.empty(len(labels))
    position[order] = (np.arange(len(labels)) - starts[labels[order]] + draws[order]) / counts[labels[order]]
    return np.sort(np.argsort(position, kind="stable")[:max_samples])


def measure_probe(
    values: NDArray[np.float32],
    labels: NDArray[np.int64],
    rows: NDArray[np.int64],
    counts: NDArray[np.int64],
    seed: int,
) -> LinearProbe:
    """Fit a linear probe to half of the samples and evaluate it on the other half.

    The held-out half is divided again: each quarter is predicted with the regularization that is best on the other
    quarter, so that no sample influences the selection of its own prediction.

    Args:
        values, labels, rows: (n, width) features, (n,) class ids and (n,) rows of the samples.
        counts: (C,) samples of each class in the training split.
        seed: of the run.
    """
    classes = len(counts)
    part = np.empty(len(rows), dtype=np.int64)
    order = np.lexsort((uniform(seed, 1, rows, 1, _PROBE_STREAM)[:, 0], labels))
    part[order] = np.arange(len(rows)) % 4  # neighbours in this order are of one class, so the parts are stratified
    in_train = part < 2
    train = LabelledFeatures(values[in_train], labels[in_train])
    held_out, truth, part = values[~in_train], labels[~in_train], part[~in_train]
    heads = [head for _, head in fit_linear_path("multiclass", classes, train, GRID[:: len(GRID) // 8])]
    is_correct = np.stack([head(held_out).argmax(axis=1) == truth for head in heads])
    correct = np.zeros(len(truth), dtype=np.bool_)
    for predicted, selecting in ((2, 3), (3, 2)):
        best = int(is_correct[:, part == selecting].mean(axis=1).argmax()) if (part == selecting).any() else 0
        correct[part == predicted] = is_correct[best, part == predicted]
    recalls = [correct[truth == label].mean() for label in np.unique(truth)]
    present = counts[counts > 0]
    return LinearProbe(float(np.median(present)), len(rows), float(np.mean(recalls)), 1 / len(present))
