"""Expected calibration error: how far confidence is from the share that is right, over bins of equally many samples.

Naeini et al. 2015, "Obtaining well calibrated probabilities using Bayesian binning", https://doi.org/10.1609/aaai.v29i1.9602;
bins of equal mass as in Nguyen and O'Connor 2015, https://arxiv.org/abs/1508.05154, for in steps of equal width most samples
of a good network lie in the last one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BINS = 15


def expected_calibration_error(confidence: NDArray[np.floating], hit: NDArray[np.bool_], bins: int = BINS) -> float:
    """Return the mean over bins of |mean confidence - share that is right|, 0 to 1.

    It is biased upwards: also of perfectly calibrated predictions it is above 0, the more so the fewer samples a bin has.
    Samples of equal confidence that lie across the end of a bin count on both sides in proportion.

    Args:
        confidence: (N,) in [0, 1], of what was said.
        hit: (N,) whether it was right.
        bins: of equally many samples; at most N.
    """
    order = np.argsort(confidence, kind="stable")
    ordered = confidence[order].astype(np.float64)
    runs = np.flatnonzero(np.diff(ordered, prepend=-np.inf))
    gaps = np.add.reduceat(ordered - hit[order], runs)
    # The sum of gaps over the k least sure samples, for any k: linear within a run of equal ones.
    places, sums = np.append(runs, len(order)), np.append(0.0, np.cumsum(gaps))
    ends = np.linspace(0, len(order), min(bins, len(order)) + 1)
    return float(np.abs(np.diff(np.interp(ends, places, sums))).sum() / len(order))
