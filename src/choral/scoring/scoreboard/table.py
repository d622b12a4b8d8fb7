"""Renders a table of the scoreboard for a terminal of 80 columns or more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from choral.ensembles.score_table import METRIC_HEADINGS as HEADINGS
from choral.scoring.scoreboard.rows import BoardRow, BoardTable

_SHARES = ("accuracy", "mean_ap")
_PLOT = 20  # characters of an interval drawn as a line, where the terminal has room for it
_NAME = 16  # characters of a name that take precedence over another column
_GAP = 2  # between columns


def render_board(table: BoardTable, width: int) -> Table:
    """Return the steps with intervals and paired differences.

    Args:
        table: of `build_board_tables`.
        width: of the terminal in columns. Where there is room beside the names, the table has two decimals, a second
            metric, and the intervals drawn as lines.
    """
    metric, second = table["metric"], _select_second_metric(table)
    headings = ["step", _build_heading(metric), "vs previous", "vs best"]
    headings += [HEADINGS[second].removesuffix(" %")] if second else []
    cells, places = _build_cells(table, 2), 2
    if _required_width(headings, cells) > width:
        cells, places = _build_cells(table, 1), 1
    if second and _required_width(headings, cells) > width:
        headings, cells = headings[:-1], [row[:-1] for row in cells]
    result = Table(
        title=Text(f"{table['project']}, {table['split']}: {table['samples']} samples, data {table['data']}"),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),  # all of this makes room for names
        pad_edge=False,
        show_edge=False,
        title_justify="left",
    )
    result.add_column("step", overflow="fold")
    for number, heading in enumerate(headings[1:]):
        result.add_column(heading, no_wrap=True, justify="right" if number == 3 else "left")
    limits = (
        _compute_limits(table) if places == 2 and _required_width(headings, cells) + _GAP + _PLOT <= width else None
    )
    if limits:
        result.add_column(
            f"{_format_number(metric, limits[0], 1)} to {_format_number(metric, limits[1], 1)}", no_wrap=True
        )
    for (row, following), texts in zip(pairwise((*table["rows"], None)), cells, strict=True):
        assert row is not None
        figure = row["metrics"].get(metric)
        drawing = [_draw_interval(figure, limits) if figure else ""] if limits else []
        last = following is not None and _is_first_row(table, following)
        style = "bold" if row["id"] == table["best"] else ""
        result.add_row(*map(Text, [*texts, *drawing]), style=style, end_section=last)
    return result


def _build_cells(table: BoardTable, places: int) -> list[list[str]]:
    """Return the texts of each row: name, interval, both differences, and the second metric, if there is one."""
    metric, second = table["metric"], _select_second_metric(table)
    rows = []
    for row in table["rows"]:
        value, before, best = row["metrics"].get(metric), row["to_before"], row["to_best"]
        cells = [
            _name(table, row),
            _format_interval(metric, value, places) if value else "-",
            _format_interval(metric, before, places, "+") if before else "-",
            "best" if row["id"] == table["best"] else _format_interval(metric, best, places, "+") if best else "-",
        ]
        if second:
            figure = row["metrics"].get(second)
            cells.append(f"{figure['value']:.4f}" if figure else "-")
        rows.append(cells)
    return rows


def _required_width(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> int:
    """Return the terminal columns that a table needs when names longer than `_NAME` characters are folded."""
    widest = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    return min(widest[0], _NAME) + sum(widest[1:]) + _GAP * (len(widest) - 1)


def render_runs(table: BoardTable) -> Table:
    """Return the table of runs: models, minutes of training, config hash, date of evaluation."""
    result = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for heading in ("step", "run"):
        result.add_column(heading, overflow="fold")
    for heading in ("models", "minutes"):
        result.add_column(heading, justify="right")
    for heading in ("config", "evaluated"):
        result.add_column(heading, no_wrap=True)
    for row in table["rows"]:
        if not _is_first_row(table, row):
            continue
        group = [other for other in table["rows"] if (other["run"], other["step"]) == (row["run"], row["step"])]
        minutes = max((other["minutes"] for other in group if other["minutes"] is not None), default=None)
        run = row["run"] if row["there"] else f"{row['run']} (deleted)"
        cells = [row["step"], run, str(len(row["members"])), "-" if minutes is None else f"{minutes:.1f}"]
        result.add_row(*map(Text, [*cells, row["config"], row["date"][:10]]))
    return result


def build_board_notes(table: BoardTable) -> list[str]:
    """Return the notes below a table, which explain the terms that occur in it."""
    rows = table["rows"]
    notes = ["[low, high]: 95 % intervals, by bootstrap over the samples; differences are paired"]
    if any(row["to_before"] for row in rows):
        notes.append("previous: the row above; for the first row of a run, the first row of the run before")
    if any(len(row["members"]) > 1 and row["part"] == "" for row in rows):
        notes.append(
            "first row of an ensemble: the member with the lowest validation loss; without validation, the first member"
        )
    if any(row["part"].startswith("+decided") for row in rows):
        notes.append("+decided: with costs or thresholds, which trade accuracy for their own objective")
    if len(rows) > 1:
        notes.append("best: chosen among these rows on these samples, which biases it upwards")
    reasons = dict.fromkeys(row["not_compared"] for row in rows if "not_compared" in row)
    return [*notes, *(f"not compared: {reason}" for reason in reasons)]


def _name(table: BoardTable, row: BoardRow) -> str:
    """Return the full name of a run's first row, and of other rows the part that they add."""
    return row["name"] if _is_first_row(table, row) else f"  {row['name'].removeprefix(row['step']).strip()}"


