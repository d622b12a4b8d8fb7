"""Bootstrap intervals: construction, coverage, and determinism."""

from __future__ import annotations

import math
from unittest.mock import patch

import numpy as np
import pytest
from numpy.typing import NDArray

from choral.metrics import intervals
from choral.metrics.intervals import bootstrap, bootstrap_means, mean_interval, paired_bootstrap


def test_means_are_means_of_samples_drawn_with_replacement() -> None:
    values = np.eye(4) * 4  # the mean of column i is how often sample i was drawn
    counts = bootstrap_means(values, draws=5000, seed=3)
    assert counts.shape == (5000, 4)
    assert (counts.sum(axis=1) == 4).all() and (counts == counts.round()).all()
    share = (counts == 0).mean()
    assert share == pytest.approx((3 / 4) ** 4, abs=0.01)


def test_chunk_size_does_not_change_the_result() -> None:
    values = np.random.default_rng(0).normal(size=(50, 2))
    whole = bootstrap_means(values, draws=101)
    with patch.object(intervals, "_CHUNK", 333):
        np.testing.assert_allclose(bootstrap_means(values, draws=101), whole, rtol=1e-13)


def test_the_seed_determines_the_interval() -> None:
    values = np.random.default_rng(0).random(200)
    assert bootstrap(values) == bootstrap(values.copy())
    assert bootstrap(values, seed=1) != bootstrap(values, seed=2)
    assert bootstrap(values, seed=1).value == bootstrap(values, seed=2).value == math.fsum(values) / 200


def test_agrees_with_the_normal_approximation_on_many_samples() -> None:
    values = (np.random.default_rng(0).random(5000) < 0.87).astype(float)
    interval = bootstrap(values)
    half_width = 1.96 * values.std() / math.sqrt(5000)
    assert interval.low == pytest.approx(values.mean() - half_width, abs=0.001)
    assert interval.high == pytest.approx(values.mean() + half_width, abs=0.001)
    narrow = bootstrap(values, level=0.5)
    assert interval.low < narrow.low < narrow.value < narrow.high < interval.high


@pytest.mark.parametrize(
    ("name", "samples", "truth"),
    [("accuracy", 656, 0.87), ("difference", 656, 0.02), ("log loss", 400, 1.0)],
)
def test_coverage_is_95_percent(name: str, samples: int, truth: float) -> None:
    """2,000 data sets of known truth, one a column: the share of intervals that contain the truth is 93 to 97 %."""
    rng = np.random.default_rng(1)
    shape = (samples, 2000)
    values: NDArray[np.float64]
    if name == "accuracy":
        values = (rng.random(shape) < truth).astype(float)
    elif name == "difference":  # of two correlated predictors: 6 % of the samples gained, 4 % lost
        draws = rng.random(shape)
        values = (draws < 0.06).astype(float) - (draws > 0.96)
    else:
        values = rng.exponential(truth, shape)
    means = bootstrap_means(values, draws=1000)
    found = [mean_interval(column, drawn) for column, drawn in zip(values.T, means.T, strict=True)]
    covered = np.mean([interval.low <= truth <= interval.high for interval in found])
    assert 0.93 <= covered <= 0.97


def test_paired_interval_is_narrower_and_a_predictor_equals_itself() -> None:
    rng = np.random.default_rng(0)
    a = (rng.random(500) < 0.85).astype(float)
    b = np.where(rng.random(500) < 0.95, a, 1 - a)  # differs in 5 % of the samples
    paired = paired_bootstrap(a, b)
    single = bootstrap(a)
    assert paired.value == pytest.approx(a.mean() - b.mean())
    assert paired.high - paired.low < single.high - single.low
    same = paired_bootstrap(a, a)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    reverse = paired_bootstrap(b, a)
    assert (reverse.low, reverse.high) == pytest.approx((-paired.high, -paired.low))


def test_one_sample() -> None:
    interval = bootstrap(np.array([0.25]))
    assert (interval.value, interval.low, interval.high) == (0.25, 0.25, 0.25)
