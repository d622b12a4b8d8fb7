"""Scores of regression: members, mean, median and other rules, by RMSE, MAE and R2, for each target in its own unit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from choral.ensembles.score_rows import SEED, Section, TargetRow, metric_rows, predictions_of
from choral.metrics.estimate import Estimate
from choral.metrics.intervals import resampled_means
from choral.metrics.per_sample import r2_of_sums

_METRICS = ("rmse", "mae", "r2")


def number_rows(sections: Sequence[Section], baseline: str = "") -> tuple[list[TargetRow], str]:
    """Return the rows, and the best member: of the highest R2, with one target that of the lowest RMSE.

    Args:
        sections: of the table; the best is one of the first one's members.
        baseline: a row that all are compared with, too; "": none.
    """
    ledger, members = sections[0].panel.ledger, len(sections[0].members)
    found = predictions_of(sections)
    estimates = [_estimates(ledger.labels, found, number) for number in range(len(ledger.classes))]
    plain = list(found)[:members]
    best = max(plain, key=lambda name: sum(of_target["r2"][name].value for of_target in estimates))
    rows = [
        TargetRow(**row, target=target)
        for target, of_target in zip(ledger.classes, estimates, strict=True)
        for metric in _METRICS
        for row in metric_rows(metric, of_target[metric], best, len(ledger), baseline)
    ]
    return rows, best


def _estimates(
    labels: NDArray[np.float32], found: dict[str, NDArray[np.float32]], target: int
) -> dict[str, dict[str, Estimate]]:
    """Return metric to predictor to score, of one target; all share their draws of samples."""
    truth = labels[:, target].astype(np.float64)
    centred = truth - math.fsum(truth) / len(truth)
    errors = np.stack([values[:, target].astype(np.float64) - truth for values in found.values()], axis=1)
    columns = np.concatenate([np.abs(errors), errors**2, centred[:, None], centred[:, None] ** 2], axis=1)
    drawn = resampled_means(columns, seed=SEED)
    means = np.array([math.fsum(column) / len(truth) for column in columns.T])
    variances, variance = drawn[:, -1] - drawn[:, -2] ** 2, means[-1:]
    result: dict[str, dict[str, Estimate]] = {metric: {} for metric in _METRICS}
    for number, name in enumerate(found):
        absolute, squared = number, number + len(found)
        result["mae"][name] = Estimate(float(means[absolute]), drawn[:, absolute])
        result["rmse"][name] = Estimate(math.sqrt(means[squared]), np.sqrt(drawn[:, squared]))
        explained = float(r2_of_sums(means[squared : squared + 1], variance)[0])
        result["r2"][name] = Estimate(explained, r2_of_sums(drawn[:, squared], variances))
    return result
