"""Summarizes the steps of `choral run`: tables of its models and its ensemble, on a terminal and as an HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from choral import __version__
from choral.config import Config
from choral.core.figures import build_data_uri
from choral.core.pages.page import Page, Section, render_page
from choral.ensembles.score_rows import IntervalDict
from choral.runs.run_dir import RunDir, write_atomic
from choral.scoring.scoreboard.board import Scoreboard
from choral.scoring.scoreboard.figure import draw_board
from choral.scoring.scoreboard.recording import resolve_project
from choral.scoring.scoreboard.rows import BoardRow, BoardTable, build_board_tables
from choral.scoring.scoreboard.table import build_board_notes, render_board
from choral.scoring.scoreboard.test_set_uses import (
    format_test_set_uses,
    read_test_set_uses,
    resolve_run_name,
    resolve_scoreboard_root,
)
from choral.scoring.stored_predictor import LOWER_IS_BETTER

SUMMARY_FILE = "summary.html"
_SHARES = ("accuracy", "mean_ap", "r2")
_NAMES = {"accuracy": "accuracy %", "mean_ap": "mean AP %", "r2": "R2 %", "rmse": "RMSE", "log_loss": "log loss"}


@dataclass(frozen=True)
class Step:
    """A finished stage of the workflow, its result as text, and files with more details, relative to the page."""

    stage: str
    result: str
    links: tuple[tuple[str, str], ...] = ()


def board_tables(folders: Sequence[RunDir], config: Config) -> list[BoardTable]:
    """Return the scoreboard tables of some runs only: of the validation split first, then of the test splits.

    Args:
        folders: the runs, in the order in which they build on each other.
        config: of the last run.
    """
    board = Scoreboard(resolve_scoreboard_root(folders[-1]) / resolve_project(config))
    order = {resolve_run_name(folder): place for place, folder in enumerate(folders)}
    entries = [entry for entry in board.entries()[0] if entry.run in order]
    entries.sort(key=lambda entry: (entry.split != config.data.val_split, order[entry.run]))
    splits = dict.fromkeys((config.data.val_split, *config.evaluate.splits))
    return build_board_tables(board, [entry for entry in entries if entry.split in splits])


def print_summary(tables: Sequence[BoardTable], folder: RunDir, console: Console) -> None:
    """Print the tables, and below tables of test data the number of uses of the test split."""
    for one in tables:
        console.print(render_board(one, console.width))
        for note in (*build_board_notes(one)[:1], *filter(None, [_build_uses_note(one, folder)])):
            console.print(note, markup=False, highlight=False)
        console.print()


@dataclass(frozen=True)
class _SummarySection(Section):
    """A section of the page: a table, then links, a figure and a note where there are any; see summary.html."""

    headings: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    number_columns: Sequence[int] = ()
    links: Sequence[tuple[str, str]] = ()
    figure: str = ""
    note: str = ""


def write_summary(tables: Sequence[BoardTable], steps: Sequence[Step], folder: RunDir) -> Path:
    """Write RUN/summary.html and return its path: the stages that ran, their scores, and links to further files."""
    links = [(target, text) for step in steps for target, text in step.links if (folder.path / target).is_file()]
    rows = [(step.stage, step.result) for step in steps]
    sections = [_SummarySection("steps", "Stages", headings=("stage", "result"), rows=rows, links=links)]
    sections += [_split_section(number, one, folder) for number, one in enumerate(tables)]
    page = Page(
        title=f"{folder.name}: results of each step",
        sections=sections,
        subtitle="95 % intervals by bootstrap",
        foot=f"choral {__version__}",
        template="cli/workflow/summary.html",
    )
    path = folder.path / SUMMARY_FILE
    write_atomic(path, render_page(page))
    return path


def _split_section(number: int, one: BoardTable, folder: RunDir) -> _SummarySection:
    metric = one["metric"]
    return _SummarySection(
        f"split-{number}",
        "Validation data" if number == 0 else f"Split {one['split']}",
        f"{one['samples']:,} samples. Each step is compared with the one before on the same samples (paired).",
        headings=("step", f"{_NAMES.get(metric, metric)} [95 %]", "change to the step before", "log loss", "minutes"),
        rows=[_build_row(metric, row) for row in one["rows"]],
        number_columns=(1, 2, 3, 4),
        figure=build_data_uri(draw_board(one)),
        note=_build_uses_note(one, folder),
    )


def _build_row(metric: str, row: BoardRow) -> tuple[str, ...]:
    value, before, loss = row["metrics"].get(metric), row["to_before"], row["metrics"].get("log_loss")
    better = ""
    if before is not None and (before["low"] > 0 or before["high"] < 0):
        better = " better" if (before["value"] > 0) is not (metric in LOWER_IS_BETTER) else " worse"
    return (
        row["name"],
        _format_interval(metric, value) if value else "-",
        f"{_format_interval(metric, before, '+')}{better}" if before else "-",
        f"{loss['value']:.4f}" if loss else "-",
        f"{row['minutes']:.1f}" if row["minutes"] is not None else "-",
    )


def _format_interval(metric: str, numbers: IntervalDict, sign: str = "") -> str:
    scale, places = (100, 2) if metric in _SHARES else (1, 4)
    value, low, high = (f"{scale * numbers[key]:{sign}.{places}f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _build_uses_note(one: BoardTable, folder: RunDir) -> str:
    uses = read_test_set_uses(resolve_scoreboard_root(folder), one["dataset"], one["split"], one["task"])
    return format_test_set_uses(uses, one["split"]) if uses.predictors else ""
