"""What a table of scores is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from choral.ensemble.diversity_rows import Diversity
from choral.predict.ledger import Ledger
from choral.score.intervals import Interval, interval_around

SEED = 0


class Numbers(TypedDict):
    """A value and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


class Difference(Numbers):
    """A paired difference: this row's score minus that of the row named `to`, on the same samples."""

    to: str


class Row(TypedDict):
    """One predictor by one metric; `difference` is None for the member that the others are compared with."""

    name: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    difference: Difference | None


class ClassRow(Row):
    """A row of multiclass, which has the accuracy.

    `log_loss` is None for a hard vote, which has no probabilities; `ties` for all but hard votes.
    """

    log_loss: Numbers | None
    ties: int | None


class TargetRow(Row):
    """A row of regression: of one target."""

    target: str


class Reference(TypedDict):
    """A published figure, in the unit of a row's value, but on the word of its source."""

    name: str
    metric: str
    value: float
    source: str


class Scores(TypedDict):
    """What `score_run` returns: plain JSON."""

    task: str
    rows: Sequence[Row]
    references: list[Reference]
    split: str
    n: int
    skipped: int
    members: list[str]
    configured: int  # members of the run
    absent: dict[str, str]  # those of them that the ledger is without, and why
    tta_views: list[str]
    best_member: str
    dataset: str
    evaluation: str
    bootstrap: dict[str, float]
    diversity: Diversity | None  # None: a single member


@dataclass(frozen=True)
class Estimate:
    """A score, and what it was on (draws,) draws of samples, the same for all predictors."""

    value: float
    draws: NDArray[np.float64]

    @property
    def interval(self) -> Interval:
        """The score with its interval."""
        return interval_around(self.value, self.draws)

    def minus(self, other: Estimate) -> Interval:
        """Return the paired difference."""
        return interval_around(self.value - other.value, self.draws - other.draws)


def metric_rows(metric: str, estimates: Mapping[str, Estimate], best: str, count: int) -> list[Row]:
    """Return a row a predictor by one metric, each compared with the predictor called `best`, over so many samples."""
    return [
        Row(
            name=name,
            metric=metric,
            **numbers(estimate.interval),
            n=count,
            difference=None if name == best else Difference(to=best, **numbers(estimate.minus(estimates[best]))),
        )
        for name, estimate in estimates.items()
    ]


def numbers(interval: Interval) -> Numbers:
    """Return an interval as plain JSON."""
    return Numbers(value=interval.value, low=interval.low, high=interval.high)


def scored_views(ledger: Ledger) -> list[tuple[str, str]]:
    """Return the views that are scored, with what is appended to names: the identity, and the mean over all views.

    A ledger without the identity is scored by what it has: its averaged views, else its first view.
    """
    usual = ("identity", "tta")
    views = [view for view in ledger.views if view in usual] or list(ledger.views[:1])
    return [(view, "" if view == "identity" else f"+{view}") for view in views]


def predictions_of(ledger: Ledger, rules: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
    """Return the (N, outputs) predictions of every row of the table: members, then rules, for each scored view.

    Args:
        ledger: of one split.
        rules: name to a function of a (members, n, outputs) stack.
    """
    found: dict[str, list[NDArray[np.float32]]] = {}
    for view, suffix in scored_views(ledger):
        for stack in ledger.blocks(view):
            for member, values in zip(ledger.members, stack, strict=True):
                found.setdefault(f"member/{member}{suffix}", []).append(values)
            for name, rule in rules.items():
                found.setdefault(f"{name}{suffix}", []).append(rule(stack))
    return {name: np.concatenate(parts) for name, parts in found.items()}
