"""Expected calibration error (ECE): mean distance between confidence and accuracy, over bins of equally many samples.

Naeini et al. 2015, "Obtaining well calibrated probabilities using Bayesian binning", https://doi.org/10.1609/aaai.v29i1.9602.
Bins have equal mass, as in Nguyen and O'Connor 2015, https://arxiv.org/abs/1508.05154: with bins of equal width, most samples
of an accurate network fall into the last one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

DEFAULT_BINS = 15


def expected_calibration_error(
    confidence: NDArray[np.floating], is_correct: NDArray[np.bool_], bins: int = DEFAULT_BINS
) -> float:
    """Return the mean over bins of |mean confidence - accuracy|, 0 to 1.

    The estimate is biased upwards: it is positive even for perfectly calibrated predictions, and grows as bins get smaller.
    Samples of equal confidence that straddle the border of two bins count in both, in proportion.

    Args:
        confidence: (N,) probability of the predicted class, in [0, 1].
        is_correct: (N,) whether the prediction is correct.
        bins: number of bins of equal mass; at most N are used.
    """
    order = np.argsort(confidence, kind="stable")
    ordered = confidence[order].astype(np.float64)
    run_starts = np.flatnonzero(np.diff(ordered, prepend=-np.inf))
    gaps = np.add.reduceat(ordered - is_correct[order], run_starts)
    # Cumulative gap over the k least confident samples, for any real k: linear within a run of equal confidences.
    positions, cumulative = np.append(run_starts, len(order)), np.append(0.0, np.cumsum(gaps))
    edges = np.linspace(0, len(order), min(bins, len(order)) + 1)
    return float(np.abs(np.diff(np.interp(edges, positions, cumulative))).sum() / len(order))
