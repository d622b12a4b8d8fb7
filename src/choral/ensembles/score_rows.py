"""What a table of scores is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from choral.ensembles.diversity_rows import Diversity
from choral.ensembles.member_predictions import MemberPredictions
from choral.ensembles.rules import Combiner
from choral.inference.ledger import Ledger
from choral.metrics.estimate import Estimate
from choral.metrics.intervals import Interval

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
    """One predictor by one metric; `difference` is None for the member that the others are compared with.

    `to_baseline` is there where the rows are compared with another one, too, that is no member.
    """

    name: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    difference: Difference | None
    to_baseline: NotRequired[Difference | None]


class ClassRow(Row):
    """A row of multiclass, which has the accuracy.

    `log_loss` is None for a hard vote, which has no probabilities; `ties` for all that do not vote. Differences
    in log loss are there together with `to_baseline`.
    """

    log_loss: Numbers | None
    log_loss_difference: NotRequired[Difference | None]
    log_loss_to_baseline: NotRequired[Difference | None]
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


class FittedRule(TypedDict):
    """What stands behind a row of a rule that was fitted."""

    name: str
    rule: str
    on: str
    samples: int
    by: str
    weights: dict[str, float]


class TemperatureOf(TypedDict):
    """The temperature that validation data would give a rule of the table, and what it is worth where it is scored.

    The table's own rows are without it; `choral combine` applies it.
    """

    name: str
    value: float
    on: str
    samples: int
    log_loss: Numbers
    tempered: Numbers
    difference: Numbers


class ViewGain(Numbers):
    """What learned weights of views gain: a paired difference by one metric, with regression of one target.

    `to` is what they are compared with: "identity", or "uniform", the mean over all views that they were chosen from.
    """

    metric: str
    target: NotRequired[str]
    to: str


class LearnedRow(TypedDict):
    """What stands behind the row of learned weights of views."""

    name: str
    weights: dict[str, float]  # of all views that were chosen from
    on: str
    samples: int
    by: str
    losses: dict[str, float]  # there: learned, uniform, identity
    gains: list[ViewGain]  # on what is scored


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
    average: str  # of these views: probabilities, logits, geometric
    best_member: str
    rules: list[FittedRule]
    temperatures: list[TemperatureOf]
    learned_views: LearnedRow | None  # None: the ledger keeps no views, or there is nothing to learn on
    not_fitted: str  # why there are no rules fitted on validation data; "" where there are, or none were to be
    not_stacked: str  # why there is no stack in a run with folds or bags; "" where there is one, or none was to be
    dataset: str
    evaluation: str
    bootstrap: dict[str, float]
    diversity: Diversity | None  # None: a single member


def metric_rows(metric: str, estimates: Mapping[str, Estimate], best: str, count: int, baseline: str = "") -> list[Row]:
    """Return a row a predictor by one metric, each compared with the predictor called `best`, over so many samples.

    With a `baseline` each is compared with that one, too.
    """

    def to(name: str, other: str) -> Difference | None:
        return None if name == other else Difference(to=other, **numbers(estimates[name].minus(estimates[other])))

    rows = []
    for name, estimate in estimates.items():
        found = estimate.interval
        row = Row(
            name=name,
            metric=metric,
            value=found.value,
            low=found.low,
            high=found.high,
            n=count,
            difference=to(name, best),
        )
        if baseline:
            row["to_baseline"] = to(name, baseline)
        rows.append(row)
    return rows


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


@dataclass(frozen=True)
class Section:
    """Rows that stand together: members, and rules that combine them.

    Attributes:
        panel: the members, under some views.
        suffix: of the rows' names, such as "+tta".
        rules: name of the row without suffix, to the rule.
        with_members: whether there are rows of the members, too.
    """

    panel: MemberPredictions
    suffix: str
    rules: Mapping[str, Combiner]
    with_members: bool = True

    @property
    def members(self) -> tuple[str, ...]:
        """Those that have a row."""
        return self.panel.members if self.with_members else ()

    @property
    def names(self) -> list[str]:
        """Names of the rows, members first."""
        return [f"{name}{self.suffix}" for name in (*(f"member/{name}" for name in self.members), *self.rules)]


def predictions_of(sections: Sequence[Section]) -> dict[str, NDArray[np.float32]]:
    """Return the (N, outputs) predictions of every row of the table: of each section its members, then its rules."""
    found: dict[str, list[NDArray[np.float32]]] = {}
    for section in sections:
        for _, stack in section.panel.blocks():
            said = [*stack[: len(section.members)], *(rule(stack).predictions for rule in section.rules.values())]
            for name, values in zip(section.names, said, strict=True):
                found.setdefault(name, []).append(values)
    return {name: np.concatenate(parts) for name, parts in found.items()}
