"""Builds tables from the entries of a scoreboard: metrics, paired differences, and reasons where there is no comparison."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NotRequired, TypedDict

from choral.core.errors import ConfigError, DataError, did_you_mean
from choral.ensembles.score_rows import Difference, IntervalDict, interval_to_dict
from choral.metrics.estimate import Estimate
from choral.runs.run_dir import is_run_dir
from choral.scoring.scoreboard.board import Entry, Scoreboard
from choral.scoring.stored_predictor import (
    LOWER_IS_BETTER,
    METRICS,
    StoredPredictions,
    StoredSamples,
    compute_estimates,
)


class BoardRow(TypedDict):
    """One step; `to_before` and `to_best` are None where there is no row to compare with, or stored data are missing."""

    id: str
    step: str
    part: str
    name: str
    run: str
    folder: str
    there: bool  # whether the directory of the run exists
    predictor: str
    members: list[str]
    metrics: dict[str, IntervalDict]
    before: str  # name of the row that `to_before` compares with
    to_before: Difference | None
    to_best: Difference | None
    minutes: float | None
    config: str
    date: str
    not_compared: NotRequired[str]  # the reason


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
    records: Mapping[str, StoredPredictions]
    samples: StoredSamples | None
    reasons: Mapping[str, str]  # id to the reason why the entry cannot be compared


def build_board_tables(board: Scoreboard, entries: Sequence[Entry], metric: str = "") -> list[BoardTable]:
    """Return one table per set of samples, in the order of their first entries.

    Entries of other data, splits or labels are never in one table, since a difference between them would be due to the
    samples as much as to the predictors.

    Args:
        board: that stores the predictions of the entries.
        entries: of this scoreboard.
        metric: of differences and of the best row; "": the first metric of the task.

    Raises:
        ConfigError: no table has this metric.
    """
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.data, []).append(entry)
    metrics = {name for group in groups.values() for name in METRICS[group[0].task]}
    if metric and metric not in metrics:
        raise ConfigError(
            f"--metric: no '{metric}'.{did_you_mean(metric, metrics)} There are: {', '.join(sorted(metrics))}"
        )
    chosen = [group for group in groups.values() if not metric or metric in METRICS[group[0].task]]
    return [_build_table(board, _load_group(board, group), metric or METRICS[group[0].task][0]) for group in chosen]


def _load_group(board: Scoreboard, entries: list[Entry]) -> _Group:
    records: dict[str, StoredPredictions] = {}
    reasons: dict[str, str] = {}
    samples: StoredSamples | None = None
    try:
        samples = board.samples(entries[0])
    except DataError as error:
        reasons = {entry.id: str(error) for entry in entries}
    for entry in entries if samples is not None else ():
        try:
            records[entry.id] = board.record(entry)
        except DataError as error:
            reasons[entry.id] = str(error)
    return _Group(entries, records, samples, reasons)


def _build_table(board: Scoreboard, group: _Group, metric: str) -> BoardTable:
    first = group.entries[0]
    found: dict[str, dict[str, Estimate]] = {name: {} for name in METRICS[first.task]}
    if group.samples is not None:
        found = compute_estimates(first.task, group.samples.labels, group.records)
    groups = _group_by_run(group.entries)
    entries = [entry for run_entries in groups for entry in run_entries]
    names = _build_row_names(entries)
    values = {entry.id: entry.metrics[metric]["value"] for entry in entries if metric in entry.metrics}
    sign = -1 if metric in LOWER_IS_BETTER else 1
    best = max(values, key=lambda identity: sign * values[identity], default="")
    before = _find_previous(groups)

    def compute_difference(entry: Entry, other: str) -> Difference | None:
        estimates = found[metric]
        if other == entry.id or entry.id not in estimates or other not in estimates:
            return None
        return Difference(to=names[other], **interval_to_dict(estimates[entry.id].minus(estimates[other])))

    rows = []
    for entry in entries:
        figures = {name: interval_to_dict(of[entry.id].interval) for name, of in found.items() if entry.id in of}
        row = BoardRow(
            id=entry.id,
            step=entry.step,
            part=entry.part,
            name=names[entry.id],
            run=entry.run,
            folder=str(board.run_path(entry)),
            there=is_run_dir(board.run_path(entry)),
            predictor=entry.predictor,
            members=list(entry.members),
            metrics=figures or dict(entry.metrics),
            before=names.get(before[entry.id], ""),
            to_before=compute_difference(entry, before[entry.id]),
            to_best=compute_difference(entry, best),
            minutes=entry.minutes,
            config=entry.config,
            date=entry.date,
        )
        if entry.id in group.reasons:
            row["not_compared"] = group.reasons[entry.id]
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


def _group_by_run(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Return the entries of each evaluation of a run as a group, groups in the order of their first entries.

    Evaluations of a run with other weights or views are groups of their own: each begins with the row of a single model,
    which the other rows build on.
    """
    groups: dict[tuple[str, str, str, int], list[Entry]] = {}
    firsts: Counter[tuple[str, str, str]] = Counter()
    for entry in entries:
        run, first = (entry.run, entry.step, entry.config), entry.part == ""
        firsts[run] += first
        group = groups.setdefault((*run, max(1, firsts[run])), [])
        group.insert(0 if first else len(group), entry)
    return list(groups.values())


def _find_previous(groups: Sequence[Sequence[Entry]]) -> dict[str, str]:
    """Return the id of the row that each row is compared with, by its own id.

    That is the row above within a run, and the first row of the previous run for a run's first row.
    """
    firsts = ["", *(group[0].id for group in groups)]
    before = {group[0].id: first for group, first in zip(groups, firsts, strict=False)}
    return before | {entry.id: previous.id for group in groups for previous, entry in pairwise(group)}


def _build_row_names(entries: Sequence[Entry]) -> dict[str, str]:
    """Return the name of each row, with a number where an earlier row has the same name."""
    names: dict[str, str] = {}
    for entry in entries:
        name = f"{entry.step} {entry.part}".strip()
        count = sum(other == name or other.startswith(f"{name} #") for other in names.values())
        names[entry.id] = f"{name} #{count + 1}" if count else name
    return names
