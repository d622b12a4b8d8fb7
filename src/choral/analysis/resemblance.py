"""Can changed images be told from others of their class? Those that cannot might as well have been in the data.

The test of two samples by nearest neighbours (Schilling 1986, "Multivariate two-sample tests based on nearest neighbors";
Henze 1988), class by class, in the features of the network. Where changed images of a class lie among unchanged ones, the
nearest neighbour of each is as often the one as the other. A solar cell turned by 180 degrees lies among solar cells; a 6
turned so lies far from the other 6s, though right among the 9s, so what alters labels is found, not assumed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def resemblance(unchanged: NDArray[np.float32], changed: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return how much changed images are like unchanged ones of their class: 1 cannot be told apart, 0 always can.

    It is twice the share of images whose nearest neighbour is of the other kind, at most 1. No image is compared with
    itself or with its own changed version; classes of one image say nothing.

    Args:
        unchanged, changed: (N, D) features of the same images.
        labels: (N,) their classes.
    """
    other, count = 0.0, 0
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(rows) < 2:
            continue
        before, after = unchanged[rows].astype(np.float64), changed[rows].astype(np.float64)
        across = _distances(before, after)
        other += _nearer(across.min(axis=1), _distances(before, before).min(axis=1))
        other += _nearer(across.min(axis=0), _distances(after, after).min(axis=1))
        count += 2 * len(rows)
    return min(1.0, 2 * other / count) if count else 0.0


def _distances(one: Floats, other: Floats) -> Floats:
    """Return (n, n) squared distances, infinite between an image and itself or its twin."""
    found: Floats = (one**2).sum(axis=1)[:, None] + (other**2).sum(axis=1)[None] - 2 * one @ other.T
    np.fill_diagonal(found, np.inf)
    return found


def _nearer(distance: Floats, than: Floats) -> float:
    """Return in how many places a distance is the smaller one; what is equal to within rounding counts half."""
    close = np.abs(distance - than) <= 1e-9 * np.maximum(1.0, than)
    return float(np.where(close, 0.5, distance < than).sum())
