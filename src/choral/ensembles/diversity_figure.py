"""The figure of diversity: the score over the number of members beside that of independent ones, and error correlations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from choral.core.figures import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    add_axes,
    add_title,
    figure_style,
    limit_percent_axis,
    measure_text,
    shorten_name,
    title_height,
)
from choral.ensembles.diversity_report import DiversityReport
from choral.ensembles.diversity_table import describe_independent_equivalent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SMALLEST_CELL, _LARGEST_CELL, _MATRIX = 0.19, 0.6, 4.1  # inches: a cell of the matrix, and the whole matrix
_NUMBERED_CELL = 0.27  # inches: the least that has room for a number
_CURVE_WIDTH, _CURVE_HEIGHT = 3.3, 2.9  # inches
_COLOR_BAR = 2.1  # inches: the least, with its label
_LEFT, _GAP, _RIGHT, _BELOW_TITLE, _BELOW_CURVE, _BELOW_MATRIX = 0.7, 0.4, 0.25, 0.3, 1.3, 0.75  # inches
_DASHED = (0, (4, 3))


@figure_style()
def draw_diversity(diversity: DiversityReport, split: str) -> Figure:
    """Return a figure of two panels: the score over the number of members, and the correlations of their errors.

    Args:
        diversity: of at least two members.
        split: for the title.
    """
    from matplotlib.figure import Figure

    members = len(diversity["members"])
    cell = max(_SMALLEST_CELL, min(_LARGEST_CELL, _MATRIX / members))
    matrix, font = cell * members, 8.0 if cell >= _NUMBERED_CELL else 7.0
    names = [f"{shorten_name(name)}  {number}" for number, name in enumerate(diversity["members"], start=1)]
    matrix_left = _LEFT + _CURVE_WIDTH + _GAP + max(measure_text(name, font) for name in names)
    curve_height = max(_CURVE_HEIGHT, min(matrix, _MATRIX))
    top = title_height(2) + _BELOW_TITLE
    width = max(matrix_left + max(matrix, _COLOR_BAR) + _RIGHT, 7.4)
    height = top + max(curve_height + _BELOW_CURVE, matrix + _BELOW_MATRIX)

    figure = Figure(figsize=(width, height))
    add_title(figure, f"{split}: {members} members, view {diversity['view']}", _summarize(diversity))
    _plot_curve(add_axes(figure, _LEFT, top, _CURVE_WIDTH, curve_height), diversity)
    axes = add_axes(figure, matrix_left, top, matrix, matrix)
    bar = add_axes(figure, matrix_left, top + matrix + 0.15, max(min(matrix, 2.8), _COLOR_BAR - 0.4), 0.08)
    _plot_correlations(axes, bar, diversity, names, font)
    return figure


def _plot_curve(axes: Axes, diversity: DiversityReport) -> None:
    votes = diversity["metric"] != "rmse"
    factor = 100.0 if votes else 1.0
    sizes = [step["members"] for step in diversity["curve"]]
    value, low, high, independent = (
        [factor * step[key] for step in diversity["curve"]] for key in ("value", "low", "high", "independent")
    )
    rule = "soft vote" if votes else "mean of members"
    others = "independent members, majority vote" if votes else "members with uncorrelated errors of mean 0"
    axes.plot(sizes, value, "o-", color=BLUE, markersize=3.5, label=f"{rule}, mean over subsets")
    axes.fill_between(sizes, low, high, color=BLUE, alpha=0.15, linewidth=0, label="worst to best subset")
    axes.plot(sizes, independent, color=ORANGE, linestyle=_DASHED, label=f"{others},\nequal mean error")
    every = -(-len(sizes) // 10)
    axes.set_xticks([size for size in sizes if size % every == 0 or size == 1])
    if votes:
        axes.set_ylim(limit_percent_axis(min(*low, *independent), max(*high, *independent)))
    axes.grid(axis="y")
    axes.set_xlabel("number of members")
    axes.set_ylabel(
        {"accuracy": "accuracy, %", "label_accuracy": "label accuracy, %", "rmse": "RMSE"}[diversity["metric"]]
    )
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.5 / axes.get_window_extent().height * 100), borderaxespad=0)


def _plot_correlations(axes: Axes, bar: Axes, diversity: DiversityReport, names: Sequence[str], font: float) -> None:
    """Draw the matrix, members by their numbers, and the bar that explains its colours."""
    from matplotlib.colors import LinearSegmentedColormap

    members, mean = len(names), diversity["error_correlation"]["mean"]
    matrix = np.array(diversity["error_correlation"]["matrix"], dtype=np.float64)  # None becomes NaN
    np.fill_diagonal(matrix, np.nan)
    colors = LinearSegmentedColormap.from_list("correlation", [ORANGE, "white", BLUE]).with_extremes(bad="#eef0f2")
    mesh = axes.pcolormesh(matrix, cmap=colors, vmin=-1, vmax=1, edgecolors="white", linewidth=0.8)
    axes.invert_yaxis()
    places = np.arange(members) + 0.5
    axes.set_xticks(places, [str(number) for number in range(1, members + 1)])
    axes.set_yticks(places, names)
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False, labelsize=font)
    axes.spines[:].set_visible(False)
    if _MATRIX / members >= _NUMBERED_CELL:
        _write_correlations(axes, matrix)
    scale = axes.get_figure(root=True).colorbar(mesh, cax=bar, orientation="horizontal", ticks=[-1, -0.5, 0, 0.5, 1])  # type: ignore[union-attr]
    scale.outline.set_visible(False)
    scale.set_label("correlation of errors" + ("" if mean is None else f", mean {mean:.2f}"))


def _write_correlations(axes: Axes, matrix: NDArray[np.float64]) -> None:
    """Write each correlation into its cell, off the diagonal; a dash where there is none."""
    size = 8 if _MATRIX / len(matrix) >= 0.38 else 6.5
    for row, column in zip(*np.nonzero(~np.eye(len(matrix), dtype=bool)), strict=True):
        value = matrix[row, column]
        text = "–" if np.isnan(value) else f"{value:.2f}"  # noqa: RUF001
        ink = GREY if np.isnan(value) else "white" if abs(value) > 0.55 else INK
        axes.text(column + 0.5, row + 0.5, text, color=ink, fontsize=size, ha="center", va="center_baseline")


def _summarize(diversity: DiversityReport) -> str:
    member, ensemble = diversity["mean_error"], diversity["error"]
    errors = f"error rate of a member {member:.2%}, of the soft vote {ensemble:.2%}"
    if diversity["metric"] == "rmse":
        errors = f"mean squared error of a member {member:.4g}, of their mean {ensemble:.4g}"
    return f"{errors}: {describe_independent_equivalent(diversity)}"
