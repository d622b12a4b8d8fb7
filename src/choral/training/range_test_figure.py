"""The figure of a learning-rate range test: training loss over learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from choral.core.figures import BLUE, ORANGE, add_title, figure_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@figure_style()
def draw_loss_curve(
    rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], chosen: float | None
) -> Figure:
    """Return a figure of the loss over the learning rate, on a logarithmic axis.

    Args:
        rates, losses, smoothed: one entry per step; rates ascend from above 0.
        chosen: the rate to mark; None: none was found.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    figure = Figure(figsize=(6.2, 3.6), layout="constrained")
    add_title(figure, "Learning-rate range test")
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.plot(rates, losses, "o", color=BLUE, alpha=0.3, markersize=3.5, markeredgewidth=0, label="loss of each step")
    axes.plot(rates, smoothed, color=BLUE, label="smoothed")
    if chosen is not None:
        axes.axvline(chosen, color=ORANGE, linestyle=(0, (4, 3)), linewidth=1.2, label=f"chosen: {chosen:.1e}")
    axes.set_ylim(_limit_losses(losses, smoothed))
    axes.xaxis.set_major_locator(LogLocator(numticks=12))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(_format_power))
    axes.grid(axis="y")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.01), borderaxespad=0, ncols=3)
    return figure


def _limit_losses(losses: Sequence[float], smoothed: Sequence[float]) -> tuple[float, float]:
    """Return the limits of the loss axis: a divergence at the end leaves the axis and does not flatten the rest."""
    low = min(losses)
    high = min(max(smoothed), max(losses[:10]) + 0.5 * (max(losses[:10]) - low))
    margin = 0.08 * max(high - low, 1e-6)
    return low - margin, high + margin


def _format_power(value: float, _: int | None = None) -> str:
    return f"10{f'{value:e}'.partition('e')[2].lstrip('+0').replace('-0', '-').translate(_SUPERSCRIPTS) or '⁰'}"
