"""Heads fitted to features, compared with scikit-learn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.svm import LinearSVC

from choral.core.errors import ChoralError, DataError
from choral.models.features.linear_heads import (
    GRID,
    HeadFit,
    HeadFitOptions,
    LabelledFeatures,
    LinearHead,
    Metric,
    _StandardizedFeatures,
    fit_linear,
    fit_svm,
)


def blobs(count: int, classes: int, seed: int, spread: float = 3.0) -> LabelledFeatures:
    """Return overlapping clusters in 12 dimensions of very different scales, one of which is constant."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, 12))
    labels = random.integers(0, classes, count)
    values = centres[labels] + spread * random.normal(size=(count, 12))
    scales = np.logspace(-1, 0.5, 12)
    values = values * scales + 5 * scales
    values[:, 3] = 0.25
    return LabelledFeatures(values.astype(np.float32), labels)


def standardized(train: LabelledFeatures, other: LabelledFeatures) -> np.ndarray:
    mean, std = train.values.mean(0, dtype=np.float64), train.values.std(0, dtype=np.float64)
    return (other.values - mean) / np.maximum(std, 0.3 * np.sqrt((std**2).mean()))


def class_weights(samples: LabelledFeatures, balanced: bool) -> np.ndarray:
    """Return the weight of each sample."""
    counts = np.bincount(samples.targets)[samples.targets]
    return 1 / counts if balanced else np.ones(len(counts))


def layer(head: LinearHead) -> torch.nn.Linear:
    """Return the head as the network computes it: in float32."""
    linear = torch.nn.Linear(head.weight.shape[1], len(head.bias))
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(head.weight))
        linear.bias.copy_(torch.from_numpy(head.bias))
    return linear


def compute_outputs(fit: HeadFit, samples: LabelledFeatures) -> np.ndarray:
    with torch.no_grad():
        return layer(fit.head)(torch.from_numpy(samples.values)).numpy()


@pytest.mark.parametrize("balanced", [False, True])
def test_linear_matches_logistic_regression_of_scikit_learn(balanced: bool) -> None:
    train, test = blobs(300, 3, 1), blobs(200, 3, 2)
    fit = fit_linear("multiclass", 3, train, test, HeadFitOptions(0.01, balanced))
    reference = LogisticRegression(
        C=1 / (2 * 0.01 * 300), tol=1e-8, max_iter=5000, class_weight="balanced" if balanced else None
    ).fit(standardized(train, train), train.targets)
    expected = reference.predict_log_proba(standardized(train, test))
    found = torch.from_numpy(compute_outputs(fit, test)).log_softmax(1).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert fit.regularization == 0.01 and len(fit.trials) == 1
    assert fit.metric == ("balanced_log_loss" if balanced else "log_loss")
    losses = -expected[np.arange(200), test.targets]
    assert fit.value == pytest.approx(np.average(losses, weights=class_weights(test, balanced)), abs=1e-3)


@pytest.mark.parametrize("balanced", [False, True])
def test_linear_fits_each_label_independently(balanced: bool) -> None:
    train, test = blobs(300, 4, 1), blobs(200, 4, 2)
    many, truth = (np.stack([s.targets > 0, s.targets == 2], 1).astype(np.float32) for s in (train, test))
    fit = fit_linear(
        "multilabel",
        2,
        LabelledFeatures(train.values, many),
        LabelledFeatures(test.values, truth),
        HeadFitOptions(0.02, balanced),
    )
    found = compute_outputs(fit, test)
    for label in range(2):  # the mean over two labels halves each one's loss
        reference = LogisticRegression(
            C=1 / (4 * 0.02 * 300), tol=1e-8, max_iter=5000, class_weight="balanced" if balanced else None
        ).fit(standardized(train, train), many[:, label])
        np.testing.assert_allclose(found[:, label], reference.decision_function(standardized(train, test)), atol=5e-3)


