"""Heads fitted to features, against scikit-learn's own answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.svm import LinearSVC

from choral.core.errors import ChoralError, DataError
from choral.models.features.linear_heads import GRID, Fit, Head, Metric, Samples, _Standardized, fit_linear, fit_svm


def blobs(count: int, classes: int, seed: int, spread: float = 3.0) -> Samples:
    """Overlapping clouds in 12 dimensions, of very different scales, one of which never changes."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, 12))
    labels = random.integers(0, classes, count)
    values = centres[labels] + spread * random.normal(size=(count, 12))
    scales = np.logspace(-1, 0.5, 12)
    values = values * scales + 5 * scales
    values[:, 3] = 0.25
    return Samples(values.astype(np.float32), labels)


def standardized(train: Samples, other: Samples) -> np.ndarray:
    mean, std = train.values.mean(0, dtype=np.float64), train.values.std(0, dtype=np.float64)
    return (other.values - mean) / np.maximum(std, 0.3 * np.sqrt((std**2).mean()))


def counted(samples: Samples, balanced: bool) -> np.ndarray:
    """Return how much each sample counts."""
    counts = np.bincount(samples.targets)[samples.targets]
    return 1 / counts if balanced else np.ones(len(counts))


def layer(head: Head) -> torch.nn.Linear:
    """Return the head as the network computes it: in float32."""
    linear = torch.nn.Linear(head.weight.shape[1], len(head.bias))
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(head.weight))
        linear.bias.copy_(torch.from_numpy(head.bias))
    return linear


def answers(fit: Fit, samples: Samples) -> np.ndarray:
    with torch.no_grad():
        return layer(fit.head)(torch.from_numpy(samples.values)).numpy()


@pytest.mark.parametrize("balanced", [False, True])
def test_linear_is_scikit_learn_s_logistic_regression(balanced: bool) -> None:
    train, test = blobs(300, 3, 1), blobs(200, 3, 2)
    fit = fit_linear("multiclass", 3, train, test, 0.01, balanced)
    twin = LogisticRegression(
        C=1 / (2 * 0.01 * 300), tol=1e-8, max_iter=5000, class_weight="balanced" if balanced else None
    ).fit(standardized(train, train), train.targets)
    expected = twin.predict_log_proba(standardized(train, test))
    found = torch.from_numpy(answers(fit, test)).log_softmax(1).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert fit.regularization == 0.01 and len(fit.trials) == 1
    assert fit.metric == ("balanced_log_loss" if balanced else "log_loss")
    losses = -expected[np.arange(200), test.targets]
    assert fit.value == pytest.approx(np.average(losses, weights=counted(test, balanced)), abs=1e-3)


@pytest.mark.parametrize("balanced", [False, True])
def test_linear_fits_each_label_by_itself(balanced: bool) -> None:
    train, test = blobs(300, 4, 1), blobs(200, 4, 2)
    many, truth = (np.stack([s.targets > 0, s.targets == 2], 1).astype(np.float32) for s in (train, test))
    fit = fit_linear("multilabel", 2, Samples(train.values, many), Samples(test.values, truth), 0.02, balanced)
    found = answers(fit, test)
    for label in range(2):  # the mean over two labels halves each one's loss
        twin = LogisticRegression(
            C=1 / (4 * 0.02 * 300), tol=1e-8, max_iter=5000, class_weight="balanced" if balanced else None
        ).fit(standardized(train, train), many[:, label])
        np.testing.assert_allclose(found[:, label], twin.decision_function(standardized(train, test)), atol=5e-3)


