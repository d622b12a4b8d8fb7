"""The scoreboard as a figure: the metric of each step with its interval."""

from __future__ import annotations

from typing import TYPE_CHECKING

from choral.core.figures import (
    BLUE,
    GREY,
    GRID,
    INK,
    ORANGE,
    add_title,
    figure_style,
    limit_percent_axis,
    shorten_name,
)
from choral.ensembles.score_table import METRIC_HEADINGS as HEADINGS
from choral.scoring.scoreboard.rows import BoardRow, BoardTable
from choral.scoring.stored_predictor import LOWER_IS_BETTER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _ROW, _MARGIN = 7.4, 0.23, 1.25  # inches; the margin holds the titles and the axis
_LONGEST_NAME = 40


@figure_style()
def draw_board(table: BoardTable, uses: str = "") -> Figure:
    """Return a figure with one line per step, from the first evaluation at the top to the latest at the bottom.

    A point marks the value, a bar the 95 % interval. The first row of each run is a hollow point, the best row is orange.

    Args:
        table: at least one of its rows has the metric.
        uses: how often the split was used, for the line below the title.
    """
    from matplotlib.figure import Figure

    metric = table["metric"]
    rows = [row for row in table["rows"] if metric in row["metrics"]]
    figure = Figure(figsize=(_WIDTH, _MARGIN + _ROW * max(len(rows), 3)), layout="constrained")
    better = "lower is better" if metric in LOWER_IS_BETTER else "higher is better"
    add_title(
        figure,
        f"{table['project']}: {table['samples']} samples of {table['split']}",
        f"95 % intervals by bootstrap over the samples; {better}; orange: best; hollow: first row of each run",
        uses,
    )
    axes = figure.subplots()
    _plot_rows(axes, table, rows)
    axes.set_xlabel(HEADINGS[metric].replace(" %", ", %"))
    return figure


def _plot_rows(axes: Axes, table: BoardTable, rows: list[BoardRow]) -> None:
    metric = table["metric"]
    factor = 100.0 if metric in ("accuracy", "mean_ap") else 1.0
    intervals = [{key: factor * row["metrics"][metric][key] for key in ("value", "low", "high")} for row in rows]
    firsts = [place for place, row in enumerate(rows) if row["part"] == ""]
    axes.plot([intervals[place]["value"] for place in firsts], firsts, color=BLUE, linewidth=1, linestyle=(0, (4, 3)))
    for place, (row, interval) in enumerate(zip(rows, intervals, strict=True)):
        best = row["id"] == table["best"]
        axes.errorbar(
            interval["value"],
            place,
            xerr=[[interval["value"] - interval["low"]], [interval["high"] - interval["value"]]],
            color=ORANGE if best else BLUE,
            marker="o",
            markersize=5,
            markerfacecolor="white" if row["part"] == "" and not best else None,
            zorder=3,
        )
        if place and row["part"] == "":
            axes.axhline(place - 0.5, color=GRID, linewidth=0.8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), [_name(row) for row in rows])
    for row, label in zip(rows, axes.get_yticklabels(), strict=True):
        best = row["id"] == table["best"]
        label.set(color=INK if row["part"] == "" or best else GREY, fontweight="bold" if best else "normal")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    if factor == 100.0:
        axes.set_xlim(
            limit_percent_axis(
                min(interval["low"] for interval in intervals), max(interval["high"] for interval in intervals)
            )
        )


def _name(row: BoardRow) -> str:
    """Return the whole name of a run's first row, of the others what they add."""
    return shorten_name(row["name"].removeprefix(row["step"]).strip() if row["part"] else row["name"], _LONGEST_NAME)