def test_linear_matches_ridge_regression_of_scikit_learn() -> None:
    train, test = blobs(300, 3, 1), blobs(200, 3, 2)
    slopes = np.random.default_rng(5).normal(size=(12, 2))
    numbers, truth = (standardized(train, s) @ slopes + 0.3 for s in (train, test))
    fit = fit_linear(
        "regression",
        2,
        LabelledFeatures(train.values, numbers),
        LabelledFeatures(test.values, truth),
        HeadFitOptions(0.1),
    )
    reference = Ridge(alpha=0.1 * 300).fit(standardized(train, train), numbers)
    np.testing.assert_allclose(compute_outputs(fit, test), reference.predict(standardized(train, test)), atol=1e-3)
    chosen = fit_linear(
        "regression", 2, LabelledFeatures(train.values, numbers), LabelledFeatures(test.values, truth), HeadFitOptions()
    )
    assert chosen.regularization < 1e-3 and chosen.value < 0.01  # without noise, the less the better


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("balanced", [False, True])
def test_svm_predicts_as_scikit_learn_does(classes: int, balanced: bool) -> None:
    """For every sample, from a float32 layer on unscaled features, although the scores were scaled."""
    train, val, test = blobs(200, classes, 1), blobs(150, classes, 2), blobs(5000, classes, 3)
    fit = fit_svm(classes, train, val, HeadFitOptions(None, balanced))
    reference = LinearSVC(
        C=1 / (2 * fit.regularization * 200), dual=False, class_weight="balanced" if balanced else None
    ).fit(standardized(train, train), train.targets)
    assert np.array_equal(compute_outputs(fit, test).argmax(1), reference.predict(standardized(train, test)))
    assert fit.value == pytest.approx(
        reference.score(standardized(train, val), val.targets, class_weights(val, balanced))
    )
    probabilities = torch.from_numpy(compute_outputs(fit, val)).softmax(1).numpy()
    scores = reference.decision_function(standardized(train, val))
    plain = torch.from_numpy(scores if classes > 2 else np.stack([-scores, scores], 1)).softmax(1).numpy()
    loss, unscaled = (
        np.average(-np.log(p[np.arange(150), val.targets]), weights=class_weights(val, balanced))
        for p in (probabilities, plain)
    )
    assert loss < unscaled and loss < np.log(classes)