def _is_first_row(table: BoardTable, row: BoardRow) -> bool:
    """Return whether a row is the first of its run."""
    place = table["rows"].index(row)
    before = table["rows"][place - 1] if place else None
    key = (row["run"], row["step"], row["config"])
    return before is None or row["part"] == "" or (before["run"], before["step"], before["config"]) != key


def _select_second_metric(table: BoardTable) -> str:
    """Return the metric that is shown beside the first one, without an interval; "": none."""
    others = {"accuracy": "log_loss", "log_loss": "accuracy", "mean_ap": "log_loss", "rmse": "r2", "mae": "r2"}
    return others.get(table["metric"], "")


def _build_heading(metric: str) -> str:
    return f"{HEADINGS[metric]} [95 %]"


def _format_interval(metric: str, numbers: Mapping[str, Any], places: int, sign: str = "") -> str:
    value, low, high = (_format_number(metric, numbers[key], places, sign) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _format_number(metric: str, value: float, places: int, sign: str = "") -> str:
    if metric in _SHARES:
        return f"{100 * value:{sign}.{places}f}"
    return f"{value:{sign}.3f}" if abs(value) < 100 else f"{value:{sign}.4g}"


def _compute_limits(table: BoardTable) -> tuple[float, float] | None:
    """Return the limits of all intervals; None where they are equal."""
    ends = [row["metrics"][table["metric"]] for row in table["rows"] if table["metric"] in row["metrics"]]
    low, high = min(end["low"] for end in ends), max(end["high"] for end in ends)
    return (low, high) if high > low else None


def _draw_interval(numbers: Mapping[str, Any], limits: tuple[float, float]) -> str:
    """Return an interval as a line of characters with a point, between the limits of all intervals."""

    def place(value: float) -> int:
        return round((value - limits[0]) / (limits[1] - limits[0]) * (_PLOT - 1))

    low, middle, high = (place(numbers[key]) for key in ("low", "value", "high"))
    characters = [" "] * _PLOT
    characters[low : high + 1] = "─" * (high + 1 - low)
    characters[middle] = "●"
    return "".join(characters).rstrip()
