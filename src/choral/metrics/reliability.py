"""Reliability diagrams: accuracy against confidence, with Wilson's intervals.

Bins hold equally many samples, so all are equally informative; with bins of equal width, most samples of an accurate network
would fall into the last one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_Z = 1.959963984540054  # 97.5 % quantile of the normal distribution


@dataclass(frozen=True)
class ReliabilityBin:
    """Samples of similar confidence.

    Attributes:
        n: number of samples.
        confidence: their mean confidence.
        right: their accuracy, the share of correct predictions.
        low, high: its 95 % interval (Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953).
    """

    n: int
    confidence: float
    right: float
    low: float
    high: float


def reliability_bins(
    confidence: NDArray[np.floating], is_correct: NDArray[np.bool_], bins: int = 10
) -> list[ReliabilityBin]:
    """Return bins of equally many samples (give or take one), by rising confidence.

    Args:
        confidence: (N,) probability of the prediction, in [0, 1].
        is_correct: (N,).
        bins: at most N are made.
    """
    order = np.argsort(confidence, kind="stable")
    made = []
    for samples in np.array_split(order, min(bins, len(order))):
        accuracy = float(is_correct[samples].mean())
        low, high = wilson_interval(accuracy, len(samples))
        mean_confidence = float(confidence[samples].mean(dtype=np.float64))
        made.append(ReliabilityBin(len(samples), mean_confidence, accuracy, low, high))
    return made


def wilson_interval(share: float, count: float) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a proportion of `count` independent samples, within [0, 1]."""
    scale = 1 + _Z**2 / count
    centre = (share + _Z**2 / (2 * count)) / scale
    half_width = _Z / scale * np.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    return max(0.0, float(centre - half_width)), min(1.0, float(centre + half_width))


def wilson_f1_interval(f1: float, count: float) -> tuple[float, float]:
    """Return the 95 % interval of the F1 of a class.

    F1 = 2J / (1 + J) rises with J, the share of true positives among samples that have the class or are predicted as it. J
    is a proportion, with Wilson's interval.

    Args:
        f1: 0 to 1.
        count: samples that have the class or are predicted as it, above 0.
    """
    low, high = (2 * bound / (1 + bound) for bound in wilson_interval(f1 / (2 - f1), count))
    return low, high
