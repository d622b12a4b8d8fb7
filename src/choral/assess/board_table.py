"""The scoreboard for people, in 80 columns or more."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from choral.assess.board_rows import BoardRow, BoardTable
from choral.ensemble.table import METRICS as HEADINGS

_SHARES = ("accuracy", "mean_ap")
_PLOT = 20  # letters of the drawing, in terminals that have room for it
_WIDE, _WIDER = 92, 118  # columns of a terminal from which on there are two decimals, and the drawing


def render_board(table: BoardTable, width: int) -> Table:
    """Return the steps with intervals and paired differences.

    Args:
        table: of steps.
        width: of the terminal in columns; a wide one shows more decimals, a wider one draws the intervals.
    """
    metric, second = table["metric"], _second(table)
    shown = Table(
        title=Text(f"{table['project']}, {table['split']}: {table['samples']} samples, data {table['data']}"),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),  # all of this makes room for names
        pad_edge=False,
        show_edge=False,
        title_justify="left",
    )
    shown.add_column("step", overflow="fold")
    places = 2 if width >= _WIDE else 1
    for heading in (_heading(metric), "to the one before", "to the best"):
        shown.add_column(heading, no_wrap=True)
    if second:
        shown.add_column(HEADINGS[second].removesuffix(" %"), no_wrap=True, justify="right")
    scale = _scale(table) if width >= _WIDER else None
    if scale:
        shown.add_column(f"{_number(metric, scale[0], 1)} to {_number(metric, scale[1], 1)}", no_wrap=True)
    for row, following in pairwise((*table["rows"], None)):
        assert row is not None
        best = row["id"] == table["best"]
        own = row["metrics"].get(metric)
        cells = [
            _name(table, row),
            _interval(metric, own, places) if own else "-",
            _interval(metric, row["to_before"], places, "+") if row["to_before"] else "-",
            "best" if best else _interval(metric, row["to_best"], places, "+") if row["to_best"] else "-",
        ]
        if second:
            figure = row["metrics"].get(second)
            cells.append(f"{figure['value']:.4f}" if figure else "-")
        if scale:
            cells.append(_drawn(own, scale) if own else "")
        last = following is not None and _begins(table, following)
        shown.add_row(*map(Text, cells), style="bold" if best else "", end_section=last)
    return shown


def render_runs(table: BoardTable) -> Table:
    """Return the runs behind the steps: who was trained for how long, with which config, evaluated when."""
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for heading in ("step", "run"):
        shown.add_column(heading, overflow="fold")
    for heading in ("networks", "minutes"):
        shown.add_column(heading, justify="right")
    for heading in ("config", "evaluated"):
        shown.add_column(heading, no_wrap=True)
    for row in table["rows"]:
        if not _begins(table, row):
            continue
        group = [other for other in table["rows"] if (other["run"], other["step"]) == (row["run"], row["step"])]
        minutes = max((other["minutes"] for other in group if other["minutes"] is not None), default=None)
        run = row["run"] if row["there"] else f"{row['run']} (deleted)"
        cells = [row["step"], run, str(len(row["members"])), "-" if minutes is None else f"{minutes:.1f}"]
        shown.add_row(*map(Text, [*cells, row["config"], row["date"][:10]]))
    return shown


def notes_on(table: BoardTable) -> list[str]:
    """Say under the table what the words in it mean, as far as they occur."""
    rows = table["rows"]
    notes = ["[low, high]: 95 % intervals, by bootstrap over the samples; differences are paired"]
    if any(row["to_before"] for row in rows):
        notes.append("the one before: in a run the row above; of a run's first row the first row of the run before")
    if any(len(row["members"]) > 1 and row["part"] == "" for row in rows):
        notes.append(
            "first row of an ensemble: the member that validation likes best; without validation, its first one"
        )
    if any(row["part"].startswith("+decided") for row in rows):
        notes.append("+decided: by costs or thresholds, which give up accuracy for what they ask for")
    if len(rows) > 1:
        notes.append("the best was chosen among these rows by these samples, which flatters it")
    reasons = dict.fromkeys(row["not_compared"] for row in rows if "not_compared" in row)
    return [*notes, *(f"not compared: {reason}" for reason in reasons)]


def _name(table: BoardTable, row: BoardRow) -> str:
    """Return the whole name of a run's first row, of the others what they add."""
    return row["name"] if _begins(table, row) else f"  {row['name'].removeprefix(row['step']).strip()}"


def _begins(table: BoardTable, row: BoardRow) -> bool:
    """Whether a row is its run's first."""
    place = table["rows"].index(row)
    before = table["rows"][place - 1] if place else None
    key = (row["run"], row["step"], row["config"])
    return before is None or row["part"] == "" or (before["run"], before["step"], before["config"]) != key


def _second(table: BoardTable) -> str:
    """Return the metric that stands beside the first one without an interval."""
    others = {"accuracy": "log_loss", "log_loss": "accuracy", "mean_ap": "log_loss", "rmse": "r2", "mae": "r2"}
    return others.get(table["metric"], "")


def _heading(metric: str) -> str:
    return f"{HEADINGS[metric]} [95 %]"


def _interval(metric: str, numbers: Mapping[str, Any], places: int, sign: str = "") -> str:
    value, low, high = (_number(metric, numbers[key], places, sign) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _number(metric: str, value: float, places: int, sign: str = "") -> str:
    if metric in _SHARES:
        return f"{100 * value:{sign}.{places}f}"
    return f"{value:{sign}.3f}" if abs(value) < 100 else f"{value:{sign}.4g}"


def _scale(table: BoardTable) -> tuple[float, float] | None:
    """Return the ends of the drawing: of all intervals."""
    ends = [row["metrics"][table["metric"]] for row in table["rows"] if table["metric"] in row["metrics"]]
    low, high = min(end["low"] for end in ends), max(end["high"] for end in ends)
    return (low, high) if high > low else None


def _drawn(numbers: Mapping[str, Any], scale: tuple[float, float]) -> str:
    """Return an interval as a line with a point, from the left end of the scale to its right end."""

    def place(value: float) -> int:
        return round((value - scale[0]) / (scale[1] - scale[0]) * (_PLOT - 1))

    low, middle, high = (place(numbers[key]) for key in ("low", "value", "high"))
    letters = [" "] * _PLOT
    letters[low : high + 1] = "─" * (high + 1 - low)
    letters[middle] = "●"
    return "".join(letters).rstrip()
