"""Metrics as one number a sample, so that a score is a mean and a bootstrap needs no further pass over probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_MIN_PROBABILITY = float(np.finfo(np.float32).eps)  # as scikit-learn clips float32: a loss of at most 15.9


def top_class(probabilities: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the (N,) most probable class of (N, C) probabilities; ties go to the first."""
    classes: NDArray[np.int64] = probabilities.argmax(axis=-1)
    return classes


def correct(labels: NDArray[np.int64], predictions: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return 1.0 for each sample whose predicted class is its label, else 0.0; the mean is the accuracy.

    Args:
        labels, predictions: (N,) classes.
    """
    hits: NDArray[np.float64] = (labels == predictions).astype(np.float64)
    return hits


def log_losses(labels: NDArray[np.int64], probabilities: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return -ln of the probability of each sample's label; the mean is the log loss (cross-entropy, in nats).

    Args:
        labels: (N,) classes, 0 <= label < C.
        probabilities: (N, C), rows sum to 1; clipped at 1.2e-7, so that one wrong sample cannot make the mean infinite.

    Returns:
        (N,) float64, 0 to 15.9.
    """
    of_label = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return -np.log(np.clip(of_label, _MIN_PROBABILITY, 1.0))


def multilabel_log_losses(labels: NDArray[np.bool_], probabilities: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return each sample's binary cross-entropy, averaged over labels; the mean over samples is the log loss.

    Args:
        labels: (N, L) whether each label applies.
        probabilities: (N, L), clipped as in `log_losses`.

    Returns:
        (N,) float64, in nats a label.
    """
    of_truth = np.where(labels, probabilities.astype(np.float64), 1 - probabilities.astype(np.float64))
    losses: NDArray[np.float64] = -np.log(np.clip(of_truth, _MIN_PROBABILITY, 1.0)).mean(axis=1)
    return losses


def f1_from_counts(true_positives: Any, false_positives: Any, false_negatives: Any) -> Any:
    """Return 2 TP / (2 TP + FP + FN), elementwise; 0 where all three are 0."""
    denominator = 2 * true_positives + false_positives + false_negatives
    return 2 * true_positives / np.maximum(denominator, 1)


def r2_from_sums(residual: NDArray[np.float64], total: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 1 - residual / total, the coefficient of determination.

    Args:
        residual: sums of squared errors.
        total: sums of squared deviations from the mean. Where it is 0, the result is 1 without error, else 0, as in
            scikit-learn.
    """
    constant = total <= 0
    return np.where(constant, (residual == 0).astype(np.float64), 1 - residual / np.where(constant, 1, total))
