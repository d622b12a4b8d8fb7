"""The figure of a calibration: a reliability diagram, and accuracy over coverage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from choral.core.figures import (
    BLUE,
    GREY,
    ORANGE,
    add_axes,
    add_title,
    escape_text,
    figure_style,
    limit_percent_axis,
    title_height,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIDE, _LEFT, _GAP, _RIGHT, _BELOW_TITLE, _BELOW = 3.05, 0.65, 0.95, 0.2, 0.2, 1.2  # inches


@figure_style()
def draw_calibration(report: Mapping[str, Any]) -> Figure:
    """Return the figure of a report of `calibrate_run`, of classes or labels."""
    from matplotlib.figure import Figure

    panels = 2 if "selective" in report else 1
    top = title_height(2) + _BELOW_TITLE
    width = max(_LEFT + panels * _SIDE + (panels - 1) * _GAP + _RIGHT, 5.4)
    figure = Figure(figsize=(width, top + _SIDE + _BELOW))
    ece = report["metrics"]["ece"]
    errors = ", ".join(
        f"{name} {100 * ece[name]['value']:.1f} % [{100 * ece[name]['low']:.1f}, {100 * ece[name]['high']:.1f}]"
        for name in ("before", "after")
    )
    add_title(
        figure,
        f"{report['split']}: {report['of']}, {report['n']} samples, calibration by {report['method']}",
        f"expected calibration error (debiased): {errors}",
    )
    _plot_reliability(add_axes(figure, _LEFT, top, _SIDE, _SIDE), report)
    if "selective" in report:
        _plot_selective(add_axes(figure, _LEFT + _SIDE + _GAP, top, _SIDE, _SIDE), report["selective"])
    return figure


def _plot_reliability(axes: Axes, report: Mapping[str, Any]) -> None:
    before, after = report["reliability"]["before"], report["reliability"]["after"]
    multiclass = report["task"] == "multiclass"
    lowest = 100 * min(min(one["confidence"], one["low"]) for one in (*before, *after))
    limits = limit_percent_axis(lowest, 100.0)
    axes.plot(limits, limits, color=GREY, linewidth=1, linestyle=(0, (4, 3)), label="perfect calibration")
    axes.plot(
        _percent(before, "confidence"),
        _percent(before, "right"),
        "o:",
        color=ORANGE,
        markerfacecolor="white",
        clip_on=False,
        zorder=2.1,
        label=f"before; {len(after)} bins of about {after[0]['n']}",
    )
    shares = _percent(after, "right")
    axes.errorbar(
        _percent(after, "confidence"),
        shares,
        yerr=[
            [max(0.0, share - low) for share, low in zip(shares, _percent(after, "low"), strict=True)],
            [max(0.0, high - share) for share, high in zip(shares, _percent(after, "high"), strict=True)],
        ],
        fmt="o-",
        color=BLUE,
        clip_on=False,
        label=escape_text(f"after {report['method']}, with 95 % intervals"),
    )
    axes.set(xlim=limits, ylim=limits)
    axes.set_xlabel("probability of the predicted class, %" if multiclass else "predicted probability of a label, %")
    axes.set_ylabel("accuracy, %" if multiclass else "samples that have the label, %")
    axes.grid()
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.17), borderaxespad=0)


def _plot_selective(axes: Axes, curve: Mapping[str, Sequence[float]]) -> None:
    low, high, accuracy = ([100 * value for value in curve[name]] for name in ("low", "high", "accuracy"))
    coverage = [100 * value for value in curve["coverage"]]
    axes.fill_between(coverage, low, high, color=BLUE, alpha=0.15, linewidth=0, label="95 % band")
    axes.plot(coverage, accuracy, color=BLUE, clip_on=False, label="accuracy without the least confident samples")
    axes.set(xlim=(0, 100), ylim=limit_percent_axis(min(low), 100.0))
    axes.set_xlabel("coverage: the most confident samples, %")
    axes.set_ylabel("accuracy on these, %")
    axes.grid()
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.17), borderaxespad=0)


def _percent(bins: Sequence[Mapping[str, float]], name: str) -> list[float]:
    return [100 * one[name] for one in bins]
