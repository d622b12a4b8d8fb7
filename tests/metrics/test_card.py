"""Every metric of a card against scikit-learn, of the samples and of draws of them written out; and tables worked by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn import metrics as oracle

from choral.metrics.estimate import Estimate
from choral.metrics.intervals import bootstrap, resampled_counts
from choral.metrics.metric_report import OF_CLASS, Card, card_of

COUNT, DRAWN = 90, (0, 7, 1999)  # draws that are checked
CLASSES = ("a", "b", "c", "d")
Oracle = dict[str, Callable[[Any, Any], float]]


def metrics_of(*arguments: Any, **options: Any) -> dict[str, Estimate]:
    return card_of(*arguments, **options).overall


def written_out(number: int, *arrays: np.ndarray) -> list[np.ndarray]:
    """Return the samples of one draw, each as often as it was drawn; -1: of none, all once."""
    if number < 0:
        return list(arrays)
    times = np.concatenate(list(resampled_counts(COUNT)))[number]
    return [np.repeat(array, times, axis=0) for array in arrays]


def check(card: Card, expected: Oracle, labels: np.ndarray, predictions: np.ndarray) -> None:
    for name, function in expected.items():
        for number in (-1, *DRAWN):
            truth, said = written_out(number, labels, predictions)
            estimate = card.overall[name]
            found = estimate.value if number < 0 else estimate.draws[number]
            assert found == pytest.approx(function(truth, said), rel=1e-6, abs=1e-9), (name, number)


def classes_of(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and probabilities of two digits, so that many are equal."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, count, COUNT)
    scores = rng.normal(size=(COUNT, count))
    scores[np.arange(COUNT), labels] += 1
    values = np.round(np.exp(scores) / np.exp(scores).sum(1, keepdims=True), 2) + 0.01
    return labels, (values / values.sum(1, keepdims=True)).astype(np.float32)


def one_hot(labels: np.ndarray, count: int) -> np.ndarray:
    return labels[:, None] == np.arange(count)


@pytest.mark.parametrize("count", [2, 4])
def test_metrics_of_classes(count: int) -> None:
    labels, predictions = classes_of(count)
    card = card_of("multiclass", labels, predictions, CLASSES[:count])
    known = range(count)

    def top(function: Callable[..., float], **options: Any) -> Callable[[Any, Any], float]:
        return lambda truth, said: float(function(truth, said.argmax(1), **options))

    expected: Oracle = {
        "accuracy": top(oracle.accuracy_score),
        "balanced_accuracy": top(oracle.balanced_accuracy_score),
        "f1_macro": top(oracle.f1_score, average="macro"),
        "f1_micro": top(oracle.f1_score, average="micro"),
        "log_loss": lambda truth, said: oracle.log_loss(truth, said, labels=known),
        "brier": lambda truth, said: oracle.brier_score_loss(truth, said if count > 2 else said[:, 1], labels=known),
        "roc_auc": lambda truth, said: oracle.roc_auc_score(one_hot(truth, count), said, average="macro"),
        "average_precision": lambda truth, said: oracle.average_precision_score(one_hot(truth, count), said),
    }
    if count > 2:
        expected["top_2"] = lambda truth, said: float(
            np.mean([(row >= row[label]).sum() <= 2 for row, label in zip(said, truth, strict=True)])
        )
    check(card, expected, labels, predictions)
    assert [*expected, "ece"] == [name for name in [*expected, "ece"] if name in card.overall]
    assert len(card.overall) == len(expected) + 1
    assert card.overall["accuracy"].interval == bootstrap((labels == predictions.argmax(1)).astype(float))
    np.testing.assert_array_equal(card.confusion, oracle.confusion_matrix(labels, predictions.argmax(1)))  # type: ignore[arg-type]
    precision, recall, f1, _ = oracle.precision_recall_fscore_support(labels, predictions.argmax(1), zero_division=0)
    for number, name in enumerate(CLASSES[:count]):
        own = card.by_class[name]
        assert tuple(own) == OF_CLASS["multiclass"]
        found = [own[metric].value for metric in OF_CLASS["multiclass"]]
        truth = labels == number
        areas = [
            metric(truth, predictions[:, number]) for metric in (oracle.roc_auc_score, oracle.average_precision_score)
        ]
        assert found == pytest.approx([precision[number], recall[number], f1[number], *areas], rel=1e-6)
        assert card.counts[name] == truth.sum()


def test_top_five_of_many_classes() -> None:
    rng = np.random.default_rng(1)
    labels, scores = rng.integers(0, 12, COUNT), rng.random((COUNT, 12)).astype(np.float32)
    predictions = scores / scores.sum(1, keepdims=True)
    found = metrics_of("multiclass", labels, predictions, tuple("abcdefghijkl"))
    assert "top_2" not in found
    wanted = oracle.top_k_accuracy_score(labels, predictions, k=5, labels=range(12))
    assert found["top_5"].value == pytest.approx(wanted)


def test_metrics_of_labels() -> None:
    rng = np.random.default_rng(2)
    labels = (rng.random((COUNT, 3)) < (0.5, 0.2, 0.3)).astype(np.float32)
    predictions = np.round(np.clip(0.5 * labels + rng.random((COUNT, 3)) * 0.6, 0.01, 0.99), 2).astype(np.float32)
    card = card_of("multilabel", labels, predictions, CLASSES[:3])

    def given(function: Callable[..., float], **options: Any) -> Callable[[Any, Any], float]:
        return lambda truth, said: float(function(truth, said > 0.5, **options))

    def by_label(function: Callable[..., float]) -> Callable[[Any, Any], float]:
        return lambda truth, said: float(np.mean([function(truth[:, n], said[:, n]) for n in range(truth.shape[1])]))

    expected: Oracle = {
        "mean_ap": by_label(oracle.average_precision_score),
        "roc_auc": by_label(oracle.roc_auc_score),
        "f1": given(oracle.f1_score, average="micro"),
        "f1_macro": given(oracle.f1_score, average="macro"),
        "exact_match": given(oracle.accuracy_score),
        "log_loss": by_label(oracle.log_loss),
        "brier": by_label(oracle.brier_score_loss),
    }
    check(card, expected, labels, predictions)
    assert list(card.overall) == [*expected, "ece"]
    precision, recall, f1, counts = oracle.precision_recall_fscore_support(labels, predictions > 0.5)
    for number, name in enumerate(CLASSES[:3]):
        own = card.by_class[name]
        found = [own[metric].value for metric in ("precision", "recall", "f1")]
        assert found == pytest.approx([precision[number], recall[number], f1[number]])
        assert card.counts[name] == counts[number]


def test_what_was_decided_counts_where_it_is_not_the_most_probable() -> None:
    labels, predictions = classes_of(2)
    decided = (predictions[:, 1] > 0.3).astype(np.int64)
    found = metrics_of("multiclass", labels, predictions, ("a", "b"), decided=decided)
    assert found["f1_macro"].value == pytest.approx(oracle.f1_score(labels, decided, average="macro"))
    assert found["log_loss"].value == pytest.approx(oracle.log_loss(labels, predictions), rel=1e-6)
    truth = one_hot(labels, 2).astype(np.float32)
    given = predictions > (0.3, 0.6)
    found = metrics_of("multilabel", truth, predictions, ("a", "b"), decided=given)
    assert found["f1"].value == pytest.approx(oracle.f1_score(truth, given, average="micro"))


def test_metrics_of_numbers() -> None:
    rng = np.random.default_rng(3)
    labels = np.round(rng.normal(size=(COUNT, 2)), 1).astype(np.float32)
    predictions = np.round(labels + rng.normal(size=(COUNT, 2)), 1).astype(np.float32)
    expected: Oracle = {
        "rmse": oracle.root_mean_squared_error,
        "mae": oracle.mean_absolute_error,
        "r2": oracle.r2_score,
        "spearman": lambda truth, said: spearmanr(truth[:, 0], said[:, 0]).statistic,
    }
    check(card_of("regression", labels[:, :1], predictions[:, :1], ("w",)), expected, labels[:, :1], predictions[:, :1])
    both = card_of("regression", labels, predictions, ("w", "h"))
    assert list(both.overall) == ["r2", "spearman"]
    assert both.overall["r2"].value == pytest.approx(
        oracle.r2_score(labels, predictions), rel=1e-5
    )  # which adds in float32
    assert both.by_class["h"]["mae"].value == pytest.approx(oracle.mean_absolute_error(labels[:, 1], predictions[:, 1]))


def test_a_table_worked_by_hand() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    said = np.array([0, 0, 1, 1, 1, 0])
    predictions = np.full((6, 3), 0.1, np.float32)
    predictions[np.arange(6), said] = 0.8
    card = card_of("multiclass", labels, predictions, ("a", "b", "c"))
    assert card.confusion is not None and card.confusion.tolist() == [[2, 1, 0], [0, 2, 0], [1, 0, 0]]
    assert card.overall["accuracy"].value == pytest.approx(4 / 6)
    assert card.overall["balanced_accuracy"].value == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert card.overall["f1_macro"].value == pytest.approx((4 / 6 + 4 / 5 + 0) / 3)
    assert card.overall["brier"].value == pytest.approx((4 * (0.04 + 0.02) + 2 * (0.81 + 0.64 + 0.01)) / 6, rel=1e-6)
    assert math.isnan(card.by_class["c"]["precision"].value) and card.by_class["c"]["recall"].value == 0
    assert card.plain_ece == pytest.approx(0.8 - 4 / 6, rel=1e-6) and card.bins == 1


def test_what_is_not_defined_is_nan_and_hard_votes_have_no_probabilities() -> None:
    labels, predictions = np.zeros(20, dtype=np.int64), np.tile(np.float32([0.7, 0.3]), (20, 1))
    found = metrics_of("multiclass", labels, predictions, ("a", "b"))
    assert math.isnan(found["roc_auc"].value) and math.isnan(found["roc_auc"].interval.low)
    assert found["average_precision"].value == 1
    card = card_of("multiclass", labels, predictions, ("a", "b"), probabilities=False)
    assert list(card.overall) == ["accuracy", "balanced_accuracy", "f1_macro", "f1_micro"]
    assert card.plain_ece is None and list(card.by_class["a"]) == ["precision", "recall", "f1"]
    equal = np.ones((20, 1), np.float32)
    assert math.isnan(metrics_of("regression", equal, equal, ("w",))["spearman"].value)
    assert metrics_of("regression", equal, equal, ("w",))["r2"].value == 1


def test_differences_are_paired() -> None:
    labels, predictions = classes_of(4)
    one, same = (metrics_of("multiclass", labels, predictions, CLASSES) for _ in range(2))
    worse = metrics_of("multiclass", labels, classes_of(4, 5)[1], CLASSES)
    for name, estimate in one.items():
        assert estimate.minus(worse[name]).value == pytest.approx(estimate.value - worse[name].value)
        nothing = estimate.minus(same[name])
        if name == "ece":  # the two are taken for independent
            assert nothing.low < nothing.value == 0 < nothing.high
        else:
            assert nothing.low == nothing.high == 0, name


@pytest.mark.parametrize("right", [True, False])
def test_where_nothing_varies_intervals_are_of_theory(right: bool) -> None:
    labels = np.arange(180) % 4
    said = one_hot(labels if right else (labels + 1) % 4, 4).astype(np.float32) * 0.96 + 0.01
    found = metrics_of("multiclass", labels, said, CLASSES)
    # 1 / (1 + z^2 / n) of Wilson 1927, worked out by hand: 0.97910
    assert found["accuracy"].interval.low == pytest.approx(0.97910 if right else 0, abs=1e-5)
    assert found["accuracy"].interval.high == pytest.approx(1 if right else 0.02090, abs=1e-5)
    for name in ("top_2", "balanced_accuracy", "f1_macro", "f1_micro", "roc_auc", "average_precision"):
        interval = found[name].interval
        assert 0 <= interval.low <= interval.value <= interval.high <= 1, name
        if interval.value in (0, 1):
            assert 0.01 < interval.high - interval.low < 0.1, name
    same = metrics_of("multiclass", labels, said, CLASSES)
    assert found["accuracy"].minus(same["accuracy"]).low == 0  # in pairs nothing differs
