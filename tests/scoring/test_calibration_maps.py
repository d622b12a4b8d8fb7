"""Calibration maps recover known distortions, and cross-fitting removes their bias on the samples they were fitted to."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from choral.core.errors import DataError
from choral.metrics.per_sample import log_losses, multilabel_log_losses
from choral.scoring.calibration_maps import METHODS, CalibrationMap, cross_fit, fit_calibration_map


def distorted(count: int, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Three classes, scores overconfident by a factor and shifted by a bias per class: vector scaling undoes both."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(count, 3)) * 1.5
    true = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    labels = (true.cumsum(1) > rng.random((count, 1))).argmax(1)
    logs = np.log(true)
    given = np.exp(logs * 3 + [1.0, 0, -1])
    return labels, (given / given.sum(1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("method", METHODS)
def test_each_map_lowers_the_loss_on_held_out_samples(method: str) -> None:
    labels, predictions = distorted(3000)
    others, new = distorted(3000, seed=1)
    found = fit_calibration_map(method, "multiclass", labels, predictions)
    mapped = found(new)
    assert mapped.dtype == np.float32
    np.testing.assert_allclose(mapped.sum(axis=1), 1, atol=1e-6)
    losses = [log_losses(others, values).mean() for values in (new, mapped)]
    gains = {"none": 0.0, "temperature": 0.3, "vector": 0.42, "isotonic": 0.38}
    assert losses[0] - losses[1] >= gains[method] - 1e-12, losses
    again = CalibrationMap.from_json(json.loads(json.dumps(found.to_json())), "multiclass")
    np.testing.assert_array_equal(again(new), mapped)


def test_vector_scaling_recovers_the_distortion() -> None:
    labels, predictions = distorted(20000)
    found = fit_calibration_map("vector", "multiclass", labels, predictions)
    # log p = (3 log t + bias) - normaliser of the sample: a common weight undoes it, and the biases, but for a common shift.
    np.testing.assert_allclose(found.weights, 1 / 3, atol=0.05)
    np.testing.assert_allclose(np.diff(found.biases), [1 / 3, 1 / 3], atol=0.1)


def test_multilabel_vector_scaling_is_a_logistic_regression_per_label() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2000, 2)) * 2
    labels = (rng.random((2000, 2)) < 1 / (1 + np.exp(-(0.5 * logits + [1, -1])))).astype(np.float32)
    predictions = (1 / (1 + np.exp(-logits))).astype(np.float32)
    found = fit_calibration_map("vector", "multilabel", labels, predictions)
    for column in range(2):
        other = LogisticRegression(C=1e6, tol=1e-8).fit(logits[:, [column]], labels[:, column])
        assert found.weights[column] == pytest.approx(other.coef_[0, 0], abs=0.01)
        assert found.biases[column] == pytest.approx(other.intercept_[0], abs=0.01)
    before, after = (multilabel_log_losses(labels > 0, values).mean() for values in (predictions, found(predictions)))
    assert after < before - 0.1


def test_multilabel_isotonic_regression_equals_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    predictions = rng.random((300, 2)).astype(np.float32)
    labels = (rng.random((300, 2)) < predictions**2).astype(np.float32)
    found = fit_calibration_map("isotonic", "multilabel", labels, predictions)(predictions)
    for column in range(2):
        other = IsotonicRegression(y_min=1 / 602, y_max=1 - 1 / 602).fit(predictions[:, column], labels[:, column])
        np.testing.assert_allclose(found[:, column], other.predict(predictions[:, column]), atol=1e-6)
    assert found.min() > 0 and found.max() < 1  # no sample costs infinitely much


def test_cross_fitted_predictions_are_independent_of_their_labels() -> None:
    """Labels independent of the predictions: a map fits noise on its own samples, and must not gain on others."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 150)
    predictions = rng.dirichlet(np.ones(3), 150).astype(np.float32)
    keys = [f"k{number}" for number in range(150)]
    own = fit_calibration_map("isotonic", "multiclass", labels, predictions)(predictions)
    crossed = cross_fit("isotonic", "multiclass", keys, labels, predictions)
    assert log_losses(labels, own).mean() < np.log(3) - 0.02 < np.log(3) < log_losses(labels, crossed).mean()
    order = rng.permutation(150)
    shuffled = cross_fit("isotonic", "multiclass", [keys[i] for i in order], labels[order], predictions[order])
    np.testing.assert_allclose(shuffled, crossed[order], atol=1e-6)  # keys decide, not the order
    with pytest.raises(DataError, match="9 validation samples are too few to calibrate on: expected at least 10"):
        cross_fit("vector", "multiclass", keys[:9], labels[:9], predictions[:9])
