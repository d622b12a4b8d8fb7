"""Reliability: how often predictions are right that are about as sure as each other.

Bins hold equally many samples, so that each says equally much; between 0 and 1 in equal steps, most samples of a good network
would lie in the last one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_Z = 1.959963984540054  # of 95 %


@dataclass(frozen=True)
class Bin:
    """Samples of about the same confidence.

    Attributes:
        n: of them.
        confidence: their mean.
        right: the share that is right.
        low, high: of its 95 % interval (Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953).
    """

    n: int
    confidence: float
    right: float
    low: float
    high: float


def reliability_bins(confidence: NDArray[np.floating], hit: NDArray[np.bool_], bins: int = 10) -> list[Bin]:
    """Return bins of equally many samples, one more or less, by rising confidence.

    Args:
        confidence: (N,) in [0, 1]: the probability of what was said.
        hit: (N,) whether it was right.
        bins: at most N are made.
    """
    order = np.argsort(confidence, kind="stable")
    found = []
    for own in np.array_split(order, min(bins, len(order))):
        right = float(hit[own].mean())
        low, high = wilson(right, len(own))
        found.append(Bin(len(own), float(confidence[own].mean(dtype=np.float64)), right, low, high))
    return found


def wilson(share: float, count: float) -> tuple[float, float]:
    """Return the 95 % interval of a share of so many independent samples; it stays within [0, 1]."""
    scale = 1 + _Z**2 / count
    middle = (share + _Z**2 / (2 * count)) / scale
    half = _Z / scale * np.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def wilson_f1(f1: float, count: float) -> tuple[float, float]:
    """Return the 95 % interval of the F1 of a class.

    F1 rises with the share J of hits among the samples that have the class or were given it, as 2J / (1 + J), and that is a
    share like any other, whose interval is Wilson's.

    Args:
        f1: 0 to 1.
        count: samples that have the class or were given it, above 0.
    """
    low, high = (2 * end / (1 + end) for end in wilson(f1 / (2 - f1), count))
    return low, high
