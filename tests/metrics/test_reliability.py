"""Reliability bins with their intervals; the calibration error by hand and against the bins."""

from __future__ import annotations

import numpy as np
import pytest

from choral.metrics.calibration_error import expected_calibration_error
from choral.metrics.reliability import reliability_bins, wilson_interval


def test_bins_by_hand() -> None:
    confidence = np.array([0.9, 0.5, 0.7, 0.6, 1.0])
    is_correct = np.array([True, False, True, True, True])
    low, high = reliability_bins(confidence, is_correct, 2)
    assert (low.n, low.confidence, low.right) == (3, pytest.approx(0.6), pytest.approx(2 / 3))
    assert (high.n, high.confidence, high.right) == (2, pytest.approx(0.95), 1.0)
    assert len(reliability_bins(confidence, is_correct, 10)) == 5


def test_wilson_against_its_published_table() -> None:
    # Newcombe 1998, Statistics in Medicine 17, table I: 81/263, 15/148, 0/20, 1/29.
    for hits, count, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
        assert wilson_interval(hits / count, count) == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(1.0, 20)[1] == 1.0


def test_calibration_error_by_hand_and_by_bins() -> None:
    confidence = np.array([0.6, 0.8, 0.9, 1.0])
    is_correct = np.array([False, True, True, True])
    # Bins {0.6, 0.8} and {0.9, 1.0}: |0.7 - 0.5| and |0.95 - 1|, each half of the samples.
    assert expected_calibration_error(confidence, is_correct, 2) == pytest.approx(0.125)
    rng = np.random.default_rng(0)
    many = rng.random(600)
    right = rng.random(600) < many**2
    bins = reliability_bins(many, right, 15)
    assert expected_calibration_error(many, right, 15) == pytest.approx(
        sum(one.n * abs(one.confidence - one.right) for one in bins) / 600
    )


def test_ties_are_split_between_bins() -> None:
    rng = np.random.default_rng(1)
    confidence, is_correct = np.full(100, 0.75), np.arange(100) < 75
    assert expected_calibration_error(confidence, is_correct, 10) == pytest.approx(0)
    order = rng.permutation(100)
    assert expected_calibration_error(confidence[order], is_correct[order], 10) == pytest.approx(0)