def test_linear_is_a_ridge_regression_of_numbers() -> None:
    train, test = blobs(300, 3, 1), blobs(200, 3, 2)
    slopes = np.random.default_rng(5).normal(size=(12, 2))
    numbers, truth = (standardized(train, s) @ slopes + 0.3 for s in (train, test))
    fit = fit_linear("regression", 2, Samples(train.values, numbers), Samples(test.values, truth), 0.1)
    twin = Ridge(alpha=0.1 * 300).fit(standardized(train, train), numbers)
    np.testing.assert_allclose(answers(fit, test), twin.predict(standardized(train, test)), atol=1e-3)
    chosen = fit_linear("regression", 2, Samples(train.values, numbers), Samples(test.values, truth), None)
    assert chosen.regularization < 1e-3 and chosen.value < 0.01  # without noise, the less the better


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("balanced", [False, True])
def test_svm_decides_as_scikit_learn_does(classes: int, balanced: bool) -> None:
    """On every sample, from a float32 layer on features as they are, though the scores were scaled."""
    train, val, test = blobs(200, classes, 1), blobs(150, classes, 2), blobs(5000, classes, 3)
    fit = fit_svm(classes, train, val, None, balanced)
    twin = LinearSVC(
        C=1 / (2 * fit.regularization * 200), dual=False, class_weight="balanced" if balanced else None
    ).fit(standardized(train, train), train.targets)
    assert np.array_equal(answers(fit, test).argmax(1), twin.predict(standardized(train, test)))
    assert fit.value == pytest.approx(twin.score(standardized(train, val), val.targets, counted(val, balanced)))
    probabilities = torch.from_numpy(answers(fit, val)).softmax(1).numpy()
    scores = twin.decision_function(standardized(train, val))
    plain = torch.from_numpy(scores if classes > 2 else np.stack([-scores, scores], 1)).softmax(1).numpy()
    loss, unscaled = (
        np.average(-np.log(p[np.arange(150), val.targets]), weights=counted(val, balanced))
        for p in (probabilities, plain)
    )
    assert loss < unscaled and loss < np.log(classes)


