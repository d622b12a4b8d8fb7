"""Split-conformal prediction: sets of classes, and intervals of numbers, that contain the truth with a stated probability.

Vovk et al. 2005, "Algorithmic learning in a random world". A nonconformity score says how badly a class fits a sample. The
quantile of the true labels' scores is taken over labelled samples; a set holds every class whose score is no higher. If those
samples and a new one are exchangeable, the set contains the new label with at least the stated probability, however bad the
model is: a bad model only gives larger sets. The probability is over the draw of both. For one given draw of n calibration
samples, the coverage of all later ones follows a beta distribution (`coverage_spread`).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

SCORES = ("lac", "aps", "raps")
RAPS_PENALTY, RAPS_FREE_RANKS = 0.01, 5  # lambda and k_reg of the paper


def conformal_scores(probabilities: NDArray[np.float32], score: str) -> NDArray[np.float64]:
    """Return the nonconformity score of each class for each sample.

    Args:
        probabilities: (N, C), rows sum to 1; for lac any values in [0, 1].
        score: one of `SCORES`.
            lac: 1 - probability (Sadinle et al. 2019, https://doi.org/10.1080/01621459.2017.1395341). Smallest sets, which
            are empty where nothing fits.
            aps: total probability of all more probable classes (Romano et al. 2020, https://arxiv.org/abs/2006.02544,
            without the randomisation, so that the same image always gets the same set). Larger sets for hard samples, never
            empty.
            raps: aps plus 0.01 for each more probable class beyond the fifth (Angelopoulos et al. 2021,
            https://arxiv.org/abs/2009.14193). Avoids long tails with many classes.

    Returns:
        (N, C) float64, lower where the class fits better.
    """
    values = probabilities.astype(np.float64)
    if score == "lac":
        return 1 - values
    order = np.argsort(-values, axis=1, kind="stable")
    ranked = np.take_along_axis(values, order, axis=1)
    more_probable = np.concatenate([np.zeros((len(values), 1)), np.cumsum(ranked, axis=1)[:, :-1]], axis=1)
    if score == "raps":
        more_probable += RAPS_PENALTY * np.maximum(np.arange(values.shape[1]) - RAPS_FREE_RANKS, 0)
    scores = np.empty_like(more_probable)
    np.put_along_axis(scores, order, more_probable, axis=1)
    return scores


def conformal_quantile(scores: NDArray[np.float64], coverage: float) -> float:
    """Return the score that a new sample does not exceed with at least the stated probability.

    It is the ceil((n + 1) coverage)-th smallest of n scores: the new sample is one of n + 1.

    Args:
        scores: (n,) scores of the true labels, on samples not used for training.
        coverage: in (0, 1).

    Returns:
        Infinity if there are too few samples (n < coverage / (1 - coverage)): then every class is in the set.
    """
    rank = math.ceil((len(scores) + 1) * coverage - 1e-9)  # 0.9 * 10 must be 9, not the next float64 above
    return float(np.partition(scores, rank - 1)[rank - 1]) if rank <= len(scores) else math.inf


def coverage_spread(samples: int, coverage: float, level: float = 0.95) -> tuple[float, float]:
    """Return the range in which the coverage of later samples lies, given one draw of the calibration samples.

    Given n calibration samples, the coverage follows a beta distribution with parameters k = ceil((n + 1) coverage) and
    n + 1 - k (Vovk 2012, https://arxiv.org/abs/1209.2673); tied scores can only raise it.

    Returns:
        The central `level` interval; (1, 1) where every class is in the set.
    """
    rank = math.ceil((samples + 1) * coverage - 1e-9)
    if rank > samples:
        return 1.0, 1.0
    from scipy.stats import beta  # takes half a second to import

    low, high = beta.ppf([(1 - level) / 2, (1 + level) / 2], rank, samples + 1 - rank)
    return float(low), float(high)


def prediction_sets(scores: NDArray[np.float64], quantiles: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return the (N, C) bool membership of each class in each sample's set.

    Args:
        scores: (N, C) of `conformal_scores`.
        quantiles: (1,) shared by all classes, or (C,) one a class: coverage then holds within each class.
    """
    members: NDArray[np.bool_] = scores <= quantiles + 1e-12  # the same probabilities may be summed in another order
    return members
