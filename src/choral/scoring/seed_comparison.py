"""Two ways of training beside each other, each with several seeds: networks in pairs, averaged over the seeds.

What is averaged is the score, not the predictions: the figure is that of one network, as it would be with any seed. Intervals
are over samples, on the same draws for all networks. They do not cover what other seeds would give; the differences of the
single seeds, which are told beside, show how much that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from choral.core.errors import DataError
from choral.ensembles.score_rows import Numbers, scored_views
from choral.inference.ledger import Ledger
from choral.metrics.estimate import Estimate, bounded
from choral.scoring.compare import check_comparable
from choral.scoring.predictor import Predictor
from choral.scoring.predictor_report import defined
from choral.scoring.stored_predictor import LESS_IS_BETTER, METRICS, Record, estimates_of


class SeedPair(TypedDict):
    """A metric of both, averaged over seeds, and that of the second less that of the first; None: not defined."""

    metric: str
    n: int
    a: Numbers | None
    b: Numbers | None
    difference: Numbers | None
    by_seed: list[float]  # differences of the single seeds


def compare_seeds(a: Ledger, b: Ledger) -> list[SeedPair]:
    """Return how the members of a second ledger differ from those of a first one, by every metric of the task.

    Args:
        a, b: of as many members, in pairs; compared under the identity view, or the first that is scored.

    Raises:
        DataError: they are about different samples, or of different numbers of members.
    """
    if len(a.members) != len(b.members):
        raise DataError(f"{a.path} and {b.path}: {len(a.members)} and {len(b.members)} networks make no pairs")
    asked = {("a", at): _said(a, member) for at, member in enumerate(a.members)}
    asked |= {("b", at): _said(b, member) for at, member in enumerate(b.members)}
    check_comparable(asked["a", 0], asked["b", 0], (str(a.path), str(b.path)))
    task = a.meta.task
    records = {f"{side}{at}": Record.of(predictor) for (side, at), predictor in asked.items()}
    found = estimates_of(task, a.labels, records)
    pairs = []
    for metric in METRICS[task]:
        ours, theirs = ([found[metric][f"{side}{at}"] for at in range(len(a.members))] for side in "ab")
        one, other = mean_of(metric, ours), mean_of(metric, theirs)
        pairs.append(
            SeedPair(
                metric=metric,
                n=len(a),
                a=defined(one.interval),
                b=defined(other.interval),
                difference=defined(other.minus(one)),
                by_seed=[round(y.value - x.value, 12) for x, y in zip(ours, theirs, strict=True)],
            )
        )
    return pairs


def mean_of(metric: str, estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean of a metric over several networks, draw by draw."""
    if len(estimates) == 1:
        return estimates[0]
    value = sum(estimate.value for estimate in estimates) / len(estimates)
    draws = np.mean([estimate.draws for estimate in estimates], axis=0)
    return bounded(value, draws) if metric == "mean_ap" else Estimate(value, draws)


def is_better(pair: SeedPair) -> bool:
    """Whether the whole interval of a difference is on the better side of 0."""
    difference = pair["difference"]
    if difference is None:
        return False
    return difference["high"] < 0 if pair["metric"] in LESS_IS_BETTER else difference["low"] > 0


def _said(ledger: Ledger, member: str) -> Predictor:
    view, suffix = scored_views(ledger)[0]
    return Predictor(
        f"member/{member}{suffix}", ledger, ledger.predictions(member, view), ledger.meta.task != "regression"
    )
