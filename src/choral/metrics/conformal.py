"""Split-conformal prediction: sets of classes, and intervals around numbers, that hold the truth as often as they say.

Vovk et al. 2005, "Algorithmic learning in a random world". A score says how ill a class fits a sample; its quantile over
labelled samples is taken, and a set holds every class whose score is no higher. If those samples and a new one are
exchangeable, the set holds the label of the new one with at least the stated probability, whatever the network is worth:
a bad one gives large sets. The probability is over the draw of both; for one draw of n samples the coverage of all later
ones follows a beta distribution around it (`coverage_spread`).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

SCORES = ("lac", "aps", "raps")
RAPS_PENALTY, RAPS_FREE = 0.01, 5


def conformal_scores(probabilities: NDArray[np.float32], score: str) -> NDArray[np.float64]:
    """Return how ill each class fits each sample.

    Args:
        probabilities: (N, C), rows sum to 1; for lac any in [0, 1].
        score: lac: 1 less the probability (Sadinle et al. 2019, https://doi.org/10.1080/01621459.2017.1395341): the
            smallest sets, which are empty where nothing fits. aps: the probability of all classes that are more probable
            (Romano et al. 2020, https://arxiv.org/abs/2006.02544, without its random number, so that the same image gets the
            same set): larger where it is hard, never empty. raps: aps, and 0.01 for each class in front beyond the fifth
            (Angelopoulos et al. 2021, https://arxiv.org/abs/2009.14193): no long tails where there are many classes.

    Returns:
        (N, C) float64, lower where it fits.
    """
    values = probabilities.astype(np.float64)
    if score == "lac":
        return 1 - values
    order = np.argsort(-values, axis=1, kind="stable")
    ranked = np.take_along_axis(values, order, axis=1)
    before = np.concatenate([np.zeros((len(values), 1)), np.cumsum(ranked, axis=1)[:, :-1]], axis=1)
    if score == "raps":
        before += RAPS_PENALTY * np.maximum(np.arange(values.shape[1]) - RAPS_FREE, 0)
    scores = np.empty_like(before)
    np.put_along_axis(scores, order, before, axis=1)
    return scores


def conformal_quantile(scores: NDArray[np.float64], coverage: float) -> float:
    """Return the score that a new sample's does not exceed with at least the stated probability.

    The ceil((n + 1) coverage)-th smallest of n: one more than the share of them, for the new sample is one of n + 1.

    Args:
        scores: (n,) of the labels of samples that nothing was trained on.
        coverage: in (0, 1).

    Returns:
        Infinity where so few samples cannot say (n < coverage / (1 - coverage)): then everything is in the set.
    """
    rank = math.ceil((len(scores) + 1) * coverage - 1e-9)  # 0.9 * 10 is 9, not what float64 makes of it
    return float(np.partition(scores, rank - 1)[rank - 1]) if rank <= len(scores) else math.inf


def coverage_spread(samples: int, coverage: float, level: float = 0.95) -> tuple[float, float]:
    """Return between which shares the coverage of all later samples lies, for one draw of the samples of the quantile.

    The coverage given the n samples follows a beta distribution with parameters k = ceil((n + 1) coverage) and n + 1 - k
    (Vovk 2012, https://arxiv.org/abs/1209.2673); equal scores can only raise it.

    Returns:
        The ends of its middle `level`; (1, 1) where everything is in the set.
    """
    rank = math.ceil((samples + 1) * coverage - 1e-9)
    if rank > samples:
        return 1.0, 1.0
    from scipy.stats import beta  # half a second to import

    low, high = beta.ppf([(1 - level) / 2, (1 + level) / 2], rank, samples + 1 - rank)
    return float(low), float(high)


def prediction_sets(scores: NDArray[np.float64], quantiles: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return (N, C) bool, which classes each set holds.

    Args:
        scores: (N, C) of `conformal_scores`.
        quantiles: (1,) one for all classes, or (C,) one of each: then coverage holds within each class.
    """
    held: NDArray[np.bool_] = scores <= quantiles + 1e-12  # sums of the same probabilities in another order
    return held
