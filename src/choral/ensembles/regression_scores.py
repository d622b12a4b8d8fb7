"""Scores of regression ledgers: members, mean, median and other rules, by RMSE, MAE and R2, each target in its own unit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from choral.ensembles.score_rows import SEED, RegressionRow, Section, build_metric_rows, compute_row_predictions
from choral.metrics.estimate import Estimate
from choral.metrics.intervals import bootstrap_means
from choral.metrics.per_sample import r2_from_sums

_METRICS = ("rmse", "mae", "r2")


def score_regression(sections: Sequence[Section], baseline: str = "") -> tuple[list[RegressionRow], str]:
    """Return the rows, and the best member: highest R2, summed over targets.

    Args:
        sections: of the table; the best member is one of the first section's.
        baseline: a row that all others are also compared with; "": none.
    """
    ledger = sections[0].member_predictions.ledger
    predictions = compute_row_predictions(sections)
    by_target = [_estimate_target(ledger.labels, predictions, number) for number in range(len(ledger.classes))]
    members = list(predictions)[: len(sections[0].members)]
    best = max(members, key=lambda name: sum(estimates["r2"][name].value for estimates in by_target))
    rows = [
        RegressionRow(**row, target=target)
        for target, estimates in zip(ledger.classes, by_target, strict=True)
        for metric in _METRICS
        for row in build_metric_rows(metric, estimates[metric], best, len(ledger), baseline)
    ]
    return rows, best


def _estimate_target(
    labels: NDArray[np.float32], predictions: dict[str, NDArray[np.float32]], target: int
) -> dict[str, dict[str, Estimate]]:
    """Return metric to row to estimate, for one target; all share their draws of samples."""
    truth = labels[:, target].astype(np.float64)
    centred = truth - math.fsum(truth) / len(truth)
    errors = np.stack([values[:, target].astype(np.float64) - truth for values in predictions.values()], axis=1)
    columns = np.concatenate([np.abs(errors), errors**2, centred[:, None], centred[:, None] ** 2], axis=1)
    drawn = bootstrap_means(columns, seed=SEED)
    means = np.array([math.fsum(column) / len(truth) for column in columns.T])
    drawn_variance, variance = drawn[:, -1] - drawn[:, -2] ** 2, means[-1:]
    estimates: dict[str, dict[str, Estimate]] = {metric: {} for metric in _METRICS}
    for number, name in enumerate(predictions):
        absolute, squared = number, number + len(predictions)
        estimates["mae"][name] = Estimate(float(means[absolute]), drawn[:, absolute])
        estimates["rmse"][name] = Estimate(math.sqrt(means[squared]), np.sqrt(drawn[:, squared]))
        r2 = float(r2_from_sums(means[squared : squared + 1], variance)[0])
        estimates["r2"][name] = Estimate(r2, r2_from_sums(drawn[:, squared], drawn_variance))
    return estimates
