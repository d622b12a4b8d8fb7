"""Renders the result of `choral compare` in 80 columns or more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from choral.scoring.compare import Comparison, GroupComparison
from choral.scoring.predictor_table import METRIC_HEADINGS

_MAX_SAMPLES = 8  # that only one predictor gets right
_WIDE = 96


def render_comparison(comparison: Comparison, width: int) -> RenderableType:
    """Return the comparison as tables: metrics, outcomes, classes, slices, and samples that only one gets right."""
    task = comparison["task"]
    better = "closer" if task == "regression" else "right"
    parts: list[RenderableType] = [
        Text(f"{comparison['split']}: {comparison['n']} samples"),
        Text(f"A: {comparison['a']}"),
        Text(f"B: {comparison['b']}\n"),
        _build_metric_table(comparison, width),
        Text(
            "[low, high]: 95 % intervals, by bootstrap over the samples, with the same draws for both", style="italic"
        ),
        _render_outcomes(comparison, better),
    ]
    heading = {"multiclass": "class", "multilabel": "label", "regression": "target"}[task]
    parts.append(_build_group_table(heading, comparison["classes"], width))
    if comparison["slices"]:
        parts += [Text(), _build_group_table(comparison["column"], comparison["slices"], width)]
    count = len(comparison["classes"]) + len(comparison["slices"])
    parts.append(
        Text(
            f"{count} intervals, not corrected for multiple comparisons: about one in twenty misses the true value",
            style="italic",
        )
    )
    return Group(*parts, *_build_changed_tables(comparison, better))


def _build_metric_table(comparison: Comparison, width: int) -> Table:
    wide = width >= _WIDE  # narrow tables show the interval of the difference only
    table = _table("", *(f"{side} [95 %]" if wide else side for side in "AB"), "B - A [95 %]")
    for pair in comparison["metrics"]:
        metric = pair["metric"]
        both = [_cell(metric, numbers, width, "").plain for numbers in (pair["a"], pair["b"])]
        values = [Text(text if wide else text.partition(" ")[0]) for text in both]
        table.add_row(Text(METRIC_HEADINGS[metric]), *values, _cell(metric, pair["difference"], width, "+"))
    return table


def _build_group_table(heading: str, parts: Sequence[GroupComparison], width: int) -> Table:
    metric = METRIC_HEADINGS[parts[0]["metric"]] if parts else ""
    table = _table(heading, "n", f"A, {metric}", f"B, {metric}", "B - A [95 %]", "gained", "lost")
    for part in parts:
        both = (_cell(part["metric"], numbers, 0, "").plain for numbers in (part["a"], part["b"]))
        values = [Text(text.partition(" ")[0]) for text in both]  # the difference has the interval
        gain = _cell(part["metric"], part["difference"], width, "+")
        table.add_row(Text(part["name"]), Text(str(part["n"])), *values, gain, str(part["gained"]), str(part["lost"]))
    for number in (1, 2, 3, 5, 6):
        table.columns[number].justify = "right"
    return table


def _render_outcomes(comparison: Comparison, better: str) -> Text:
    sides = comparison["sides"]
    if better == "closer":
        text = f"A closer {sides['only_a']}, B closer {sides['only_b']}, equal {sides['both']}"
    else:
        text = (
            f"both right {sides['both']}, only A {sides['only_a']}, only B {sides['only_b']}, "
            f"neither {sides['neither']}"
        )
    return Text(f"\n{text}; {sides['test']}: p = {sides['p_value']:.3g}\n")


def _build_changed_tables(comparison: Comparison, better: str) -> list[RenderableType]:
    if not comparison["changed"]:
        return [Text("\nNo sample is right in one run only.")]
    parts: list[RenderableType] = []
    for side, group in groupby(
        sorted(comparison["changed"], key=lambda change: change["better"]), lambda change: change["better"]
    ):
        changes = list(group)
        parts.append(Text(f"\n{'' if better == 'closer' else 'only '}{side.upper()} {better}: {len(changes)} samples"))
        table = _table("sample", "label", "A", "B", "shift")
        for change in changes[:_MAX_SAMPLES]:
            cells = [change["key"], *map(_format_value, (change["label"], change["a"], change["b"]))]
            table.add_row(*map(Text, cells), f"{change['shift']:+.3f}")
        parts.append(table)
        if len(changes) > _MAX_SAMPLES:
            parts.append(Text(f"and {len(changes) - _MAX_SAMPLES} more: --json lists all"))
    return parts


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for number, heading in enumerate(headings):
        table.add_column(heading, overflow="fold", no_wrap=number > 0 and "[" in heading)
    return table


def _cell(metric: str, numbers: Mapping[str, Any] | None, width: int, sign: str) -> Text:
    if numbers is None:
        return Text("-")
    value, low, high = (_number(metric, numbers[key], width, sign) for key in ("value", "low", "high"))
    return Text(f"{value} [{low}, {high}]")


def _number(metric: str, value: float, width: int, sign: str) -> str:
    if METRIC_HEADINGS[metric].endswith("%"):
        return f"{100 * value:{sign}.{2 if width >= _WIDE else 1}f}"
    return f"{value:{sign}.3f}" if abs(value) < 100 else f"{value:{sign}.4g}"


def _format_value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{number:.4g}" for number in value.values())
    return value if isinstance(value, str) else ", ".join(value) or "none"
