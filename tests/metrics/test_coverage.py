"""Intervals hold what they promise: data are made again and again, and the truth lies in 95 % of them.

Of 500 samples, of which a fifth are of the second class; 700 data sets: the figures themselves have a standard error of
0.8 points.
"""

from __future__ import annotations

import numpy as np
import pytest

from choral.metrics.class_metrics import ClassMetrics
from choral.metrics.debiased_calibration import Gaps, debiased_calibration_error
from choral.metrics.estimate import bounded
from choral.metrics.intervals import resampled_counts
from choral.metrics.metric_report import estimates_of
from choral.metrics.reliability import wilson_f1

COUNT, SETS, DRAWS = 500, 700, 400


def made(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and probabilities that are a little too sure."""
    labels = (rng.random(count) < 0.2).astype(np.int64)
    scores = rng.normal(size=count) + 1.8 * (labels - 0.4)
    second = 1 / (1 + np.exp(-1.6 * scores))
    return labels, np.stack([1 - second, second], axis=1).astype(np.float32)


def test_bootstrap_intervals_of_95_percent_cover_93_to_97() -> None:
    rng = np.random.default_rng(0)
    times = np.concatenate(list(resampled_counts(COUNT, draws=DRAWS)))
    large = ClassMetrics(*made(rng, 1_000_000))
    once = np.ones((1, 1_000_000), dtype=np.int64)
    truth = {name: values[0] for name, values in {**large.sums(once), **large.rankings(once)}.items()}
    names = ("accuracy", "log_loss", "brier", "balanced_accuracy", "f1_macro", "roc_auc", "average_precision")
    covered = dict.fromkeys(names, 0)
    single = np.ones((1, COUNT), dtype=np.int64)
    for _ in range(SETS):
        metrics = ClassMetrics(*made(rng, COUNT))
        values = {**metrics.sums(single), **metrics.rankings(single)}
        drawn = {**metrics.sums(times), **metrics.rankings(times)}
        for name, estimate in estimates_of(metrics, {name: (values[name][0], drawn[name]) for name in names}).items():
            if name in covered:
                low, high = estimate.interval.low, estimate.interval.high
                covered[name] += int(low <= truth[name] <= high)
    shares = {name: number / SETS for name, number in covered.items()}
    assert all(0.93 <= share <= 0.97 for share in shares.values()), shares


@pytest.mark.parametrize(("power", "count"), [(1.0, 600), (0.8, 600), (0.5, 600), (0.8, 250)])
def test_intervals_of_the_calibration_error_hold_whether_there_is_one_or_not(power: float, count: int) -> None:
    rng = np.random.default_rng(1)

    def sample(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        confidence = 0.5 + 0.5 * rng.beta(4, 1.3, size)
        right = 0.5 + (confidence - 0.5) * power
        return confidence, rng.random(size) < right, confidence - right

    truth = sample(200_000)[2].mean()
    found = [debiased_calibration_error(Gaps.of(*sample(count)[:2])) for _ in range(500)]
    covered = np.mean([one.interval.low - 1e-9 <= truth <= one.interval.high for one in found])
    assert 0.925 <= covered <= 0.975
    assert np.mean([one.value for one in found]) == pytest.approx(truth, abs=0.015)


def test_the_percentile_bootstrap_of_the_calibration_error_does_not_hold() -> None:
    """Why there is another one: confidence is what it should be, and no interval says so."""
    rng = np.random.default_rng(1)
    times = np.concatenate(list(resampled_counts(600, draws=100))).astype(np.float64)
    for _ in range(20):
        confidence = 0.5 + 0.5 * rng.beta(4, 1.3, 600)
        gaps = Gaps.of(confidence, rng.random(600) < confidence)
        measured = abs(gaps.of_sample.sum(axis=0)).sum()
        drawn = abs(times @ gaps.of_sample).sum(axis=1)
        assert np.quantile(drawn, 0.025) > 0.01
        assert drawn.mean() > measured  # biased once more


def test_differences_in_calibration_error_hold() -> None:
    """A predictor and its sharpened self, on the same samples; taken for independent, so that they cover more."""
    rng = np.random.default_rng(2)

    def two(count: int) -> list[ClassMetrics]:
        labels, said = made(rng, count)
        odds = said[:, 1] / said[:, 0]
        seconds = [odds**power / (1 + odds**power) for power in (1.0, 1.6)]
        return [ClassMetrics(labels, np.stack([1 - own, own], axis=1)) for own in seconds]

    truth = [abs(metrics.gaps.of_sample.sum(axis=0)).sum() for metrics in two(500_000)]
    covered = 0
    for _ in range(300):
        found = [debiased_calibration_error(own.gaps) for own in two(600)]
        gain = found[1].minus(found[0])
        covered += int(gain.low <= truth[1] - truth[0] <= gain.high)
    assert covered / 300 > 0.92


def test_intervals_of_rankings_hold_where_positives_are_few() -> None:
    """15 among 300, and well told apart: percentiles would cover the area under the ROC curve in 76 %."""
    rng = np.random.default_rng(3)
    times = np.concatenate(list(resampled_counts(300, draws=200)))

    def few(count: int) -> ClassMetrics:
        labels = (rng.random(count) < 0.05).astype(np.int64)
        second = 1 / (1 + np.exp(2 - rng.normal(size=count) - 3 * labels))
        return ClassMetrics(labels, np.stack([1 - second, second], axis=1).astype(np.float32))

    def both(metrics: ClassMetrics, counts: np.ndarray) -> list[np.ndarray]:
        found = metrics.rankings(counts)
        return [found["roc_auc"], found["average_precision"]]

    truth = np.array(both(few(500_000), np.ones((1, 500_000), dtype=np.int64)))[:, 0]
    covered = np.zeros(2)
    for _ in range(300):
        metrics = few(300)
        values = both(metrics, np.ones((1, 300), dtype=np.int64))
        for place, (value, draws) in enumerate(zip(values, both(metrics, times), strict=True)):
            found = bounded(float(value[0]), draws).interval
            covered[place] += found.low <= truth[place] <= found.high
    assert (covered / 300 > 0.93).all() and (covered / 300 < 0.99).all(), covered / 300


@pytest.mark.parametrize(("count", "rate", "far"), [(500, 0.2, 1.8), (300, 0.03, 1.0), (100, 0.1, 4.0), (40, 0.3, 3.0)])
def test_intervals_of_the_f1_of_a_class_hold(count: int, rate: float, far: float) -> None:
    """Of ten positives among a hundred that are nearly all found, percentiles would cover 72 %."""
    rng = np.random.default_rng(4)

    def some(size: int) -> tuple[float, int]:
        labels = rng.random(size) < rate
        given = rng.normal(size=size) + far * (labels - 0.5) > 0.5
        either = int((labels | given).sum())
        return (2 * int((labels & given).sum()) / int(labels.sum() + given.sum()) if either else 0.0), either

    truth = some(500_000)[0]
    found = [one for one in (some(count) for _ in range(1000)) if one[1]]
    ends = [wilson_f1(*one) for one in found]
    assert 0.925 <= np.mean([low <= truth <= high for low, high in ends]) <= 0.975
