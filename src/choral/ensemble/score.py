"""From a ledger to the table of scores: members, soft and hard vote, without and with test-time views.

The result is a function of the ledger (and of the published figures put beside it) alone: no clock, no random state, no
forward pass. The same ledger gives the same numbers, digit for digit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.table import Table
from rich.text import Text

from choral.ensemble.combine import hard, soft
from choral.errors import DataError
from choral.predict.ledger import Ledger
from choral.score.intervals import DRAWS, LEVEL, Interval, interval_of, resampled_means
from choral.score.metrics import correct, log_losses, top_class

SEED = 0


class Numbers(TypedDict):
    """A value and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


class Difference(Numbers):
    """A paired difference: this row's accuracy minus that of the row named `to`, on the same samples."""

    to: str


class Row(TypedDict):
    """One predictor.

    `log_loss` is None for a hard vote, which has no probabilities; `difference` for the member that the others are
    compared with; `ties` for all but hard votes.
    """

    name: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    log_loss: Numbers | None
    difference: Difference | None
    ties: int | None


class Reference(TypedDict):
    """A published figure: a fraction, as a row's value, but on the word of its source."""

    name: str
    metric: str
    value: float
    source: str


class Scores(TypedDict):
    """What `score_run` returns: plain JSON."""

    rows: list[Row]
    references: list[Reference]
    split: str
    n: int
    skipped: int
    members: list[str]
    tta_views: list[str]
    best_member: str
    dataset: str
    evaluation: str
    bootstrap: dict[str, float]


@dataclass
class _Entry:
    """One row in the making: a number a sample for each metric, block by block."""

    correct: list[NDArray[np.float64]] = field(default_factory=list)
    losses: list[NDArray[np.float64]] = field(default_factory=list)  # stays empty for a hard vote
    tied: list[NDArray[np.bool_]] = field(default_factory=list)  # of a hard vote


def score_run(ledger: Ledger, references: Sequence[Mapping[str, Any]] = ()) -> Scores:
    """Score the members of a ledger and their votes.

    Rows, in this order: `member/NAME`, `soft`, `hard`, then, where the ledger holds averaged views, `member/NAME+tta`,
    `soft+tta` and `hard+tta`. Each has the accuracy with its 95 % interval, the log loss with its own, and the paired
    difference in accuracy to the best single member without averaged views: the one of the highest accuracy, among
    equals that of the lowest log loss, then the first of the ledger. It is chosen on the samples that are scored here,
    which flatters it: the gains of the votes are stated a little too low, rather than too high.

    A ledger without the identity view is scored by what it has: its averaged views, else its first view, named
    `member/NAME+VIEW` and so on; the best member is then the best of these.

    Args:
        ledger: of one split.
        references: published figures (name, metric, value as a fraction, source) that are passed on.

    Raises:
        DataError: a ledger without a sample.
    """
    if not len(ledger):
        raise DataError(f"{ledger.path}: holds no sample, nothing can be scored")
    rows, best = _rows(_entries(ledger), len(ledger.members))
    return Scores(
        rows=rows,
        references=[
            Reference(
                name=str(item["name"]),
                metric=str(item["metric"]),
                value=float(item["value"]),
                source=str(item["source"]),
            )
            for item in references
        ],
        split=ledger.meta.split,
        n=len(ledger),
        skipped=ledger.meta.skipped,
        members=list(ledger.members),
        tta_views=list(ledger.meta.tta_views) if "tta" in ledger.views else [],
        best_member=best,
        dataset=ledger.meta.dataset,
        evaluation=ledger.meta.evaluation,
        bootstrap={"draws": DRAWS, "level": LEVEL, "seed": SEED},
    )


def _entries(ledger: Ledger) -> dict[str, _Entry]:
    """Walk once over the columns that are scored, one block of samples at a time."""
    entries: dict[str, _Entry] = {}
    for view in [view for view in ("identity", "tta") if view in ledger.views] or ledger.views[:1]:
        suffix = "" if view == "identity" else f"+{view}"
        names = [*(f"member/{member}{suffix}" for member in ledger.members), f"soft{suffix}", f"hard{suffix}"]
        group = {name: _Entry() for name in names}
        *members, mean, vote = group.values()
        start = 0
        for stack in ledger.blocks(view):
            labels = ledger.labels[start : start + stack.shape[1]]
            start += len(labels)
            for entry, probabilities in zip([*members, mean], [*stack, soft(stack)], strict=True):
                entry.correct.append(correct(labels, top_class(probabilities)))
                entry.losses.append(log_losses(labels, probabilities))
            votes = hard(stack)
            vote.correct.append(correct(labels, votes.predictions))
            vote.tied.append(votes.tied)
        entries |= group
    return entries


