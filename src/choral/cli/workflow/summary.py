"""What each step of a run has brought: tables of its networks and its ensemble, on a terminal and as one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from choral import __version__
from choral.analysis.page.frame import Section, page
from choral.analysis.page.markup import Markup, figure, joined, link, table, words
from choral.config import Config
from choral.ensembles.score_rows import Numbers
from choral.runs.run_dir import RunDir, write_atomic
from choral.scoring.scoreboard.board import Scoreboard
from choral.scoring.scoreboard.figure import draw_board
from choral.scoring.scoreboard.recording import project_of
from choral.scoring.scoreboard.rows import BoardRow, BoardTable, tables_of
from choral.scoring.scoreboard.table import notes_on, render_board
from choral.scoring.scoreboard.test_set_uses import looks_so_far, looks_text, run_of, scoreboard_of
from choral.scoring.stored_predictor import LESS_IS_BETTER

SUMMARY_FILE = "summary.html"
_SHARES = ("accuracy", "mean_ap", "r2")
_NAMES = {"accuracy": "accuracy %", "mean_ap": "mean AP %", "r2": "R2 %", "rmse": "RMSE", "log_loss": "log loss"}


@dataclass(frozen=True)
class Step:
    """A stage of the workflow that was done, in words, with files beside the page that say more."""

    stage: str
    said: str
    links: tuple[tuple[str, str], ...] = ()


def board_tables(folders: Sequence[RunDir], config: Config) -> list[BoardTable]:
    """Return the tables of these runs alone, each step beside the one before: of validation data, then of test data.

    Args:
        folders: of the runs, in the order in which they build on each other.
        config: of the last one.
    """
    board = Scoreboard(scoreboard_of(folders[-1]) / project_of(config))
    order = {run_of(folder): place for place, folder in enumerate(folders)}
    entries = [entry for entry in board.entries()[0] if entry.run in order]
    entries.sort(key=lambda entry: (entry.split != config.data.val_split, order[entry.run]))
    splits = dict.fromkeys((config.data.val_split, *config.evaluate.splits))
    return tables_of(board, [entry for entry in entries if entry.split in splits])


def print_summary(tables: Sequence[BoardTable], folder: RunDir, console: Console) -> None:
    """Print the tables, and below those of test data how often these were looked at."""
    for one in tables:
        console.print(render_board(one, console.width))
        for note in (*notes_on(one)[:1], *filter(None, [_looks(one, folder)])):
            console.print(note, markup=False, highlight=False)
        console.print()


def write_summary(tables: Sequence[BoardTable], steps: Sequence[Step], folder: RunDir) -> Path:
    """Write RUN/summary.html: what was done, what it brought, and where more is said; return its path."""
    done = table(("stage", "what came of it"), [(step.stage, step.said) for step in steps])
    there = [link(target, text) for step in steps for target, text in step.links if (folder.path / target).is_file()]
    sections = [Section("steps", "What was done", body=joined(done, *there))]
    for place, one in enumerate(tables):
        lead = f"{one['samples']:,} samples; each step beside the one before, on the same samples, in pairs."
        title = "On validation data" if place == 0 else f"On split {one['split']}"
        sections.append(Section(f"split-{place}", title, lead, _table(one, folder)))
    path = folder.path / SUMMARY_FILE
    title = f"{folder.name}: what each step brought"
    write_atomic(path, page(title, sections, subtitle="95 % intervals by bootstrap", foot=f"choral {__version__}"))
    return path


def _table(one: BoardTable, folder: RunDir) -> Markup:
    metric = one["metric"]
    rows = [_row(metric, row) for row in one["rows"]]
    headings = ("step", f"{_NAMES.get(metric, metric)} [95 %]", "to the step before", "log loss", "minutes")
    uses = _looks(one, folder)
    return joined(
        table(headings, rows, numbers=(1, 2, 3, 4)),
        figure(draw_board(one)),
        *([words(uses, "note")] if uses else []),
    )


def _row(metric: str, row: BoardRow) -> tuple[str, ...]:
    own, before, loss = row["metrics"].get(metric), row["to_before"], row["metrics"].get("log_loss")
    better = ""
    if before is not None and (before["low"] > 0 or before["high"] < 0):
        better = " better" if (before["value"] > 0) is not (metric in LESS_IS_BETTER) else " worse"
    return (
        row["name"],
        _interval(metric, own) if own else "-",
        f"{_interval(metric, before, '+')}{better}" if before else "-",
        f"{loss['value']:.4f}" if loss else "-",
        f"{row['minutes']:.1f}" if row["minutes"] is not None else "-",
    )


def _interval(metric: str, numbers: Numbers, sign: str = "") -> str:
    scale, places = (100, 2) if metric in _SHARES else (1, 4)
    value, low, high = (f"{scale * numbers[key]:{sign}.{places}f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _looks(one: BoardTable, folder: RunDir) -> str:
    uses = looks_so_far(scoreboard_of(folder), one["dataset"], one["split"], one["task"])
    return looks_text(uses, one["split"]) if uses.predictors else ""
