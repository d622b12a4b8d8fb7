"""Metrics over all samples of a predictor: the summary with intervals, reliability, and accuracy against coverage."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from choral.analysis.samples import SampleTable
from choral.ensembles.score_rows import SEED
from choral.metrics.estimate import Z_95, bootstrap_metrics
from choral.metrics.intervals import DRAWS
from choral.metrics.metric_report import build_estimates, has_rankings, overall_metric_function
from choral.metrics.ranking import affordable_draws
from choral.metrics.regression_metrics import RegressionMetrics
from choral.metrics.reliability import ReliabilityBin, reliability_bins
from choral.metrics.selective import compute_accuracy_coverage
from choral.scoring.policy_evaluation import BINS, COVERAGES, compute_confidences
from choral.scoring.predictor import Predictor
from choral.scoring.predictor_table import METRIC_HEADINGS

_MAX_RANKED = 2_000_000  # predictions: metrics that rank more would take minutes
_MAX_SORTED = 10_000_000  # samples sorted in all bootstrap draws together: seconds; at least 200 draws


@dataclass(frozen=True)
class SummaryMetric:
    """A metric over all samples with its 95 % interval.

    Attributes:
        metric, name: its key and name in `choral.scoring.predictor_table.METRIC_HEADINGS`, such as accuracy.
        value, low, high: fractions of 1 where `percent` is set.
        percent: whether it is displayed in percent.
    """

    metric: str
    name: str
    value: float
    low: float
    high: float
    percent: bool


@dataclass(frozen=True)
class Coverage:
    """Accuracy (regression: mean error) of the most confident predictions, against the share of samples they cover.

    Attributes:
        coverage: (k,) rising to 1.
        value, low, high: (k,) each, with a pointwise 95 % band.
        area: under the risk-coverage curve (AURC); None unless multiclass.
    """

    coverage: NDArray[np.float64]
    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    area: float | None


def compute_summary(predictor: Predictor) -> tuple[SummaryMetric, ...]:
    """Return the metrics over all samples with 95 % intervals, in the order of the score card.

    With very many predictions, metrics that need a ranking (ROC AUC, average precision) are left to `choral score --of`.
    """
    ledger = predictor.ledger
    metrics = predictor.build_metrics()
    values = bootstrap_metrics(overall_metric_function(metrics), len(ledger), seed=SEED)
    if has_rankings(metrics) and predictor.predictions.size <= _MAX_RANKED:
        assert not isinstance(metrics, RegressionMetrics)
        draws = affordable_draws(predictor.predictions.size)
        ranked = bootstrap_metrics(metrics.compute_rankings, len(ledger), seed=SEED, draws=draws)
        values |= {name: estimate for name, estimate in ranked.items() if not name.endswith("/class")}
    intervals = {name: estimate.interval for name, estimate in build_estimates(metrics, values).items()}
    return tuple(
        SummaryMetric(
            name,
            METRIC_HEADINGS[name].removesuffix(" %"),
            interval.value,
            interval.low,
            interval.high,
            METRIC_HEADINGS[name].endswith("%"),
        )
        for name, interval in intervals.items()
        if all(map(math.isfinite, (interval.value, interval.low, interval.high)))
    )


def compute_reliability(predictor: Predictor) -> tuple[ReliabilityBin, ...]:
    """Return bins of predictions by rising confidence (multilabel: by the probabilities of all labels).

    Empty where the predictor gives no probabilities.
    """
    if not predictor.gives_probabilities:
        return ()
    confidence_and_correct = compute_confidences(
        predictor.ledger.meta.task, predictor.ledger.labels, predictor.predictions
    )
    return tuple(reliability_bins(*confidence_and_correct, BINS))


def compute_coverage(predictor: Predictor, samples: SampleTable) -> Coverage | None:
    """Return the score of the most confident predictions against the share of samples they cover.

    The score is accuracy (multiclass), the share of correct labels (multilabel), or the mean error in standard deviations
    (regression). None where predictions have no confidence, or all the same.
    """
    if not len(samples) or np.ptp(samples.confidence) == 0:
        return None
    task = predictor.ledger.meta.task
    if task == "multiclass":
        draws = int(np.clip(_MAX_SORTED // len(samples), 200, DRAWS))
        curve = compute_accuracy_coverage(samples.confidence, samples.right, COVERAGES, seed=SEED, draws=draws)
        return Coverage(curve.coverage, curve.accuracy, curve.low, curve.high, curve.area)
    if task == "multilabel":
        return _mean_score_coverage(samples.confidence, (samples.labels == samples.predicted).mean(axis=1))
    return _mean_score_coverage(samples.confidence, samples.loss.astype(np.float64))


def _mean_score_coverage(confidence: NDArray[np.float32], scores: NDArray[np.float64]) -> Coverage:
    """Return the mean score of the most confident samples with a normal band; ties stay in the order of the samples."""
    order = np.argsort(-confidence, kind="stable")
    sorted_scores, count = scores[order], len(scores)
    covered = np.unique(np.ceil(np.array(COVERAGES) * count - 1e-9).astype(np.int64))
    sums, squares = np.cumsum(sorted_scores)[covered - 1], np.cumsum(sorted_scores**2)[covered - 1]
    mean = sums / covered
    variance = np.maximum(squares / covered - mean**2, 0) * covered / np.maximum(covered - 1, 1)
    half = Z_95 * np.sqrt(variance / covered)
    has_band = covered > 1
    low, high = (np.where(has_band, end, np.nan) for end in (mean - half, mean + half))
    return Coverage(covered / count, mean, low, high, None)
