"""Every metric of a report against scikit-learn, on all samples and on bootstrap draws; and tables worked by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn import metrics as oracle

from choral.metrics.estimate import Estimate
from choral.metrics.intervals import bootstrap, bootstrap_counts
from choral.metrics.metric_report import CLASS_METRIC_NAMES, MetricReport, compute_metric_report

COUNT, DRAWN = 90, (0, 7, 1999)  # draws that are compared
CLASSES = ("a", "b", "c", "d")
Oracle = dict[str, Callable[[Any, Any], float]]


def compute_metrics(*arguments: Any, **options: Any) -> dict[str, Estimate]:
    return compute_metric_report(*arguments, **options).overall


def resample(number: int, *arrays: np.ndarray) -> list[np.ndarray]:
    """Return the samples of one draw, each as often as it was drawn; -1: every sample once."""
    if number < 0:
        return list(arrays)
    counts = np.concatenate(list(bootstrap_counts(COUNT)))[number]
    return [np.repeat(array, counts, axis=0) for array in arrays]


def check(report: MetricReport, expected: Oracle, labels: np.ndarray, predictions: np.ndarray) -> None:
    for name, function in expected.items():
        for number in (-1, *DRAWN):
            truth, predicted = resample(number, labels, predictions)
            estimate = report.overall[name]
            found = estimate.value if number < 0 else estimate.draws[number]
            assert found == pytest.approx(function(truth, predicted), rel=1e-6, abs=1e-9), (name, number)


def make_classes(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return labels, and probabilities of two digits, so that there are many ties."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, count, COUNT)
    scores = rng.normal(size=(COUNT, count))
    scores[np.arange(COUNT), labels] += 1
    values = np.round(np.exp(scores) / np.exp(scores).sum(1, keepdims=True), 2) + 0.01
    return labels, (values / values.sum(1, keepdims=True)).astype(np.float32)


def one_hot(labels: np.ndarray, count: int) -> np.ndarray:
    return labels[:, None] == np.arange(count)


@pytest.mark.parametrize("count", [2, 4])
def test_multiclass_metrics(count: int) -> None:
    labels, predictions = make_classes(count)
    report = compute_metric_report("multiclass", labels, predictions, CLASSES[:count])
    all_classes = range(count)

    def top(function: Callable[..., float], **options: Any) -> Callable[[Any, Any], float]:
        return lambda truth, predicted: float(function(truth, predicted.argmax(1), **options))

    expected: Oracle = {
        "accuracy": top(oracle.accuracy_score),
        "balanced_accuracy": top(oracle.balanced_accuracy_score),
        "f1_macro": top(oracle.f1_score, average="macro"),
        "f1_micro": top(oracle.f1_score, average="micro"),
        "log_loss": lambda truth, predicted: oracle.log_loss(truth, predicted, labels=all_classes),
        "brier": lambda truth, predicted: oracle.brier_score_loss(
            truth, predicted if count > 2 else predicted[:, 1], labels=all_classes
        ),
        "roc_auc": lambda truth, predicted: oracle.roc_auc_score(one_hot(truth, count), predicted, average="macro"),
        "average_precision": lambda truth, predicted: oracle.average_precision_score(one_hot(truth, count), predicted),
    }
    if count > 2:
        expected["top_2"] = lambda truth, predicted: float(
            np.mean([(row >= row[label]).sum() <= 2 for row, label in zip(predicted, truth, strict=True)])
        )
    check(report, expected, labels, predictions)
    assert [*expected, "ece"] == [name for name in [*expected, "ece"] if name in report.overall]
    assert len(report.overall) == len(expected) + 1
    assert report.overall["accuracy"].interval == bootstrap((labels == predictions.argmax(1)).astype(float))
    np.testing.assert_array_equal(report.confusion, oracle.confusion_matrix(labels, predictions.argmax(1)))  # type: ignore[arg-type]
    precision, recall, f1, _ = oracle.precision_recall_fscore_support(labels, predictions.argmax(1), zero_division=0)
    for number, name in enumerate(CLASSES[:count]):
        of_class = report.by_class[name]
        assert tuple(of_class) == CLASS_METRIC_NAMES["multiclass"]
        found = [of_class[metric].value for metric in CLASS_METRIC_NAMES["multiclass"]]
        truth = labels == number
        areas = [
            metric(truth, predictions[:, number]) for metric in (oracle.roc_auc_score, oracle.average_precision_score)
        ]
        assert found == pytest.approx([precision[number], recall[number], f1[number], *areas], rel=1e-6)
        assert report.counts[name] == truth.sum()


def test_top_5_with_many_classes() -> None:
    rng = np.random.default_rng(1)
    labels, scores = rng.integers(0, 12, COUNT), rng.random((COUNT, 12)).astype(np.float32)
    predictions = scores / scores.sum(1, keepdims=True)
    found = compute_metrics("multiclass", labels, predictions, tuple("abcdefghijkl"))
    assert "top_2" not in found
    expected = oracle.top_k_accuracy_score(labels, predictions, k=5, labels=range(12))
    assert found["top_5"].value == pytest.approx(expected)


def test_multilabel_metrics() -> None:
    rng = np.random.default_rng(2)
    labels = (rng.random((COUNT, 3)) < (0.5, 0.2, 0.3)).astype(np.float32)
    predictions = np.round(np.clip(0.5 * labels + rng.random((COUNT, 3)) * 0.6, 0.01, 0.99), 2).astype(np.float32)
    report = compute_metric_report("multilabel", labels, predictions, CLASSES[:3])

    def thresholded(function: Callable[..., float], **options: Any) -> Callable[[Any, Any], float]:
        return lambda truth, predicted: float(function(truth, predicted > 0.5, **options))

    def by_label(function: Callable[..., float]) -> Callable[[Any, Any], float]:
        return lambda truth, predicted: float(
            np.mean([function(truth[:, n], predicted[:, n]) for n in range(truth.shape[1])])
        )

    expected: Oracle = {
        "mean_ap": by_label(oracle.average_precision_score),
        "roc_auc": by_label(oracle.roc_auc_score),
        "f1": thresholded(oracle.f1_score, average="micro"),
        "f1_macro": thresholded(oracle.f1_score, average="macro"),
        "exact_match": thresholded(oracle.accuracy_score),
        "log_loss": by_label(oracle.log_loss),
        "brier": by_label(oracle.brier_score_loss),
    }
    check(report, expected, labels, predictions)
    assert list(report.overall) == [*expected, "ece"]
    precision, recall, f1, counts = oracle.precision_recall_fscore_support(labels, predictions > 0.5)
    for number, name in enumerate(CLASSES[:3]):
        of_class = report.by_class[name]
        found = [of_class[metric].value for metric in ("precision", "recall", "f1")]
        assert found == pytest.approx([precision[number], recall[number], f1[number]])
        assert report.counts[name] == counts[number]


def test_decisions_replace_the_most_probable_class() -> None:
    labels, predictions = make_classes(2)
    decisions = (predictions[:, 1] > 0.3).astype(np.int64)
    found = compute_metrics("multiclass", labels, predictions, ("a", "b"), decisions=decisions)
    assert found["f1_macro"].value == pytest.approx(oracle.f1_score(labels, decisions, average="macro"))
    assert found["log_loss"].value == pytest.approx(oracle.log_loss(labels, predictions), rel=1e-6)
    truth = one_hot(labels, 2).astype(np.float32)
    decisions = predictions > (0.3, 0.6)
    found = compute_metrics("multilabel", truth, predictions, ("a", "b"), decisions=decisions)
    assert found["f1"].value == pytest.approx(oracle.f1_score(truth, decisions, average="micro"))


def test_regression_metrics() -> None:
    rng = np.random.default_rng(3)
    labels = np.round(rng.normal(size=(COUNT, 2)), 1).astype(np.float32)
    predictions = np.round(labels + rng.normal(size=(COUNT, 2)), 1).astype(np.float32)
    expected: Oracle = {
        "rmse": oracle.root_mean_squared_error,
        "mae": oracle.mean_absolute_error,
        "r2": oracle.r2_score,
        "spearman": lambda truth, predicted: spearmanr(truth[:, 0], predicted[:, 0]).statistic,
    }
    check(
        compute_metric_report("regression", labels[:, :1], predictions[:, :1], ("w",)),
        expected,
        labels[:, :1],
        predictions[:, :1],
    )
    both = compute_metric_report("regression", labels, predictions, ("w", "h"))
    assert list(both.overall) == ["r2", "spearman"]
    assert both.overall["r2"].value == pytest.approx(
        oracle.r2_score(labels, predictions), rel=1e-5
    )  # scikit-learn sums in float32
    assert both.by_class["h"]["mae"].value == pytest.approx(oracle.mean_absolute_error(labels[:, 1], predictions[:, 1]))


def test_a_table_worked_by_hand() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    predicted = np.array([0, 0, 1, 1, 1, 0])
    predictions = np.full((6, 3), 0.1, np.float32)
    predictions[np.arange(6), predicted] = 0.8
    report = compute_metric_report("multiclass", labels, predictions, ("a", "b", "c"))
    assert report.confusion is not None and report.confusion.tolist() == [[2, 1, 0], [0, 2, 0], [1, 0, 0]]
    assert report.overall["accuracy"].value == pytest.approx(4 / 6)
    assert report.overall["balanced_accuracy"].value == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert report.overall["f1_macro"].value == pytest.approx((4 / 6 + 4 / 5 + 0) / 3)
    assert report.overall["brier"].value == pytest.approx((4 * (0.04 + 0.02) + 2 * (0.81 + 0.64 + 0.01)) / 6, rel=1e-6)
    assert math.isnan(report.by_class["c"]["precision"].value) and report.by_class["c"]["recall"].value == 0
    assert report.standard_ece == pytest.approx(0.8 - 4 / 6, rel=1e-6) and report.bins == 1


def test_undefined_metrics_are_nan_and_hard_votes_have_no_probabilities() -> None:
    labels, predictions = np.zeros(20, dtype=np.int64), np.tile(np.float32([0.7, 0.3]), (20, 1))
    found = compute_metrics("multiclass", labels, predictions, ("a", "b"))
    assert math.isnan(found["roc_auc"].value) and math.isnan(found["roc_auc"].interval.low)
    assert found["average_precision"].value == 1
    report = compute_metric_report("multiclass", labels, predictions, ("a", "b"), has_probabilities=False)
    assert list(report.overall) == ["accuracy", "balanced_accuracy", "f1_macro", "f1_micro"]
    assert report.standard_ece is None and list(report.by_class["a"]) == ["precision", "recall", "f1"]
    equal = np.ones((20, 1), np.float32)
    assert math.isnan(compute_metrics("regression", equal, equal, ("w",))["spearman"].value)
    assert compute_metrics("regression", equal, equal, ("w",))["r2"].value == 1


def test_differences_are_paired() -> None:
    labels, predictions = make_classes(4)
    one, same = (compute_metrics("multiclass", labels, predictions, CLASSES) for _ in range(2))
    worse = compute_metrics("multiclass", labels, make_classes(4, 5)[1], CLASSES)
    for name, estimate in one.items():
        assert estimate.minus(worse[name]).value == pytest.approx(estimate.value - worse[name].value)
        nothing = estimate.minus(same[name])
        if name == "ece":  # treated as independent
            assert nothing.low < nothing.value == 0 < nothing.high
        else:
            assert nothing.low == nothing.high == 0, name


@pytest.mark.parametrize("all_correct", [True, False])
def test_intervals_are_theoretical_where_no_draw_varies(all_correct: bool) -> None:
    labels = np.arange(180) % 4
    predicted = one_hot(labels if all_correct else (labels + 1) % 4, 4).astype(np.float32) * 0.96 + 0.01
    found = compute_metrics("multiclass", labels, predicted, CLASSES)
    # 1 / (1 + z^2 / n) of Wilson 1927, worked out by hand: 0.97910
    assert found["accuracy"].interval.low == pytest.approx(0.97910 if all_correct else 0, abs=1e-5)
    assert found["accuracy"].interval.high == pytest.approx(1 if all_correct else 0.02090, abs=1e-5)
    for name in ("top_2", "balanced_accuracy", "f1_macro", "f1_micro", "roc_auc", "average_precision"):
        interval = found[name].interval
        assert 0 <= interval.low <= interval.value <= interval.high <= 1, name
        if interval.value in (0, 1):
            assert 0.01 < interval.high - interval.low < 0.1, name
    same = compute_metrics("multiclass", labels, predicted, CLASSES)
    assert found["accuracy"].minus(same["accuracy"]).low == 0  # the paired difference is 0 in every draw
