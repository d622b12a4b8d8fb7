"""Conformal sets: scores by hand, the finite-sample quantile, and simulated coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from choral.metrics.conformal import conformal_quantile, conformal_scores, coverage_spread, prediction_sets

PROBABILITIES = np.array([[0.2, 0.5, 0.3], [0.25, 0.25, 0.5]], np.float32)


def test_scores_by_hand() -> None:
    lac = conformal_scores(PROBABILITIES, "lac")
    np.testing.assert_allclose(lac, [[0.8, 0.5, 0.7], [0.75, 0.75, 0.5]], atol=1e-7)
    aps = conformal_scores(PROBABILITIES, "aps")  # total of more probable classes; ties in class order
    np.testing.assert_allclose(aps, [[0.8, 0, 0.5], [0.5, 0.75, 0]], atol=1e-7)
    many = np.full((1, 8), 1 / 8, np.float32)
    tail = conformal_scores(many, "raps") - conformal_scores(many, "aps")
    np.testing.assert_allclose(tail, [[0, 0, 0, 0, 0, 0, 0.01, 0.02]], atol=1e-12)


@pytest.mark.parametrize(
    ("samples", "coverage", "rank"), [(9, 0.9, 9), (10, 0.9, 10), (99, 0.9, 90), (19, 0.5, 10), (8, 0.9, 0)]
)
def test_the_quantile_counts_the_new_sample(samples: int, coverage: float, rank: int) -> None:
    scores = np.random.default_rng(0).permutation(np.arange(1.0, samples + 1))
    assert conformal_quantile(scores, coverage) == (rank or math.inf)


def classes(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return labels of four classes, the last one rare, and overconfident probabilities."""
    labels = rng.choice(4, size=shape, p=[0.4, 0.3, 0.2, 0.1])
    scores = rng.normal(size=(*shape, 4))
    np.put_along_axis(scores, labels[..., None], np.take_along_axis(scores, labels[..., None], -1) + 1.5, -1)
    powers = np.exp(2.5 * scores)
    return labels, (powers / powers.sum(-1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("score", ["lac", "aps", "raps"])
def test_sets_reach_their_coverage(score: str) -> None:
    """400 draws of 99 calibration and 500 test samples: mean coverage 90 %, spread by the beta distribution."""
    rng, covered = np.random.default_rng(1), []
    for _ in range(400):
        labels, probabilities = classes(rng, (599,))
        scores = conformal_scores(probabilities, score)
        of_label = scores[np.arange(599), labels]
        quantile = conformal_quantile(of_label[:99], 0.9)
        members = prediction_sets(scores[99:], np.array([quantile]))
        covered.append(members[np.arange(500), labels[99:]].mean())
    assert np.mean(covered) == pytest.approx(0.9, abs=0.006)
    low, high = coverage_spread(99, 0.9)
    # 500 test samples add a standard error of 1.3 points to the 3.0 of the beta distribution.
    assert 0.90 < np.mean((covered >= np.float64(low)) & (covered <= np.float64(high))) < 0.97
    assert np.std(covered) == pytest.approx(math.hypot(0.03, 0.0134), abs=0.004)


def test_class_conditional_quantiles_cover_each_class() -> None:
    rng = np.random.default_rng(2)
    pooled, by_class = [], []
    for _ in range(300):
        labels, probabilities = classes(rng, (1400,))
        scores = conformal_scores(probabilities, "lac")
        of_label = scores[np.arange(1400), labels]
        one = np.array([conformal_quantile(of_label[:400], 0.9)])
        each = np.array([conformal_quantile(of_label[:400][labels[:400] == number], 0.9) for number in range(4)])
        for found, quantiles in ((pooled, one), (by_class, each)):
            covered = prediction_sets(scores[400:], quantiles)[np.arange(1000), labels[400:]]
            found.append([covered[labels[400:] == number].mean() for number in range(4)])
    np.testing.assert_allclose(np.mean(by_class, axis=0), 0.9, atol=0.02)
    assert (np.mean(by_class, axis=0) > 0.895).all()
    assert np.abs(np.mean(pooled, axis=0) - 0.9).max() < 0.02  # all classes are equally hard here


def test_absolute_residuals_cover_regression_targets() -> None:
    rng, covered = np.random.default_rng(3), []
    for _ in range(400):
        residuals = np.abs(rng.standard_t(3, 549))
        covered.append((residuals[49:] <= conformal_quantile(residuals[:49], 0.8)).mean())
    assert np.mean(covered) == pytest.approx(0.8, abs=0.01)


def test_the_spread_of_coverage() -> None:
    assert coverage_spread(8, 0.9) == (1.0, 1.0)
    low, high = coverage_spread(1000, 0.9)
    assert (low, high) == pytest.approx((0.8808, 0.9179), abs=0.0005)
