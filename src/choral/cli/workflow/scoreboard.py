"""What `choral scores` reads, draws and prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from choral.core.errors import ConfigError, did_you_mean
from choral.runs.run_dir import write_atomic
from choral.scoring.scoreboard.board import Entry, Scoreboard, projects_in
from choral.scoring.scoreboard.figure import draw_board
from choral.scoring.scoreboard.rows import BoardTable, tables_of
from choral.scoring.scoreboard.table import notes_on, render_board, render_runs
from choral.scoring.scoreboard.test_set_uses import TestSetUses, looks_so_far, looks_text


class BoardScores(TypedDict):
    """The tables of a project, plain JSON; `uses`, by how many runs they were, and `figures` are those of each table."""

    project: str
    tables: list[BoardTable]
    uses: list[int]
    looks_by_runs: list[int]
    figures: list[str]
    damaged: int  # entries that could not be read, and are left out


def project_scores(root: Path, project: str, split: str = "", metric: str = "") -> BoardScores:
    """Return the tables of a project's scoreboard, and draw the figure of each beside it.

    Args:
        root: runs/scoreboard.
        project: that has entries there.
        split: whose tables are wanted; "": of the test splits, of all where there is none.
        metric: see `tables_of`.

    Raises:
        ConfigError: there is no such project, split or metric.
        ChoralError: the figure cannot be written.
    """
    board = Scoreboard.find(root, project)
    entries, damaged = board.entries()
    uses = {entry.data: looks_so_far(root, entry.dataset, entry.split, entry.task) for entry in entries}
    tables = tables_of(board, _wanted(entries, split, [data for data, seen in uses.items() if seen.predictors]), metric)
    figures = []
    for table in tables:
        figure = board.path / f"progress-{table['split']}-{table['metric']}-{table['data']}.svg"
        seen = looks_text(uses[table["data"]], table["split"]) if uses[table["data"]].predictors else ""
        write_atomic(figure, draw_board(table, seen))
        figures.append(str(figure))
    return BoardScores(
        project=project,
        tables=tables,
        uses=[uses[table["data"]].predictors for table in tables],
        looks_by_runs=[uses[table["data"]].runs for table in tables],
        figures=figures,
        damaged=damaged,
    )


def print_board(scores: BoardScores, console: Console, runs: bool = True) -> None:
    """Print the tables of a project, what stands behind them, and where their figures are."""

    def say(words: str) -> None:
        console.print(words, markup=False, highlight=False)

    found = [TestSetUses(*numbers) for numbers in zip(scores["uses"], scores["looks_by_runs"], strict=True)]
    for table, uses, figure in zip(scores["tables"], found, scores["figures"], strict=True):
        console.print(render_board(table, console.width))
        for note in notes_on(table):
            say(note)
        if uses.predictors:
            say(looks_text(uses, table["split"]))
        else:
            say("no test data, so no looks to count: what was chosen or fitted on this split is flattered")
        if runs:
            console.print()
            console.print(render_runs(table))
        console.print(f"Figure: {figure}", markup=False, highlight=False, soft_wrap=True)
        console.print()
    if len({table["data"] for table in scores["tables"]}) > 1:
        say(
            "Tables of different samples (data, split or labels) are not compared: a difference would be theirs as well."
        )
    if scores["damaged"]:
        count = scores["damaged"]
        words = "1 damaged entry is" if count == 1 else f"{count} damaged entries are"
        say(f"{words} left out; `choral score RUN` appends what it was of again")


def print_projects(root: Path, console: Console) -> None:
    """Print the projects that there are, each with its last step."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("project", "runs", "steps", "last step", "evaluated (UTC)"):
        table.add_column(heading)
    for project in projects_in(root):
        entries, _ = Scoreboard(root / project).entries()
        last = entries[-1] if entries else None
        cells = [project, str(len({entry.run for entry in entries})), str(len(entries))]
        cells += [f"{last.step} {last.part}".strip(), last.date[:16].replace("T", " ")] if last else ["-", "-"]
        table.add_row(*map(Text, cells))
    console.print(table)
    console.print("One of them: choral scores PROJECT", markup=False, highlight=False)


def projects_as_json(root: Path) -> dict[str, Any]:
    """Return the names of the projects that there are."""
    return {"projects": projects_in(root)}


def _wanted(entries: Sequence[Entry], split: str, tested: Sequence[str]) -> list[Entry]:
    splits = list(dict.fromkeys(entry.split for entry in entries))
    if split and split not in splits:
        raise ConfigError(f"--split: nothing of '{split}'.{did_you_mean(split, splits)} There are: {', '.join(splits)}")
    if split:
        return [entry for entry in entries if entry.split == split]
    return [entry for entry in entries if entry.data in tested] or list(entries)
