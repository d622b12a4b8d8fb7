"""The temperature of combined probabilities: one number, fitted to validation data.

Guo et al. 2017, "On calibration of modern neural networks", https://arxiv.org/abs/1706.04599; fitted after the members
are averaged, for an average of calibrated members is not sure enough.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from choral.ensembles.rules import log_scores

LOWEST, HIGHEST = 0.05, 20.0
_AT_ONCE = 1 << 22  # numbers


@dataclass(frozen=True)
class Temperature:
    """A temperature and what it is worth.

    Attributes:
        value: 0.05 to 20; at an end where the data ask for more, as they do where everything is right.
        before: mean log loss of the probabilities as they were, in nats (multilabel: a label).
        after: the same with the temperature.
    """

    value: float
    before: float
    after: float


class Calibration:
    """Collects combined probabilities block by block, one column in all, and finds their temperature.

    Args:
        task: multiclass or multilabel.
        count, classes: of the samples that will come, so that nothing is copied.
    """

    def __init__(self, task: str, count: int, classes: int) -> None:
        self._task = task
        # Multiclass: log probabilities less each sample's highest; multilabel: logits, turned round where the label is 0.
        self._scores = np.empty((count, classes), dtype=np.float32)
        self._of_label = np.empty(count, dtype=np.float32)
        self._filled = 0

    def add(self, labels: NDArray[np.generic], probabilities: NDArray[np.float32]) -> None:
        """Add the next samples: their labels, as a ledger has them, and (n, classes) probabilities."""
        rows = slice(self._filled, self._filled + len(labels))
        scores = log_scores(probabilities, self._task)
        if self._task == "multilabel":
            scores = np.where(labels.astype(bool), scores, -scores)
        else:
            scores -= scores.max(axis=1, keepdims=True)
            self._of_label[rows] = scores[np.arange(len(labels)), labels.astype(np.int64)]
        self._scores[rows] = scores
        self._filled = rows.stop

    def fit(self) -> Temperature:
        """Return the temperature of the least log loss: Newton's method on its inverse, in which the loss is convex.

        Each step stays between the last two inverses at which the slope had either sign, or halves that range; it ends at a
        step below a millionth of the inverse.
        """
        assert self._filled == len(self._scores), "samples are missing"
        low, high, inverse = 1 / HIGHEST, 1 / LOWEST, 1.0
        before = self._moments(1.0)[0]
        for _ in range(60):
            _, slope, curvature = self._moments(inverse)
            low, high = (low, inverse) if slope > 0 else (inverse, high)
            step = inverse - slope / curvature if curvature > 0 else (low if slope > 0 else high)
            if slope == 0 or abs(step - inverse) <= 1e-6 * inverse or high - low <= 1e-6 * high:
                break
            inverse = step if low < step < high else (low + high) / 2
        return Temperature(1 / inverse, before, self._moments(inverse)[0])

    def _moments(self, inverse: float) -> tuple[float, float, float]:
        """Return the mean log loss at an inverse temperature, and its two derivatives."""
        sums = np.zeros(3)
        step = max(1, _AT_ONCE // self._scores.shape[1])
        for start in range(0, len(self._scores), step):
            scores, of_label = self._scores[start : start + step], self._of_label[start : start + step]
            sums += _binary(scores, inverse) if self._task == "multilabel" else _softmax(scores, of_label, inverse)
        loss, slope, curvature = sums / (self._scores.size if self._task == "multilabel" else len(self._scores))
        return float(loss), float(slope), float(curvature)


def _softmax(scores: NDArray[np.float32], of_label: NDArray[np.float32], inverse: float) -> NDArray[np.float64]:
    powers = np.exp(scores * np.float32(inverse))
    total = powers.sum(axis=1, dtype=np.float64)
    powers *= scores
    mean = powers.sum(axis=1, dtype=np.float64) / total
    powers *= scores
    square = powers.sum(axis=1, dtype=np.float64) / total
    loss = np.log(total) - inverse * of_label.astype(np.float64)
    return np.array([loss.sum(), (mean - of_label).sum(), (square - mean**2).sum()])


def _binary(margins: NDArray[np.float32], inverse: float) -> NDArray[np.float64]:
    values = margins.astype(np.float64)
    against = 1 / (1 + np.exp(inverse * values))  # the probability of what is not true
    loss = np.logaddexp(0, -inverse * values)
    return np.array([loss.sum(), -(values * against).sum(), (values**2 * against * (1 - against)).sum()])
