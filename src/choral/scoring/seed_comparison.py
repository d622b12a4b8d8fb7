"""Compares two training configurations with several seeds each: paired models, metrics averaged over the seeds.

Metrics are averaged, not predictions, so the result is that of a single model with a typical seed. Intervals are over
samples, with the same draws for all models. They do not cover the variation between seeds, which the differences of the
single seeds show.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from choral.core.errors import DataError
from choral.ensembles.score_rows import IntervalDict, scored_views
from choral.inference.ledger import Ledger
from choral.metrics.estimate import Estimate, logit_scale_estimate
from choral.scoring.compare import check_comparable
from choral.scoring.predictor import Predictor
from choral.scoring.predictor_report import interval_or_none
from choral.scoring.stored_predictor import LOWER_IS_BETTER, METRICS, StoredPredictions, compute_estimates


class SeedComparison(TypedDict):
    """A metric of both, averaged over seeds, and its difference, second minus first; None: undefined."""

    metric: str
    n: int
    a: IntervalDict | None
    b: IntervalDict | None
    difference: IntervalDict | None
    by_seed: list[float]  # differences of single seeds


def compare_seeds(a: Ledger, b: Ledger) -> list[SeedComparison]:
    """Return how the members of a second ledger differ from those of a first one, by every metric of the task.

    Args:
        a, b: with equally many members, paired by position; compared under the identity view, or the first scored view.

    Raises:
        DataError: the samples or the numbers of members differ.
    """
    if len(a.members) != len(b.members):
        raise DataError(f"{a.path} and {b.path}: {len(a.members)} and {len(b.members)} models cannot be paired")
    predictors = {("a", at): _load_member(a, member) for at, member in enumerate(a.members)}
    predictors |= {("b", at): _load_member(b, member) for at, member in enumerate(b.members)}
    check_comparable(predictors["a", 0], predictors["b", 0], (str(a.path), str(b.path)))
    task = a.meta.task
    records = {f"{side}{at}": StoredPredictions.of(predictor) for (side, at), predictor in predictors.items()}
    found = compute_estimates(task, a.labels, records)
    pairs = []
    for metric in METRICS[task]:
        of_a, of_b = ([found[metric][f"{side}{at}"] for at in range(len(a.members))] for side in "ab")
        one, other = average_estimates(metric, of_a), average_estimates(metric, of_b)
        pairs.append(
            SeedComparison(
                metric=metric,
                n=len(a),
                a=interval_or_none(one.interval),
                b=interval_or_none(other.interval),
                difference=interval_or_none(other.minus(one)),
                by_seed=[round(y.value - x.value, 12) for x, y in zip(of_a, of_b, strict=True)],
            )
        )
    return pairs


def average_estimates(metric: str, estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean of a metric over several models, draw by draw."""
    if len(estimates) == 1:
        return estimates[0]
    value = sum(estimate.value for estimate in estimates) / len(estimates)
    draws = np.mean([estimate.draws for estimate in estimates], axis=0)
    return logit_scale_estimate(value, draws) if metric == "mean_ap" else Estimate(value, draws)


def is_better(pair: SeedComparison) -> bool:
    """Return whether the whole interval of a difference lies on the better side of 0."""
    difference = pair["difference"]
    if difference is None:
        return False
    return difference["high"] < 0 if pair["metric"] in LOWER_IS_BETTER else difference["low"] > 0


def _load_member(ledger: Ledger, member: str) -> Predictor:
    view, suffix = scored_views(ledger)[0]
    return Predictor(
        f"member/{member}{suffix}", ledger, ledger.predictions(member, view), ledger.meta.task != "regression"
    )
