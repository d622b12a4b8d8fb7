"""Reads, draws and prints a scoreboard, for `choral scores`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from choral.core.errors import ConfigError, did_you_mean
from choral.core.figures import write_figure
from choral.scoring.scoreboard.board import Entry, Scoreboard, list_projects
from choral.scoring.scoreboard.figure import draw_board
from choral.scoring.scoreboard.rows import BoardTable, build_board_tables
from choral.scoring.scoreboard.table import build_board_notes, render_board, render_runs
from choral.scoring.scoreboard.test_set_uses import TestSetUses, format_test_set_uses, read_test_set_uses


class BoardScores(TypedDict):
    """The tables of a project as plain JSON. The lists run parallel to `tables`; figures are paths of SVG files."""

    project: str
    tables: list[BoardTable]
    test_set_uses: list[int]
    test_set_uses_by_runs: list[int]
    figures: list[str]
    damaged: int  # entries that could not be read and are left out


def project_scores(root: Path, project: str, split: str = "", metric: str = "") -> BoardScores:
    """Return the tables of a project's scoreboard, and draw the figure of each beside it.

    Args:
        root: runs/scoreboard.
        project: name of a scoreboard there.
        split: of the tables; "": the test splits, or all splits where there is no test split.
        metric: see `build_board_tables`.

    Raises:
        ConfigError: there is no such project, split or metric.
        ChoralError: a figure cannot be written.
    """
    board = Scoreboard.find(root, project)
    entries, damaged = board.entries()
    uses = {entry.data: read_test_set_uses(root, entry.dataset, entry.split, entry.task) for entry in entries}
    test_data = [data for data, count in uses.items() if count.predictors]
    tables = build_board_tables(board, _select_entries(entries, split, test_data), metric)
    figures = []
    for table in tables:
        figure = board.path / f"progress-{table['split']}-{table['metric']}-{table['data']}.svg"
        count = uses[table["data"]]
        note = format_test_set_uses(count, table["split"]) if count.predictors else ""
        write_figure(figure, draw_board(table, note))
        figures.append(str(figure))
    return BoardScores(
        project=project,
        tables=tables,
        test_set_uses=[uses[table["data"]].predictors for table in tables],
        test_set_uses_by_runs=[uses[table["data"]].runs for table in tables],
        figures=figures,
        damaged=damaged,
    )


def print_board(scores: BoardScores, console: Console, runs: bool = True) -> None:
    """Print the tables of a project with their notes, the runs behind them, and the paths of the figures."""

    def print_line(text: str) -> None:
        console.print(text, markup=False, highlight=False)

    counts = map(TestSetUses, scores["test_set_uses"], scores["test_set_uses_by_runs"])
    for table, uses, figure in zip(scores["tables"], counts, scores["figures"], strict=True):
        console.print(render_board(table, console.width))
        for note in build_board_notes(table):
            print_line(note)
        if uses.predictors:
            print_line(format_test_set_uses(uses, table["split"]))
        else:
            print_line("not a test split: metrics of what was selected or fitted on it are biased upwards")
        if runs:
            console.print()
            console.print(render_runs(table))
        console.print(f"Figure: {figure}", markup=False, highlight=False, soft_wrap=True)
        console.print()
    if len({table["data"] for table in scores["tables"]}) > 1:
        print_line("Tables of different samples (data, split or labels) cannot be compared: the samples differ, too.")
    if scores["damaged"]:
        count = scores["damaged"]
        entries = "1 damaged entry is" if count == 1 else f"{count} damaged entries are"
        print_line(f"{entries} left out; `choral score RUN` appends the steps of a run again")


def print_projects(root: Path, console: Console) -> None:
    """Print all projects, each with its last step."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("project", "runs", "steps", "last step", "evaluated (UTC)"):
        table.add_column(heading)
    for project in list_projects(root):
        entries, _ = Scoreboard(root / project).entries()
        last = entries[-1] if entries else None
        cells = [project, str(len({entry.run for entry in entries})), str(len(entries))]
        cells += [f"{last.step} {last.part}".strip(), last.date[:16].replace("T", " ")] if last else ["-", "-"]
        table.add_row(*map(Text, cells))
    console.print(table)
    console.print("For one of them: choral scores PROJECT", markup=False, highlight=False)


def projects_to_json(root: Path) -> dict[str, Any]:
    """Return the names of all projects, for `--json`."""
    return {"projects": list_projects(root)}


def _select_entries(entries: Sequence[Entry], split: str, test_data: Sequence[str]) -> list[Entry]:
    """Return the entries of a split; "": those of test data, given by their fingerprints, or all where there are none."""
    splits = list(dict.fromkeys(entry.split for entry in entries))
    if split and split not in splits:
        raise ConfigError(
            f"--split: no entry of split '{split}'.{did_you_mean(split, splits)} There are: {', '.join(splits)}"
        )
    if split:
        return [entry for entry in entries if entry.split == split]
    return [entry for entry in entries if entry.data in test_data] or list(entries)
