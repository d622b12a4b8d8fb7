"""Metrics as one number a sample, so that a score is a mean and a bootstrap needs no second look at probabilities."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_SMALLEST = float(np.finfo(np.float32).eps)  # as scikit-learn clips float32 probabilities: a loss of at most 15.9


def top_class(probabilities: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the (N,) most probable class of (N, C) probabilities; among equals the first."""
    classes: NDArray[np.int64] = probabilities.argmax(axis=-1)
    return classes


def correct(labels: NDArray[np.int64], predictions: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return 1 for each sample whose predicted class is its label, else 0; the mean is the accuracy.

    Args:
        labels, predictions: (N,) classes.
    """
    hits: NDArray[np.float64] = (labels == predictions).astype(np.float64)
    return hits


def log_losses(labels: NDArray[np.int64], probabilities: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return -ln of the probability of each sample's label; the mean is the log loss (cross entropy, in nats).

    Args:
        labels: (N,) classes, 0 <= label < C.
        probabilities: (N, C), rows sum to 1; below 1.2e-7 they are taken for 1.2e-7, so that one wrong sample cannot
            make the mean infinite.

    Returns:
        (N,) float64, 0 to 15.9.
    """
    of_label = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return -np.log(np.clip(of_label, _SMALLEST, 1.0))
