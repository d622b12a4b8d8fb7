"""Per-sample metrics, by hand and against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, log_loss

from choral.metrics import correct, log_losses, top_class


def test_by_hand() -> None:
    labels = np.array([0, 1, 2, 0])
    probabilities = np.array([[0.5, 0.25, 0.25], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.2, 0.3, 0.5]], dtype=np.float32)
    assert top_class(probabilities).tolist() == [0, 0, 0, 2]  # ties go to the first
    assert correct(labels, top_class(probabilities)).tolist() == [1.0, 0.0, 0.0, 0.0]
    eps = float(np.finfo(np.float32).eps)
    expected = [-math.log(0.5), -math.log(0.5), -math.log(eps), -math.log(np.float32(0.2))]
    assert log_losses(labels, probabilities).tolist() == pytest.approx(expected)


def test_against_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 300)
    probabilities = rng.dirichlet(np.full(5, 0.3), 300).astype(np.float32)
    assert correct(labels, top_class(probabilities)).mean() == accuracy_score(labels, probabilities.argmax(1))
    expected = log_loss(labels, probabilities / probabilities.sum(1, keepdims=True), labels=range(5))
    assert log_losses(labels, probabilities).mean() == pytest.approx(expected, rel=1e-5)
