"""Measures whether perturbed images can be told from unchanged images of their class.

The two-sample test by nearest neighbours (Schilling 1986, "Multivariate two-sample tests based on nearest neighbors"; Henze
1988), class by class, in the network's features. Where perturbed images of a class lie among unchanged ones, the nearest
neighbour of each is as often perturbed as not. A solar cell rotated by 180 degrees lies among solar cells. A 6 rotated so
lies far from the other 6s, though among the 9s; so perturbations that change labels are detected, not assumed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def compute_resemblance(
    unchanged: NDArray[np.float32], changed: NDArray[np.float32], labels: NDArray[np.int64]
) -> float:
    """Return how much perturbed images resemble unchanged ones of their class: 1 indistinguishable, 0 always separate.

    It is twice the share of images whose nearest neighbour is of the other kind, at most 1. No image is compared with
    itself or with its own perturbed version; classes of one image do not count.

    Args:
        unchanged, changed: (N, D) features of the same images.
        labels: (N,) their classes.
    """
    mixed, count = 0.0, 0
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(rows) < 2:
            continue
        before, after = unchanged[rows].astype(np.float64), changed[rows].astype(np.float64)
        across = _squared_distances(before, after)
        mixed += _count_smaller(across.min(axis=1), _squared_distances(before, before).min(axis=1))
        mixed += _count_smaller(across.min(axis=0), _squared_distances(after, after).min(axis=1))
        count += 2 * len(rows)
    return min(1.0, 2 * mixed / count) if count else 0.0


def _squared_distances(one: Floats, other: Floats) -> Floats:
    """Return (n, n) squared distances; infinite on the diagonal, between versions of the same image."""
    distances: Floats = (one**2).sum(axis=1)[:, None] + (other**2).sum(axis=1)[None] - 2 * one @ other.T
    np.fill_diagonal(distances, np.inf)
    return distances


def _count_smaller(distance: Floats, than: Floats) -> float:
    """Return how many distances are smaller; those equal to within rounding count half."""
    close = np.abs(distance - than) <= 1e-9 * np.maximum(1.0, than)
    return float(np.where(close, 0.5, distance < than).sum())
