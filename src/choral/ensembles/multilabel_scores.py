"""Scores of multilabel ledgers: members, soft vote and other rules, by mean average precision, F1 and log loss."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from choral.ensembles.score_rows import SEED, ScoreRow, Section, build_metric_rows, compute_row_predictions
from choral.metrics.estimate import Estimate, logit_scale_estimate
from choral.metrics.intervals import bootstrap_means
from choral.metrics.multilabel_metrics import DEFAULT_THRESHOLD
from choral.metrics.per_sample import f1_from_counts, multilabel_log_losses
from choral.metrics.ranking import affordable_draws, bootstrap_mean_average_precisions, mean_average_precision


def score_multilabel(sections: Sequence[Section], baseline: str = "") -> tuple[list[ScoreRow], str, int]:
    """Return the rows, the member with the highest mean average precision, and the number of draws of its interval.

    Mean average precision is averaged over labels (macro); F1 is over all pairs of sample and label (micro), thresholded
    at one half; the log loss is averaged over labels. Average precision has to be computed anew for each draw, so with
    very many samples, labels and members there are fewer draws, at least 200.

    Args:
        sections: of the table; the best member is one of the first section's.
        baseline: a row that all others are also compared with; "": none.
    """
    labels = sections[0].member_predictions.ledger.labels > 0
    predictions = compute_row_predictions(sections)
    draws = affordable_draws(labels.size * len(predictions))
    drawn = bootstrap_mean_average_precisions(labels, list(predictions.values()), seed=SEED, draws=draws)
    precisions = {
        name: logit_scale_estimate(mean_average_precision(labels, values), column)
        for (name, values), column in zip(predictions.items(), drawn.T, strict=True)
    }
    best = max(list(predictions)[: len(sections[0].members)], key=lambda name: precisions[name].value)
    count = len(labels)
    f1 = {name: _f1(labels, values) for name, values in predictions.items()}
    losses = {name: multilabel_log_losses(labels, values) for name, values in predictions.items()}
    means = bootstrap_means(np.stack(list(losses.values()), axis=1), seed=SEED)
    log_loss = {
        name: Estimate(math.fsum(values) / count, column)
        for (name, values), column in zip(losses.items(), means.T, strict=True)
    }
    estimates = {"mean_ap": precisions, "f1": f1, "log_loss": log_loss}
    rows = [row for metric in estimates for row in build_metric_rows(metric, estimates[metric], best, count, baseline)]
    return rows, best, draws


def _f1(labels: NDArray[np.bool_], probabilities: NDArray[np.float32]) -> Estimate:
    predicted = probabilities > DEFAULT_THRESHOLD
    counts = np.stack([(predicted & labels).sum(1), (predicted & ~labels).sum(1), (~predicted & labels).sum(1)], axis=1)
    drawn = np.rint(bootstrap_means(counts.astype(np.float64), seed=SEED) * len(labels))
    return Estimate(float(f1_from_counts(*counts.sum(axis=0))), f1_from_counts(*drawn.T))
