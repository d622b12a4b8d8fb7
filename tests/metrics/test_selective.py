"""Accuracy over coverage, and its area, against a definition that goes one sample after the other."""

from __future__ import annotations

import numpy as np
import pytest

from choral.metrics.selective import area_of, resampled_areas, selective_curve


def brute_area(confidence: np.ndarray, hit: np.ndarray, rng: np.random.Generator, orders: int) -> float:
    """The mean over random orders of what is equally sure."""
    areas = []
    for _ in range(orders):
        order = np.lexsort((rng.random(len(hit)), -confidence))
        areas.append((np.cumsum(~hit[order]) / np.arange(1, len(hit) + 1)).mean())
    return float(np.mean(areas))


def test_area_without_and_with_ties() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.random(40)
    hit = rng.random(40) < confidence
    assert area_of(confidence, hit) == pytest.approx(brute_area(confidence, hit, rng, 1))
    coarse = np.round(confidence, 1)
    assert area_of(coarse, hit) == pytest.approx(brute_area(coarse, hit, rng, 3000), abs=0.002)
    assert area_of(confidence, np.ones(40, bool)) == pytest.approx(0)
    assert area_of(np.zeros(40), hit) == pytest.approx(1 - hit.mean())


def test_a_draw_is_the_area_of_its_samples() -> None:
    rng = np.random.default_rng(1)
    confidence = np.round(rng.random(30), 1)
    hit = rng.random(30) < 0.7
    found = resampled_areas([confidence, -confidence], [hit, hit], draws=3, seed=5)
    picks = np.random.default_rng(5).integers(0, 30, size=(3, 30))
    for draw, own in zip(found, picks, strict=True):
        np.testing.assert_allclose(draw, [area_of(confidence[own], hit[own]), area_of(-confidence[own], hit[own])])


def test_the_curve_by_hand() -> None:
    confidence = np.array([0.9, 0.8, 0.8, 0.6, 0.5])
    hit = np.array([True, False, True, True, False])
    curve = selective_curve(confidence, hit, [0.2, 0.4, 0.6, 0.8, 1.0])
    np.testing.assert_allclose(curve.accuracy, [1, 1.5 / 2, 2 / 3, 3 / 4, 3 / 5])
    assert (curve.low <= curve.accuracy).all() and (curve.accuracy <= curve.high).all()
    np.testing.assert_allclose(curve.coverage, [0.2, 0.4, 0.6, 0.8, 1.0])
    never_wrong = selective_curve(confidence, np.ones(5, bool), [1.0])
    assert never_wrong.low[0] == pytest.approx(0.5655, abs=1e-4)  # where no draw has an error, Wilson's interval


def test_the_band_holds_the_truth() -> None:
    """P(right | confidence c) = c, uniform: of the surest half 75 % are right; 200 data sets, 95 % of the bands hold it."""
    rng, held = np.random.default_rng(2), 0
    for _ in range(200):
        confidence = rng.random(120)
        curve = selective_curve(confidence, rng.random(120) < confidence, [0.5], draws=250)
        held += bool(curve.low[0] <= 0.75 <= curve.high[0])
    assert 0.92 <= held / 200 <= 0.99