def _rows(entries: Mapping[str, _Entry], members: int) -> tuple[list[Row], str]:
    """Return the rows, and the name of the best of the first `members` of them."""
    names = list(entries)
    scores = {name: np.concatenate(entry.correct) for name, entry in entries.items()}
    losses = {name: np.concatenate(entry.losses) for name, entry in entries.items() if entry.losses}
    # All rows share the draws, so that any two of them can be compared in pairs.
    means = resampled_means(np.stack([*scores.values(), *losses.values()], axis=1), seed=SEED)
    drawn = dict(zip(names, means.T, strict=False))
    drawn_losses = dict(zip(losses, means.T[len(names) :], strict=True))
    plain = names[:members]  # without averaged views, if the ledger has such columns
    best = min(plain, key=lambda name: (-scores[name].sum(), losses[name].sum()))
    rows: list[Row] = []
    for name, entry in entries.items():
        accuracy = interval_of(scores[name], drawn[name])
        loss = interval_of(losses[name], drawn_losses[name]) if name in losses else None
        gain = interval_of(scores[name] - scores[best], drawn[name] - drawn[best])
        rows.append(
            Row(
                name=name,
                metric="accuracy",
                **_numbers(accuracy),
                n=len(scores[name]),
                log_loss=_numbers(loss) if loss else None,
                difference=None if name == best else Difference(to=best, **_numbers(gain)),
                ties=int(np.concatenate(entry.tied).sum()) if entry.tied else None,
            )
        )
    return rows, best


def _numbers(interval: Interval) -> Numbers:
    return Numbers(value=interval.value, low=interval.low, high=interval.high)


def to_json(scores: Scores) -> str:
    """Return the scores as JSON text; the same scores give the same text."""
    return json.dumps(scores, indent=1, ensure_ascii=False, allow_nan=False)


def render(scores: Scores) -> Table:
    """Return the scores as a table for people, in 80 columns or more: percentages, and differences in points.

    Published figures stand in rows of their own, below, marked as such, with their source and without an interval.
    """
    skipped = f", {scores['skipped']} unreadable and left out" if scores["skipped"] else ""
    table = Table(
        title=Text(f"{scores['split']}: {scores['n']} samples{skipped}"),
        caption=Text(_notes(scores), justify="left"),
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("", overflow="fold")
    for heading in ("accuracy % [95 %]", "points to best [95 %]", "log loss"):
        table.add_column(heading, no_wrap=True)
    for row in scores["rows"]:
        style = "" if row["name"].startswith("member/") else "bold"
        last = row["name"].startswith("hard")
        table.add_row(*map(Text, _cells(row)), style=style, end_section=last)
    for reference in scores["references"]:
        metric = "" if reference["metric"] == "accuracy" else f" ({reference['metric']})"
        table.add_row(Text(f"{reference['name']}{metric}"), f"{100 * reference['value']:6.2f} published", "", "")
    return table


def _cells(row: Row) -> list[str]:
    accuracy = f"{100 * row['value']:6.2f} [{100 * row['low']:.2f}, {100 * row['high']:.2f}]"
    gain, loss = row["difference"], row["log_loss"]
    difference = (
        f"{100 * gain['value']:+6.2f} [{100 * gain['low']:+.2f}, {100 * gain['high']:+.2f}]" if gain else "  best"
    )
    return [row["name"], accuracy, difference, f"{loss['value']:.4f}" if loss else "-"]


def _notes(scores: Scores) -> str:
    """Say under the table what the words in it mean, as far as they occur."""
    notes = [
        "[low, high]: 95 % intervals, by bootstrap over the samples",
        "soft: mean of the members' probabilities; hard: majority of their votes",
    ]
    ties = [f"{row['ties']} in {row['name']}" for row in scores["rows"] if row["ties"]]
    if ties:
        notes[1] += f" (tied votes, decided by mean probability: {', '.join(ties)})"
    if scores["tta_views"]:
        notes.append(f"+tta: mean over the views {', '.join(scores['tta_views'])}")
    notes.append(f"points to best: paired difference to {scores['best_member']}, the best single member")
    sources = dict.fromkeys(reference["source"] for reference in scores["references"])
    for source in sources:
        names = [reference["name"] for reference in scores["references"] if reference["source"] == source]
        notes.append(f"published: {', '.join(names)}: {source}; perhaps on other samples, so not compared in pairs")
    return "\n".join(notes)
