"""Average precision against scikit-learn, with ties and on bootstrap draws."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from choral.core.errors import DataError
from choral.metrics.intervals import bootstrap_counts
from choral.metrics.ranking import average_precision, bootstrap_mean_average_precisions, mean_average_precision


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_average_precision_is_that_of_scikit_learn(levels: int) -> None:
    rng = np.random.default_rng(levels)
    for _ in range(20):
        labels, scores = rng.random(30) < 0.3, rng.integers(0, levels, 30) / levels
        labels[0] = True
        assert average_precision(labels, scores) == pytest.approx(average_precision_score(labels, scores))


def test_labels_without_samples_are_left_out() -> None:
    labels = np.array([[1, 0, 0], [0, 0, 1], [1, 0, 1]], bool)
    scores = np.array([[0.9, 0.9, 0.1], [0.5, 0.5, 0.3], [0.4, 0.4, 0.2]])
    assert mean_average_precision(labels, scores) == pytest.approx((5 / 6 + 1) / 2)
    with pytest.raises(DataError, match="no sample of the split has any label"):
        mean_average_precision(labels[:, 1:2], scores[:, 1:2])


def test_bootstrap_draws_match_repeated_samples() -> None:
    rng = np.random.default_rng(7)
    labels = rng.random((12, 3)) < (0.5, 0.2, 0.0)
    labels[3, 1] = True
    scores = [rng.integers(0, 6, (12, 3)) / 6, rng.random((12, 3))]
    drawn = bootstrap_mean_average_precisions(labels, scores, seed=5, draws=40)
    assert drawn.shape == (40, 2)
    counts = np.concatenate(list(bootstrap_counts(12, seed=5, draws=40)))
    for draw, expected in zip(counts, drawn, strict=True):
        repeated = np.repeat(np.arange(12), draw)
        present = [label for label in range(3) if labels[repeated, label].any()]
        for predictor_scores, value in zip(scores, expected, strict=True):
            precisions = [
                average_precision_score(labels[repeated, label], predictor_scores[repeated, label]) for label in present
            ]
            assert value == pytest.approx(np.mean(precisions))
