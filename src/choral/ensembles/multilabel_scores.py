"""Scores of multilabel: members, soft vote and other rules, by mean average precision, F1 and log loss."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from choral.ensembles.score_rows import SEED, Row, Section, metric_rows, predictions_of
from choral.metrics.estimate import Estimate, bounded
from choral.metrics.intervals import resampled_means
from choral.metrics.per_sample import f1_of_counts, label_log_losses
from choral.metrics.ranking import affordable_draws, mean_average_precision, resampled_mean_average_precisions


def label_rows(sections: Sequence[Section], baseline: str = "") -> tuple[list[Row], str, int]:
    """Return the rows, the member of the highest mean average precision, and the draws that its interval is from.

    Mean average precision is over the labels (macro), F1 over all pairs of sample and label (micro), above one half, and
    the log loss a label. An average precision has to be computed anew for each draw: with very many samples, labels and
    members there are fewer draws, 200 at least.

    Args:
        sections: of the table; the best is one of the first one's members.
        baseline: a row that all are compared with, too; "": none.
    """
    labels = sections[0].panel.ledger.labels > 0
    found = predictions_of(sections)
    draws = affordable_draws(labels.size * len(found))
    drawn = resampled_mean_average_precisions(labels, list(found.values()), seed=SEED, draws=draws)
    precisions = {
        name: bounded(mean_average_precision(labels, values), column)
        for (name, values), column in zip(found.items(), drawn.T, strict=True)
    }
    best = max(list(found)[: len(sections[0].members)], key=lambda name: precisions[name].value)
    count = len(labels)
    rows = metric_rows("mean_ap", precisions, best, count, baseline)
    rows += metric_rows("f1", {name: _f1(labels, values) for name, values in found.items()}, best, count, baseline)
    losses = {name: label_log_losses(labels, values) for name, values in found.items()}
    means = resampled_means(np.stack(list(losses.values()), axis=1), seed=SEED)
    estimates = {
        name: Estimate(math.fsum(values) / count, column)
        for (name, values), column in zip(losses.items(), means.T, strict=True)
    }
    return rows + metric_rows("log_loss", estimates, best, count, baseline), best, draws


def _f1(labels: NDArray[np.bool_], probabilities: NDArray[np.float32]) -> Estimate:
    given = probabilities > 0.5
    counts = np.stack([(given & labels).sum(1), (given & ~labels).sum(1), (~given & labels).sum(1)], axis=1)
    drawn = np.rint(resampled_means(counts.astype(np.float64), seed=SEED) * len(labels))
    return Estimate(float(f1_of_counts(*counts.sum(axis=0))), f1_of_counts(*drawn.T))
