"""What a predictor comes to as a whole: metrics with intervals, reliability, and accuracy over coverage."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from choral.analysis.results import Coverage, Figure, SampleTable
from choral.ensembles.score_rows import SEED
from choral.metrics.estimate import DEVIATIONS, resampled
from choral.metrics.intervals import DRAWS
from choral.metrics.metric_report import estimates_of, overall_measure, ranks
from choral.metrics.ranking import affordable_draws
from choral.metrics.regression_metrics import NumberMetrics
from choral.metrics.reliability import Bin, reliability_bins
from choral.metrics.selective import selective_curve
from choral.scoring.policy_evaluation import BINS, COVERAGES, decisions
from choral.scoring.predictor import Predictor
from choral.scoring.predictor_table import NAMES

_RANKED = 2_000_000  # predictions: of more, metrics that rank them would take minutes
_SORTED = 10_000_000  # samples that are sorted in all draws together: seconds; 200 draws at least


def summary_of(predictor: Predictor) -> tuple[Figure, ...]:
    """Return the metrics of all samples with 95 % intervals, in the order of the card.

    Of very many predictions those that need a ranking (ROC-AUC, average precision) are left to `choral score --of`.
    """
    ledger = predictor.ledger
    metrics = predictor.measured()
    found = resampled(overall_measure(metrics), len(ledger), seed=SEED)
    if ranks(metrics) and predictor.predictions.size <= _RANKED:
        assert not isinstance(metrics, NumberMetrics)
        draws = affordable_draws(predictor.predictions.size)
        ranked = resampled(metrics.rankings, len(ledger), seed=SEED, draws=draws)
        found |= {name: values for name, values in ranked.items() if not name.endswith("/class")}
    intervals = {name: estimate.interval for name, estimate in estimates_of(metrics, found).items()}
    return tuple(
        Figure(name, NAMES[name].removesuffix(" %"), own.value, own.low, own.high, NAMES[name].endswith("%"))
        for name, own in intervals.items()
        if all(map(math.isfinite, (own.value, own.low, own.high)))
    )


def reliability_of(predictor: Predictor) -> tuple[Bin, ...]:
    """Return bins of predictions by rising confidence, with multilabel of the probabilities of all labels.

    None where there are no probabilities.
    """
    if not predictor.gives_probabilities:
        return ()
    pair = decisions(predictor.ledger.meta.task, predictor.ledger.labels, predictor.predictions)
    return tuple(reliability_bins(*pair, BINS))


def coverage_of(predictor: Predictor, samples: SampleTable) -> Coverage | None:
    """Return how good the surest predictions are, over the share of samples that are answered.

    Multiclass: the share that is right; multilabel: of labels that are right; regression: the mean error, in standard
    deviations. None where nothing says how sure predictions are, or where all are alike.
    """
    if not len(samples) or np.ptp(samples.confidence) == 0:
        return None
    task = predictor.ledger.meta.task
    if task == "multiclass":
        draws = int(np.clip(_SORTED // len(samples), 200, DRAWS))
        found = selective_curve(samples.confidence, samples.right, COVERAGES, seed=SEED, draws=draws)
        return Coverage(found.coverage, found.accuracy, found.low, found.high, found.area)
    if task == "multilabel":
        return _means(samples.confidence, (samples.labels == samples.predicted).mean(axis=1))
    return _means(samples.confidence, samples.loss.astype(np.float64))


def _means(confidence: NDArray[np.float32], scores: NDArray[np.float64]) -> Coverage:
    """Return the mean score of the surest samples, with a band of a normal distribution; ties in the order of samples."""
    order = np.argsort(-confidence, kind="stable")
    sorted_scores, count = scores[order], len(scores)
    answered = np.unique(np.ceil(np.array(COVERAGES) * count - 1e-9).astype(np.int64))
    sums, squares = np.cumsum(sorted_scores)[answered - 1], np.cumsum(sorted_scores**2)[answered - 1]
    mean = sums / answered
    variance = np.maximum(squares / answered - mean**2, 0) * answered / np.maximum(answered - 1, 1)
    half = DEVIATIONS * np.sqrt(variance / answered)
    known = answered > 1
    low, high = (np.where(known, end, np.nan) for end in (mean - half, mean + half))
    return Coverage(answered / count, mean, low, high, None)
