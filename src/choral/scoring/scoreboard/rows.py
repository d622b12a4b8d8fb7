"""From the entries of a scoreboard to its tables: figures, paired differences, and what cannot be compared, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NotRequired, TypedDict

from choral.core.errors import ConfigError, DataError, did_you_mean
from choral.ensembles.score_rows import Difference, Numbers, numbers
from choral.metrics.estimate import Estimate
from choral.runs.run_dir import is_run
from choral.scoring.scoreboard.board import Entry, Scoreboard
from choral.scoring.stored_predictor import LESS_IS_BETTER, METRICS, Record, Samples, estimates_of


class BoardRow(TypedDict):
    """One step; `to_before` and `to_best` are None where there is nothing to compare with, or no longer the means to."""

    id: str
    step: str
    part: str
    name: str
    run: str
    folder: str
    there: bool  # whether the run's folder is
    predictor: str
    members: list[str]
    metrics: dict[str, Numbers]
    before: str  # name of the row that `to_before` is about
    to_before: Difference | None
    to_best: Difference | None
    minutes: float | None
    config: str
    date: str
    not_compared: NotRequired[str]  # why


class BoardTable(TypedDict):
    """The steps that were evaluated on the same samples, in the order of evaluation."""

    project: str
    split: str
    dataset: str
    data: str
    task: str
    classes: list[str]
    samples: int
    metric: str
    best: str  # id of the best row
    rows: list[BoardRow]


@dataclass(frozen=True)
class _Group:
    entries: list[Entry]
    records: Mapping[str, Record]
    samples: Samples | None
    why_not: Mapping[str, str]  # id to the reason why it cannot be compared


def tables_of(board: Scoreboard, entries: Sequence[Entry], metric: str = "") -> list[BoardTable]:
    """Return a table for each set of samples, in the order of their first entry.

    Entries about other data, another split or other labels are never in one table: a difference between them would be one
    of the samples as much as of the predictors.

    Args:
        board: that keeps the records of the entries.
        entries: of it.
        metric: that differences and the best are of; "": the first one of the task.

    Raises:
        ConfigError: no table has such a metric.
    """
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.data, []).append(entry)
    known = {name for group in groups.values() for name in METRICS[group[0].task]}
    if metric and metric not in known:
        raise ConfigError(
            f"--metric: no '{metric}'.{did_you_mean(metric, known)} There are: {', '.join(sorted(known))}"
        )
    chosen = [group for group in groups.values() if not metric or metric in METRICS[group[0].task]]
    return [_table(board, _group(board, group), metric or METRICS[group[0].task][0]) for group in chosen]


def _group(board: Scoreboard, entries: list[Entry]) -> _Group:
    records: dict[str, Record] = {}
    why_not: dict[str, str] = {}
    samples: Samples | None = None
    try:
        samples = board.samples(entries[0])
    except DataError as error:
        why_not = {entry.id: str(error) for entry in entries}
    for entry in entries if samples is not None else ():
        try:
            records[entry.id] = board.record(entry)
        except DataError as error:
            why_not[entry.id] = str(error)
    return _Group(entries, records, samples, why_not)


def _table(board: Scoreboard, group: _Group, metric: str) -> BoardTable:
    first = group.entries[0]
    found: dict[str, dict[str, Estimate]] = {name: {} for name in METRICS[first.task]}
    if group.samples is not None:
        found = estimates_of(first.task, group.samples.labels, group.records)
    groups = _by_run(group.entries)
    entries = [entry for own in groups for entry in own]
    names = _names(entries)
    values = {entry.id: entry.metrics[metric]["value"] for entry in entries if metric in entry.metrics}
    sign = -1 if metric in LESS_IS_BETTER else 1
    best = max(values, key=lambda identity: sign * values[identity], default="")
    before = _before(groups)

    def to(entry: Entry, other: str) -> Difference | None:
        estimates = found[metric]
        if other == entry.id or entry.id not in estimates or other not in estimates:
            return None
        return Difference(to=names[other], **numbers(estimates[entry.id].minus(estimates[other])))

    rows = []
    for entry in entries:
        figures = {name: numbers(of[entry.id].interval) for name, of in found.items() if entry.id in of}
        row = BoardRow(
            id=entry.id,
            step=entry.step,
            part=entry.part,
            name=names[entry.id],
            run=entry.run,
            folder=str(board.folder_of(entry)),
            there=is_run(board.folder_of(entry)),
            predictor=entry.predictor,
            members=list(entry.members),
            metrics=figures or dict(entry.metrics),
            before=names.get(before[entry.id], ""),
            to_before=to(entry, before[entry.id]),
            to_best=to(entry, best),
            minutes=entry.minutes,
            config=entry.config,
            date=entry.date,
        )
        if entry.id in group.why_not:
            row["not_compared"] = group.why_not[entry.id]
        rows.append(row)
    return BoardTable(
        project=board.path.name,
        split=first.split,
        dataset=first.dataset,
        data=first.data,
        task=first.task,
        classes=list(first.classes),
        samples=first.samples,
        metric=metric,
        best=best,
        rows=rows,
    )


def _by_run(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Return the entries of each evaluation of a run together, in the order of their first.

    What a run was evaluated to before, with other weights or views, is another group than what came of it later: each has
    a first row of its own, with one network, that the others add to.
    """
    groups: dict[tuple[str, str, str, int], list[Entry]] = {}
    firsts: Counter[tuple[str, str, str]] = Counter()
    for entry in entries:
        run, first = (entry.run, entry.step, entry.config), entry.part == ""
        firsts[run] += first
        group = groups.setdefault((*run, max(1, firsts[run])), [])
        group.insert(0 if first else len(group), entry)
    return list(groups.values())


def _before(groups: Sequence[Sequence[Entry]]) -> dict[str, str]:
    """Return the id of the step before each: in a run what it adds to, of a run's first the first of the run before."""
    firsts = ["", *(group[0].id for group in groups)]
    before = {group[0].id: first for group, first in zip(groups, firsts, strict=False)}
    return before | {entry.id: previous.id for group in groups for previous, entry in pairwise(group)}


def _names(entries: Sequence[Entry]) -> dict[str, str]:
    """Return what each row is called, with a number where one is called like an earlier one."""
    names: dict[str, str] = {}
    for entry in entries:
        name = f"{entry.step} {entry.part}".strip()
        count = sum(other == name or other.startswith(f"{name} #") for other in names.values())
        names[entry.id] = f"{name} #{count + 1}" if count else name
    return names
