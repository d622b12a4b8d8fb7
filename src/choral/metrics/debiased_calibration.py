"""Calibration error without its upward bias, with a confidence interval that covers.

The binned error, the sum over bins of |gap|, is positive even without miscalibration, because each bin's gap is noisy. On a
bootstrap draw the noise enters twice, so the percentile bootstrap of a calibrated predictor never covers 0. Here each gap is
modelled as normal around the true gap, with its own variance. The estimate is the true error for which the measured one would
be the median; the interval holds all true errors for which it would lie in the central 95 %. This needs an assumption on how
the true error is distributed over the bins. An even distribution is assumed: it makes the sum of |noisy gap| smallest, hence
the upper bound largest. In simulations the interval covers 93 to 96 % of the time for 250 and 600 samples, calibrated or not
(tests/metrics/test_coverage.py), and 93 to 98 % with dependent labels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from choral.metrics.calibration_error import DEFAULT_BINS
from choral.metrics.estimate import Estimate
from choral.metrics.intervals import LEVEL

_MIN_BIN_SAMPLES = 40  # with fewer, gaps are far from normal


@dataclass(frozen=True)
class CalibrationGaps:
    """Confidence minus correctness, binned by confidence, per sample, so that bootstrap draws are weighted sums.

    Attributes:
        by_sample: (N, bins) confidence minus correctness of each sample's decisions in each bin, divided by all decisions.
        variance: (bins,) variance of the sums over samples.
        variance_inflation: variance of the sum over bins divided by the sum of their variances, at least 1; 1 with one
            decision a sample.
    """

    by_sample: NDArray[np.float64]
    variance: NDArray[np.float64]
    variance_inflation: float = 1.0

    @classmethod
    def from_predictions(
        cls, confidence: NDArray[np.floating], is_correct: NDArray[np.bool_], bins: int = DEFAULT_BINS
    ) -> CalibrationGaps:
        """Bin the predictions of N samples.

        Args:
            confidence: (N,), or (N, D) with several decisions a sample, in [0, 1]; equal ones share a bin.
            is_correct: same shape.
            bins: upper limit; fewer are used if a bin would have less than 40 samples.
        """
        count = len(confidence)
        bins = int(np.clip(count // _MIN_BIN_SAMPLES, 1, bins))
        flat, correct = confidence.reshape(-1).astype(np.float64), is_correct.reshape(-1).astype(np.float64)
        bin_index = _assign_bins(flat, bins)
        sample = np.repeat(np.arange(count), len(flat) // count)
        by_sample = np.bincount(sample * bins + bin_index, weights=flat - correct, minlength=count * bins)
        by_sample = by_sample.reshape(count, bins)
        size = np.bincount(bin_index, minlength=bins)
        hits, sums = (np.bincount(bin_index, weights=values, minlength=bins) for values in (correct, flat))
        # Two pseudo-samples at the mean confidence: a bin in which every prediction is correct still has variance.
        accuracy = (hits + 2 * sums / np.maximum(size, 1)) / (size + 2)
        variance = size * accuracy * (1 - accuracy)
        inflation = 1.0
        if len(flat) > count:  # decisions of one sample are not independent
            centred = by_sample - by_sample.mean(axis=0)
            variance = np.maximum(variance, (centred**2).sum(axis=0))
            of_sum = ((centred @ np.sign(by_sample.sum(axis=0))) ** 2).sum()
            inflation = max(1.0, float(of_sum / max(variance.sum(), 1e-12)))
        return cls(by_sample / len(flat), variance / len(flat) ** 2, inflation)


def debiased_calibration_error(gaps: CalibrationGaps) -> Estimate:
    """Return the debiased error with its interval.

    Intervals of differences (`Estimate.minus`) treat the two errors as independent and cover 93 % or more.
    """
    measured = float(np.abs(gaps.by_sample.sum(axis=0)).sum())
    low, high = (round(_solve_error(measured, gaps, share), 12) for share in ((1 + LEVEL) / 2, (1 - LEVEL) / 2))
    return Estimate(_solve_error(measured, gaps, 0.5), np.empty(0), (low, high), paired=False)


def _assign_bins(confidence: NDArray[np.float64], bins: int) -> NDArray[np.int64]:
    """Return the (n,) bin of each confidence, by the mean rank of all confidences equal to it."""
    _, run, sizes = np.unique(confidence, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(sizes) - sizes / 2
    bin_index: NDArray[np.int64] = np.floor(mean_rank * bins / len(confidence)).astype(np.int64)[run]
    return bin_index


def _solve_error(measured: float, gaps: CalibrationGaps, share: float) -> float:
    """Return the true error, 0 or more, for which the `share` quantile of the measured error equals `measured`."""
    deviation_by_bin = np.sqrt(gaps.variance)
    from scipy.special import ndtri  # a table of scores starts without SciPy

    deviations = float(ndtri(share)) * math.sqrt(gaps.variance_inflation)

    def excess(error: float) -> float:
        mean, deviation = _folded_normal_moments(error / len(deviation_by_bin), deviation_by_bin)
        return mean + deviations * deviation - measured

    if excess(0.0) >= 0:
        return 0.0
    low, high = 0.0, 1.0
    while excess(high) < 0:
        high *= 2
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) < 0 else (low, middle)
    return high


def _folded_normal_moments(gap: float, deviation: NDArray[np.float64]) -> tuple[float, float]:
    """Return mean and standard deviation of the sum over bins of |normal(gap, deviation)|."""
    ratio = gap / np.maximum(deviation, 1e-12)
    from scipy.special import ndtr  # a table of scores starts without SciPy

    means = deviation * math.sqrt(2 / math.pi) * np.exp(-(ratio**2) / 2) + gap * (1 - 2 * ndtr(-ratio))
    variances = np.maximum(gap**2 + deviation**2 - means**2, 0)
    return float(means.sum()), math.sqrt(variances.sum())
