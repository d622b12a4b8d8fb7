"""How well frozen features already tell the classes of new data apart, and which strategy follows from it.

The two questions are the classic ones (how many data, how similar to what the network was trained on: Yosinski et al.
2014; the table is that of Stanford's CS231n notes on transfer learning), the second one measured instead of guessed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from choral.core.counter_rng import uniform
from choral.models.features.linear_heads import GRID, Samples, linear_path

Choice = Literal["full", "partial", "linear", "lp_ft"]

TYPICAL = 0.9
"""Share of the way from chance to perfection that full fine-tuning typically goes: the median accuracy over the twelve
data sets of Kornblith et al. 2019 ("Do better ImageNet models transfer better?", fine-tuned) is about 90 %."""
SIMILAR = 0.85
"""From here on data count as similar: what fine-tuning would typically add is no more than the noise between settings of
it, and on so similar data it can lose as easily (Kumar et al. 2022)."""
MANY = 1000
"""Samples a class from which on everything is trained: as many as an ImageNet class has, and where Kornblith et al. 2019
found pretraining itself to matter ever less."""
FEW = 100
"""Samples a class below which training everything, even from a good head, is mostly overfitting: VTAB-1k (Zhai et al.
2019), which allows it, has 1,000 samples in all. A judgement, not a measurement."""
_PROBE = 31  # purpose of the random numbers that choose its samples


@dataclass(frozen=True)
class Probe:
    """What was measured."""

    samples_per_class: float
    """Of the training split, the median over classes."""
    probed: int
    """Training samples that the probe saw."""
    accuracy: float
    """Balanced accuracy (mean recall of the classes) of a linear probe on samples that it was not fitted to."""
    chance: float
    """1 / classes, the balanced accuracy of guessing."""

    @property
    def similarity(self) -> float:
        """0: frozen features tell the classes apart no better than chance; 1: as well as full fine-tuning typically does."""
        typical = self.chance + TYPICAL * (1 - self.chance)
        return float(np.clip((self.accuracy - self.chance) / (typical - self.chance), 0, 1))


def choose(probe: Probe) -> tuple[Choice, str]:
    """Return the strategy that the table has for these data, and the reason in words."""
    many, similar = probe.samples_per_class >= MANY, probe.similarity >= SIMILAR
    if many:
        return "full", f"many samples ({MANY:,} a class or more): everything is trained"
    if similar:
        return "linear", "few samples, similar to those of the pretraining: a linear head on frozen features"
    if probe.samples_per_class < FEW:
        return "partial", f"fewer than {FEW} samples a class, and different: the head and the last stages"
    return "lp_ft", "few samples, and different: a linear head first, then everything from there"


def probe_rows(labels: NDArray[np.int64], most: int, seed: int) -> NDArray[np.int64]:
    """Return (n,) sorted rows, at most `most`, of each class its share: those whose random number is smallest.

    Args:
        labels: (N,) class ids of the training split.
        most: at least 1.
        seed: of the run.
    """
    if len(labels) <= most:
        return np.arange(len(labels))
    draws = uniform(seed, 0, np.arange(len(labels)), 1, _PROBE)[:, 0]
    # The k-th of n samples of its class, in random order, stands at (k + draw) / n: the first ones hold each its share.
    order = np.lexsort((draws, labels))
    counts = np.bincount(labels)
    starts = np.cumsum(counts) - counts
    position = np.empty(len(labels))
    position[order] = (np.arange(len(labels)) - starts[labels[order]] + draws[order]) / counts[labels[order]]
    return np.sort(np.argsort(position, kind="stable")[:most])


def measure(
    values: NDArray[np.float32],
    labels: NDArray[np.int64],
    rows: NDArray[np.int64],
    counts: NDArray[np.int64],
    seed: int,
) -> Probe:
    """Fit a linear probe to half of some training samples and measure it on the other half.

    The other half is cut in two again: each quarter is predicted by the head that the other one likes best, so that no
    sample chooses the regularisation of its own prediction.

    Args:
        values, labels, rows: (n, width) features, (n,) class ids and (n,) rows of the samples.
        counts: (C,) samples of each class in the training split.
        seed: of the run.
    """
    classes = len(counts)
    part = np.empty(len(rows), dtype=np.int64)
    order = np.lexsort((uniform(seed, 1, rows, 1, _PROBE)[:, 0], labels))
    part[order] = np.arange(len(rows)) % 4  # neighbours in this order are of one class: each part gets its share
    fitted = part < 2
    train = Samples(values[fitted], labels[fitted])
    held_out, truth, part = values[~fitted], labels[~fitted], part[~fitted]
    heads = [head for _, head in linear_path("multiclass", classes, train, GRID[:: len(GRID) // 8])]
    hits = np.stack([head(held_out).argmax(axis=1) == truth for head in heads])
    right = np.zeros(len(truth), dtype=np.bool_)
    for own, other in ((2, 3), (3, 2)):
        best = int(hits[:, part == other].mean(axis=1).argmax()) if (part == other).any() else 0
        right[part == own] = hits[best, part == own]
    recalls = [right[truth == label].mean() for label in np.unique(truth)]
    there = counts[counts > 0]
    return Probe(float(np.median(there)), len(rows), float(np.mean(recalls)), 1 / len(there))
