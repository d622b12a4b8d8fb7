"""The rows and sections of a score table, and the JSON of `choral score`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from choral.ensembles.diversity_report import DiversityReport
from choral.ensembles.member_predictions import MemberPredictions
from choral.ensembles.rules import Combiner
from choral.inference.ledger import Ledger
from choral.metrics.estimate import Estimate
from choral.metrics.intervals import Interval

SEED = 0


class IntervalDict(TypedDict):
    """A value and the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


class Difference(IntervalDict):
    """A paired difference: this row's score minus that of the row named `to`, on the same samples."""

    to: str


class ScoreRow(TypedDict):
    """One predictor by one metric.

    `difference` is the difference to the best member, None for the best member itself. `to_baseline` is present if the
    rows are also compared with another row that is not a member.
    """

    name: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    difference: Difference | None
    to_baseline: NotRequired[Difference | None]


class MulticlassRow(ScoreRow):
    """A row of a multiclass table; its metric is the accuracy.

    `log_loss` is None for a hard vote, which has no probabilities; `ties` is None for all rows that are not votes.
    Differences in log loss are present together with `to_baseline`.
    """

    log_loss: IntervalDict | None
    log_loss_difference: NotRequired[Difference | None]
    log_loss_to_baseline: NotRequired[Difference | None]
    ties: int | None


class RegressionRow(ScoreRow):
    """A row of a regression table: one target."""

    target: str


class Reference(TypedDict):
    """A published score, in the unit of a row's value."""

    name: str
    metric: str
    value: float
    source: str


class FittedRuleRow(TypedDict):
    """How the rule of a row was fitted."""

    name: str
    rule: str
    on: str
    samples: int
    by: str
    weights: dict[str, float]


class TemperatureRow(TypedDict):
    """The temperature fitted on validation data for a rule of the table, and its effect on the scored split.

    The rows of the table do not use it; `choral combine` does.
    """

    name: str
    value: float
    on: str
    samples: int
    log_loss: IntervalDict
    tempered: IntervalDict
    difference: IntervalDict


class ViewGain(IntervalDict):
    """The gain of learned view weights: a paired difference in one metric, for regression of one target.

    `to` is the baseline: "identity", or "uniform", the mean over all views that were available.
    """

    metric: str
    target: NotRequired[str]
    to: str


class LearnedViewsRow(TypedDict):
    """How the view weights of a row were learned."""

    name: str
    weights: dict[str, float]  # of all views that were available
    on: str
    samples: int
    by: str
    losses: dict[str, float]  # on the samples they were learned on: learned, uniform, identity
    gains: list[ViewGain]  # on the scored split


class Scores(TypedDict):
    """The result of `score_run`, as plain JSON."""

    task: str
    rows: Sequence[ScoreRow]
    references: list[Reference]
    split: str
    n: int
    skipped: int
    members: list[str]
    configured: int  # members of the run
    missing_members: dict[str, str]  # members of the run without predictions in the ledger, and why
    tta_views: list[str]
    average: str  # of these views: probabilities, logits, geometric
    best_member: str
    rules: list[FittedRuleRow]
    temperatures: list[TemperatureRow]
    learned_views: LearnedViewsRow | None  # None: the ledger keeps no views, or there is nothing to learn on
    not_fitted: str  # why no rule is fitted on validation data; "" if there are such rules
    not_stacked: str  # why a run with folds or bags has no stack; "" if it has one, or no folds or bags
    dataset: str
    evaluation: str
    bootstrap: dict[str, float]
    diversity: DiversityReport | None  # None: a single member


def build_metric_rows(
    metric: str, estimates: Mapping[str, Estimate], best: str, count: int, baseline: str = ""
) -> list[ScoreRow]:
    """Return one row a predictor, each compared with the predictor `best` and, if given, with `baseline`.

    Args:
        metric: of the estimates.
        estimates: predictor to its estimate.
        best: name of the best member.
        count: number of samples.
        baseline: name of another predictor; "": none.
    """

    def difference(name: str, other: str) -> Difference | None:
        if name == other:
            return None
        return Difference(to=other, **interval_to_dict(estimates[name].minus(estimates[other])))

    rows = []
    for name, estimate in estimates.items():
        interval = estimate.interval
        row = ScoreRow(
            name=name,
            metric=metric,
            value=interval.value,
            low=interval.low,
            high=interval.high,
            n=count,
            difference=difference(name, best),
        )
        if baseline:
            row["to_baseline"] = difference(name, baseline)
        rows.append(row)
    return rows


def interval_to_dict(interval: Interval) -> IntervalDict:
    """Return an interval as plain JSON."""
    return IntervalDict(value=interval.value, low=interval.low, high=interval.high)


def scored_views(ledger: Ledger) -> list[tuple[str, str]]:
    """Return the views that are scored, with the suffix of their rows' names: the identity, and the mean over all views.

    A ledger without the identity is scored on its averaged views, else on its first view.
    """
    views = [view for view in ledger.views if view in ("identity", "tta")] or list(ledger.views[:1])
    return [(view, "" if view == "identity" else f"+{view}") for view in views]


@dataclass(frozen=True)
class Section:
    """Consecutive rows of a table: members, and rules that combine them.

    Attributes:
        member_predictions: of the members, under some views.
        suffix: of the rows' names, such as "+tta".
        rules: row name without suffix to the rule.
        with_members: whether the members have rows too.
    """

    member_predictions: MemberPredictions
    suffix: str
    rules: Mapping[str, Combiner]
    with_members: bool = True

    @property
    def members(self) -> tuple[str, ...]:
        """The members that have a row."""
        return self.member_predictions.members if self.with_members else ()

    @property
    def names(self) -> list[str]:
        """Names of the rows, members first."""
        return [f"{name}{self.suffix}" for name in (*(f"member/{name}" for name in self.members), *self.rules)]


def compute_row_predictions(sections: Sequence[Section]) -> dict[str, NDArray[np.float32]]:
    """Return the (N, outputs) predictions of every row of a table: in each section the members, then the rules."""
    parts: dict[str, list[NDArray[np.float32]]] = {}
    for section in sections:
        for _, stack in section.member_predictions.blocks():
            combined = [rule(stack).predictions for rule in section.rules.values()]
            for name, values in zip(section.names, [*stack[: len(section.members)], *combined], strict=True):
                parts.setdefault(name, []).append(values)
    return {name: np.concatenate(blocks) for name, blocks in parts.items()}
