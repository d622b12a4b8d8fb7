"""Accuracy-coverage curve and AURC, against a direct computation sample by sample."""

from __future__ import annotations

import numpy as np
import pytest

from choral.metrics.selective import bootstrap_aurc, compute_accuracy_coverage, compute_aurc


def brute_area(confidence: np.ndarray, is_correct: np.ndarray, rng: np.random.Generator, orders: int) -> float:
    """Return the AURC, averaged over random orders of samples of equal confidence."""
    areas = []
    for _ in range(orders):
        order = np.lexsort((rng.random(len(is_correct)), -confidence))
        areas.append((np.cumsum(~is_correct[order]) / np.arange(1, len(is_correct) + 1)).mean())
    return float(np.mean(areas))


def test_area_without_and_with_ties() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.random(40)
    is_correct = rng.random(40) < confidence
    assert compute_aurc(confidence, is_correct) == pytest.approx(brute_area(confidence, is_correct, rng, 1))
    coarse = np.round(confidence, 1)
    assert compute_aurc(coarse, is_correct) == pytest.approx(brute_area(coarse, is_correct, rng, 3000), abs=0.002)
    assert compute_aurc(confidence, np.ones(40, bool)) == pytest.approx(0)
    assert compute_aurc(np.zeros(40), is_correct) == pytest.approx(1 - is_correct.mean())


def test_bootstrap_matches_repeated_samples() -> None:
    rng = np.random.default_rng(1)
    confidence = np.round(rng.random(30), 1)
    is_correct = rng.random(30) < 0.7
    found = bootstrap_aurc([confidence, -confidence], [is_correct, is_correct], draws=3, seed=5)
    picks = np.random.default_rng(5).integers(0, 30, size=(3, 30))
    for draw, samples in zip(found, picks, strict=True):
        np.testing.assert_allclose(
            draw,
            [
                compute_aurc(confidence[samples], is_correct[samples]),
                compute_aurc(-confidence[samples], is_correct[samples]),
            ],
        )


def test_the_curve_by_hand() -> None:
    confidence = np.array([0.9, 0.8, 0.8, 0.6, 0.5])
    is_correct = np.array([True, False, True, True, False])
    curve = compute_accuracy_coverage(confidence, is_correct, [0.2, 0.4, 0.6, 0.8, 1.0])
    np.testing.assert_allclose(curve.accuracy, [1, 1.5 / 2, 2 / 3, 3 / 4, 3 / 5])
    assert (curve.low <= curve.accuracy).all() and (curve.accuracy <= curve.high).all()
    np.testing.assert_allclose(curve.coverage, [0.2, 0.4, 0.6, 0.8, 1.0])
    perfect = compute_accuracy_coverage(confidence, np.ones(5, bool), [1.0])
    assert perfect.low[0] == pytest.approx(0.5655, abs=1e-4)  # no draw has an error: Wilson's interval


def test_the_interval_covers_the_truth() -> None:
    """P(correct | confidence c) = c, uniform: the most confident half is 75 % accurate; 95 % of 200 intervals contain it."""
    rng, covered = np.random.default_rng(2), 0
    for _ in range(200):
        confidence = rng.random(120)
        curve = compute_accuracy_coverage(confidence, rng.random(120) < confidence, [0.5], draws=250)
        covered += bool(curve.low[0] <= 0.75 <= curve.high[0])
    assert 0.92 <= covered / 200 <= 0.99