def test_a_feature_that_hardly_varies_gets_no_huge_weight() -> None:
    """Behind a ReLU many are almost always 0: a head that counts on them would not survive the slightest fine-tuning."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 400)
    values = random.normal(size=(400, 6)) + labels[:, None]
    values[:, 5] *= 1e-4
    fit = fit_linear(
        "multiclass", 2, Samples(values.astype(np.float32), labels), Samples(values.astype(np.float32), labels), 1e-3
    )
    assert np.abs(fit.head.weight[:, 5]).max() < np.abs(fit.head.weight[:, :5]).max()


def test_the_regularization_is_what_validation_likes() -> None:
    train, val = blobs(40, 3, 1), blobs(500, 3, 2)
    fit = fit_linear("multiclass", 3, train, val, None)
    assert [weight for weight, _ in fit.trials] == list(GRID[: len(fit.trials)])
    assert (fit.regularization, fit.value) == min(fit.trials, key=lambda trial: trial[1])
    assert 1e-4 < fit.regularization < 100 and len(fit.trials) < len(GRID)  # few samples: it overfits without
    assert [value > fit.value for _, value in fit.trials[-2:]] == [True, True]
    alone = fit_linear("multiclass", 3, train, val, fit.regularization)  # where the path came from does not matter
    np.testing.assert_allclose(answers(alone, val), answers(fit, val), atol=1e-3)


def test_of_equally_good_ones_the_strongest_is_chosen() -> None:
    train = blobs(60, 2, 1, spread=0.01)  # any machine tells these apart
    fit = fit_svm(2, train, train, None)
    assert fit.value == 1.0 and fit.regularization == GRID[0] and len(fit.trials) == 3


def test_what_an_svm_cannot_do_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    train = blobs(60, 3, 1)
    with pytest.raises(DataError, match="svm needs samples of every class; class number 3 has none"):
        fit_svm(4, train, train, None)
    monkeypatch.setattr("choral.models.features.linear_heads._SVM_ITERATIONS", 1)
    with pytest.raises(ChoralError, match=r"finetune\.regularization: so weak that the fit did not come to an end"):
        fit_svm(3, train, train, 1e-3)


@pytest.mark.parametrize("kind", ["linear", "svm", "ridge"])
def test_a_fit_can_be_left_between_two_regularizations(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    train = blobs(60, 3, 1)
    numbers = Samples(train.values, train.values[:, :2].astype(np.float32))
    fits: list[object] = []
    target, name = (LinearSVC, "fit") if kind == "svm" else (_Standardized, "fold")
    plain = getattr(target, name)
    monkeypatch.setattr(target, name, lambda *given, **more: (fits.append(1), plain(*given, **more))[1])
    calls: list[int] = []

    def between() -> None:
        calls.append(len(fits))
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        if kind == "svm":
            fit_svm(3, train, train, None, between=between)
        elif kind == "linear":
            fit_linear("multiclass", 3, train, train, None, between=between)
        else:
            fit_linear("regression", 2, numbers, numbers, None, between=between)
    assert calls == [0, 1, 2]


def rare_and_common(count: int, seed: int) -> Samples:
    """Two overlapping classes, one nine times as large."""
    random = np.random.default_rng(seed)
    labels = (random.random(count) < 0.1).astype(np.int64)
    values = random.normal(size=(count, 8)) + 0.8 * labels[:, None] * np.arange(8) / 8
    return Samples(values.astype(np.float32), labels)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("metric", ["accuracy", "log_loss"])
@pytest.mark.parametrize("kind", ["linear", "svm"])
def test_what_chooses_the_regularization_is_the_metric_asked_for(kind: str, metric: Metric, balanced: bool) -> None:
    """Where classes count alike in the fit, they do in what chooses as well."""
    train, val = rare_and_common(150, 1), rare_and_common(400, 2)
    if kind == "svm":
        fit = fit_svm(2, train, val, None, balanced, metric)
    else:
        fit = fit_linear("multiclass", 2, train, val, None, balanced, metric)
    weights = 200 / np.bincount(val.targets)[val.targets] if balanced else np.ones(400)
    logs = torch.from_numpy(answers(fit, val)).double().log_softmax(1).numpy()
    hits = logs.argmax(1) == val.targets
    value = np.mean(weights * (hits if metric == "accuracy" else -logs[np.arange(400), val.targets]))
    assert fit.value == pytest.approx(value, abs=1e-4)
    assert fit.metric == ("balanced_" if balanced else "") + metric
    best = max if metric == "accuracy" else min
    assert fit.value == best(trial[1] for trial in fit.trials)
    with_other = fit_linear("multiclass", 2, train, val, None, balanced, "log_loss")
    if kind == "linear" and metric == "accuracy":
        assert with_other.regularization != fit.regularization


def test_weights_of_samples_weigh_their_losses() -> None:
    """As scikit-learn's own weights do; LIBLINEAR is scikit-learn's, so there only that they arrive."""
    train, test = blobs(300, 3, 1), blobs(200, 3, 2)
    weights = np.random.default_rng(0).gamma(1, size=300)
    weights /= weights.mean()
    weighted = replace(train, weights=weights)
    fit = fit_linear("multiclass", 3, weighted, test, 0.01)
    twin = LogisticRegression(C=1 / (2 * 0.01 * 300), tol=1e-8, max_iter=5000)
    twin.fit(standardized(train, train), train.targets, sample_weight=weights)
    found = torch.from_numpy(answers(fit, test)).log_softmax(1).numpy()
    np.testing.assert_allclose(found, twin.predict_log_proba(standardized(train, test)), atol=2e-4)
    heavy = replace(train, weights=np.where(np.arange(300) == 0, 100.0, 0.67), targets=train.targets.copy())
    heavy.targets[0] = (heavy.targets[0] + 1) % 3  # a wrong label that the fit cannot overlook
    for one, right in ((replace(heavy, weights=None), False), (heavy, True)):
        svm = fit_svm(3, one, test, 0.1)
        assert (answers(svm, one)[0].argmax() == one.targets[0]) == right
