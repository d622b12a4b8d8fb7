"""Temperature scaling of combined probabilities: one number, fitted to validation data.

Guo et al. 2017, "On calibration of modern neural networks", https://arxiv.org/abs/1706.04599. It is fitted after the
members
are averaged: an average of calibrated members is underconfident.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from choral.ensembles.rules import log_scores

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
_BLOCK_NUMBERS = 1 << 22


@dataclass(frozen=True)
class Temperature:
    """A fitted temperature and its effect on the samples it was fitted to.

    Attributes:
        value: 0.05 to 20; at a bound if the optimum lies beyond, as it does if every prediction is correct.
        before: mean log loss without it, in nats (multilabel: averaged over labels).
        after: mean log loss with it.
    """

    value: float
    before: float
    after: float


class TemperatureFitter:
    """Collects combined probabilities block by block and fits their temperature.

    Args:
        task: multiclass or multilabel.
        count, classes: shape of all predictions to come, so that nothing is copied.
    """

    def __init__(self, task: str, count: int, classes: int) -> None:
        self._task = task
        # Multiclass: log probabilities minus each sample's maximum; multilabel: logits, negated where the label is 0.
        self._scores = np.empty((count, classes), dtype=np.float32)
        self._label_scores = np.empty(count, dtype=np.float32)
        self._filled = 0

    def add(self, labels: NDArray[np.generic], probabilities: NDArray[np.float32]) -> None:
        """Add the next n samples: their labels, as in a ledger, and (n, classes) probabilities."""
        rows = slice(self._filled, self._filled + len(labels))
        scores = log_scores(probabilities, self._task)
        if self._task == "multilabel":
            scores = np.where(labels.astype(bool), scores, -scores)
        else:
            scores -= scores.max(axis=1, keepdims=True)
            self._label_scores[rows] = scores[np.arange(len(labels)), labels.astype(np.int64)]
        self._scores[rows] = scores
        self._filled = rows.stop

    def fit(self) -> Temperature:
        """Return the temperature of least log loss, by Newton's method on its inverse, in which the loss is convex.

        Steps are bracketed by the last two inverses with slopes of opposite sign; a step that leaves the bracket is
        replaced by bisection. It stops at a step below a millionth of the inverse.
        """
        assert self._filled == len(self._scores), "samples are missing"
        low, high, inverse = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE, 1.0
        before = self._loss_derivatives(1.0)[0]
        for _ in range(60):
            _, slope, curvature = self._loss_derivatives(inverse)
            low, high = (low, inverse) if slope > 0 else (inverse, high)
            step = inverse - slope / curvature if curvature > 0 else (low if slope > 0 else high)
            if slope == 0 or abs(step - inverse) <= 1e-6 * inverse or high - low <= 1e-6 * high:
                break
            inverse = step if low < step < high else (low + high) / 2
        return Temperature(1 / inverse, before, self._loss_derivatives(inverse)[0])

    def _loss_derivatives(self, inverse: float) -> tuple[float, float, float]:
        """Return the mean log loss at an inverse temperature, and its first two derivatives."""
        sums = np.zeros(3)
        step = max(1, _BLOCK_NUMBERS // self._scores.shape[1])
        for start in range(0, len(self._scores), step):
            scores, label_scores = self._scores[start : start + step], self._label_scores[start : start + step]
            if self._task == "multilabel":
                sums += _sigmoid_loss(scores, inverse)
            else:
                sums += _softmax_loss(scores, label_scores, inverse)
        loss, slope, curvature = sums / (self._scores.size if self._task == "multilabel" else len(self._scores))
        return float(loss), float(slope), float(curvature)


def _softmax_loss(
    scores: NDArray[np.float32], label_scores: NDArray[np.float32], inverse: float
) -> NDArray[np.float64]:
    """Return the summed log loss of a softmax over the classes, and its first two derivatives."""
    powers = np.exp(scores * np.float32(inverse))
    total = powers.sum(axis=1, dtype=np.float64)
    powers *= scores
    mean = powers.sum(axis=1, dtype=np.float64) / total
    powers *= scores
    square = powers.sum(axis=1, dtype=np.float64) / total
    loss = np.log(total) - inverse * label_scores.astype(np.float64)
    return np.array([loss.sum(), (mean - label_scores).sum(), (square - mean**2).sum()])


def _sigmoid_loss(margins: NDArray[np.float32], inverse: float) -> NDArray[np.float64]:
    """Return the summed binary log loss, and its first two derivatives."""
    values = margins.astype(np.float64)
    wrong = 1 / (1 + np.exp(inverse * values))  # probability of the wrong answer
    loss = np.logaddexp(0, -inverse * values)
    return np.array([loss.sum(), -(values * wrong).sum(), (values**2 * wrong * (1 - wrong)).sum()])
