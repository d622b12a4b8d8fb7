"""What probes say for people, in 80 columns."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from choral.analysis.probe_curves import Curves
from choral.ensembles.score_rows import Numbers
from choral.scoring.predictor_table import NAMES, cell, new_table, notes_below

_RARE = 0.05


def render_curves(curves: Curves) -> RenderableType:
    """Return a section a family, those that cost most first, in it a row a strength: score, and drop."""
    metric = curves.metric
    table = new_table()
    table.add_column("", overflow="fold")
    table.add_column("strength", justify="right")
    table.add_column(f"{NAMES[metric]} [95 %]", no_wrap=True)
    table.add_column("worse by [95 %]", no_wrap=True)
    table.add_row("unchanged", "", cell(metric, curves.unperturbed), "", style="bold", end_section=True)
    for curve in sorted(curves.curves, key=lambda curve: -curve.worst.drop):
        for number, point in enumerate(curve.points):
            drop = Numbers(value=point.drop, low=point.drop_low, high=point.drop_high)
            mark = " *" if point.p_adjusted < _RARE else ""
            table.add_row(
                Text(curve.family if number == 0 else ""),
                f"{point.strength:g}",
                cell(metric, Numbers(value=point.value, low=point.low, high=point.high)),
                cell(metric, drop, "+") + mark,
                end_section=number == len(curve.points) - 1,
            )
    some = f"{curves.n} of {curves.total}" if curves.n < curves.total else str(curves.n)
    title = Text(f"{curves.predictor} on {curves.split}, images changed: {some} samples", style="italic")
    return Group(title, table, notes_below(_notes(curves)))


def _notes(curves: Curves) -> list[str]:
    notes = ["[low, high]: 95 % intervals, by bootstrap over the samples; drops in pairs"]
    notes.append(f"*: p below 0.05 also after Holm's correction for all {curves.comparisons} points that were probed")
    notes += [
        f"{curve.family}: {curve.text}" + (f" (augment.{curve.key})" if curve.key else "")
        for curve in sorted(curves.curves, key=lambda curve: -curve.worst.drop)
    ]
    return notes
