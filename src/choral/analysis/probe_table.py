"""Renders probe curves as a table of at most 80 columns."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from choral.analysis.probe_curves import ProbeCurves
from choral.ensembles.score_rows import IntervalDict
from choral.scoring.predictor_table import METRIC_HEADINGS, build_table, format_metric, render_notes

_SIGNIFICANCE_LEVEL = 0.05


def render_curves(curves: ProbeCurves) -> RenderableType:
    """Return a table with a section per family, largest drop first, and a row per strength: metric and drop."""
    metric = curves.metric
    table = build_table()
    table.add_column("", overflow="fold")
    table.add_column("strength", justify="right")
    table.add_column(f"{METRIC_HEADINGS[metric]} [95 %]", no_wrap=True)
    table.add_column("drop [95 %]", no_wrap=True)
    table.add_row("unchanged", "", format_metric(metric, curves.unperturbed), "", style="bold", end_section=True)
    for curve in sorted(curves.curves, key=lambda curve: -curve.worst.drop):
        for number, point in enumerate(curve.points):
            drop = IntervalDict(value=point.drop, low=point.drop_low, high=point.drop_high)
            mark = " *" if point.p_adjusted < _SIGNIFICANCE_LEVEL else ""
            table.add_row(
                Text(curve.family if number == 0 else ""),
                f"{point.strength:g}",
                format_metric(metric, IntervalDict(value=point.value, low=point.low, high=point.high)),
                format_metric(metric, drop, "+") + mark,
                end_section=number == len(curve.points) - 1,
            )
    samples = f"{curves.n} of {curves.total}" if curves.n < curves.total else str(curves.n)
    title = Text(f"{curves.predictor} on {curves.split}, perturbed images: {samples} samples", style="italic")
    return Group(title, table, render_notes(_notes(curves)))


def _notes(curves: ProbeCurves) -> list[str]:
    notes = ["[low, high]: 95 % intervals by bootstrap over the samples; drops are paired"]
    notes.append(f"*: p < 0.05 after Holm's correction for all {curves.comparisons} probed points")
    notes += [
        f"{curve.family}: {curve.text}" + (f" (augment.{curve.key})" if curve.key else "")
        for curve in sorted(curves.curves, key=lambda curve: -curve.worst.drop)
    ]
    return notes