def test_a_feature_that_hardly_varies_gets_a_small_weight() -> None:
    """After a ReLU many features are almost always 0; a head with huge weights for them would not survive fine-tuning."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 400)
    values = random.normal(size=(400, 6)) + labels[:, None]
    values[:, 5] *= 1e-4
    fit = fit_linear(
        "multiclass",
        2,
        LabelledFeatures(values.astype(np.float32), labels),
        LabelledFeatures(values.astype(np.float32), labels),
        HeadFitOptions(1e-3),
    )
    assert np.abs(fit.head.weight[:, 5]).max() < np.abs(fit.head.weight[:, :5]).max()


def test_validation_selects_the_regularization() -> None:
    train, val = blobs(40, 3, 1), blobs(500, 3, 2)
    fit = fit_linear("multiclass", 3, train, val, HeadFitOptions())
    assert [weight for weight, _ in fit.trials] == list(GRID[: len(fit.trials)])
    assert (fit.regularization, fit.value) == min(fit.trials, key=lambda trial: trial[1])
    assert 1e-4 < fit.regularization < 100 and len(fit.trials) < len(GRID)  # few samples: it overfits without
    assert [value > fit.value for _, value in fit.trials[-2:]] == [True, True]
    # Warm starts do not change the solution.
    alone = fit_linear("multiclass", 3, train, val, HeadFitOptions(fit.regularization))
    np.testing.assert_allclose(compute_outputs(alone, val), compute_outputs(fit, val), atol=1e-3)


def test_ties_select_the_strongest_regularization() -> None:
    train = blobs(60, 2, 1, spread=0.01)  # any classifier separates these
    fit = fit_svm(2, train, train, HeadFitOptions())
    assert fit.value == 1.0 and fit.regularization == GRID[0] and len(fit.trials) == 3


def test_errors_of_an_svm(monkeypatch: pytest.MonkeyPatch) -> None:
    train = blobs(60, 3, 1)
    with pytest.raises(DataError, match="svm needs samples of every class; class number 3 has none"):
        fit_svm(4, train, train, HeadFitOptions())
    monkeypatch.setattr("choral.models.features.linear_heads._SVM_ITERATIONS", 1)
    with pytest.raises(ChoralError, match=r"finetune\.regularization: too weak, the fit did not converge"):
        fit_svm(3, train, train, HeadFitOptions(1e-3))


@pytest.mark.parametrize("kind", ["linear", "svm", "ridge"])
def test_check_stop_is_called_before_each_fit(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    train = blobs(60, 3, 1)
    numbers = LabelledFeatures(train.values, train.values[:, :2].astype(np.float32))
    fits: list[object] = []
    target, name = (LinearSVC, "fit") if kind == "svm" else (_StandardizedFeatures, "fold")
    plain = getattr(target, name)
    monkeypatch.setattr(target, name, lambda *given, **more: (fits.append(1), plain(*given, **more))[1])
    calls: list[int] = []

    def check_stop() -> None:
        calls.append(len(fits))
        if len(calls) == 3:
            raise KeyboardInterrupt

    options = HeadFitOptions(check_stop=check_stop)
    with pytest.raises(KeyboardInterrupt):
        if kind == "svm":
            fit_svm(3, train, train, options)
        elif kind == "linear":
            fit_linear("multiclass", 3, train, train, options)
        else:
            fit_linear("regression", 2, numbers, numbers, options)
    assert calls == [0, 1, 2]


def rare_and_common(count: int, seed: int) -> LabelledFeatures:
    """Two overlapping classes, one nine times as large."""
    random = np.random.default_rng(seed)
    labels = (random.random(count) < 0.1).astype(np.int64)
    values = random.normal(size=(count, 8)) + 0.8 * labels[:, None] * np.arange(8) / 8
    return LabelledFeatures(values.astype(np.float32), labels)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("metric", ["accuracy", "log_loss"])
@pytest.mark.parametrize("kind", ["linear", "svm"])
def test_the_configured_metric_selects_the_regularization(kind: str, metric: Metric, balanced: bool) -> None:
    """A balanced fit is selected by the balanced metric."""
    train, val = rare_and_common(150, 1), rare_and_common(400, 2)
    if kind == "svm":
        fit = fit_svm(2, train, val, HeadFitOptions(None, balanced, metric))
    else:
        fit = fit_linear("multiclass", 2, train, val, HeadFitOptions(None, balanced, metric))
    weights = 200 / np.bincount(val.targets)[val.targets] if balanced else np.ones(400)
    logs = torch.from_numpy(compute_outputs(fit, val)).double().log_softmax(1).numpy()
    hits = logs.argmax(1) == val.targets
    value = np.mean(weights * (hits if metric == "accuracy" else -logs[np.arange(400), val.targets]))
    assert fit.value == pytest.approx(value, abs=1e-4)
    assert fit.metric == ("balanced_" if balanced else "") + metric
    best = max if metric == "accuracy" else min
    assert fit.value == best(trial[1] for trial in fit.trials)
    with_other = fit_linear("multiclass", 2, train, val, HeadFitOptions(None, balanced, "log_loss"))
    if kind == "linear" and metric == "accuracy":
        assert with_other.regularization != fit.regularization


def test_sample_weights_multiply_the_losses() -> None:
    """As in scikit-learn. The svm uses LIBLINEAR of scikit-learn, so there the test only checks that the weights arrive."""
    train, test = blobs(300, 3, 1), blobs(200, 3, 2)
    weights = np.random.default_rng(0).gamma(1, size=300)
    weights /= weights.mean()
    weighted = replace(train, weights=weights)
    fit = fit_linear("multiclass", 3, weighted, test, HeadFitOptions(0.01))
    reference = LogisticRegression(C=1 / (2 * 0.01 * 300), tol=1e-8, max_iter=5000)
    reference.fit(standardized(train, train), train.targets, sample_weight=weights)
    found = torch.from_numpy(compute_outputs(fit, test)).log_softmax(1).numpy()
    np.testing.assert_allclose(found, reference.predict_log_proba(standardized(train, test)), atol=2e-4)
    heavy = replace(train, weights=np.where(np.arange(300) == 0, 100.0, 0.67), targets=train.targets.copy())
    heavy.targets[0] = (heavy.targets[0] + 1) % 3  # a wrong label with a large weight
    for one, right in ((replace(heavy, weights=None), False), (heavy, True)):
        svm = fit_svm(3, one, test, HeadFitOptions(0.1))
        assert (compute_outputs(svm, one)[0].argmax() == one.targets[0]) == right
