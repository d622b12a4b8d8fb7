"""What `choral compare` prints, in 80 columns or more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from choral.scoring.compare import Comparison, Part
from choral.scoring.predictor_table import NAMES

_SHOWN = 8  # samples a side
_WIDE = 96


def render_comparison(found: Comparison, width: int) -> RenderableType:
    """Return the comparison as tables: metrics, sides, classes, slices, and samples that changed sides."""
    task = found["task"]
    better = "closer" if task == "regression" else "right"
    parts: list[RenderableType] = [
        Text(f"{found['split']}: {found['n']} samples"),
        Text(f"A: {found['a']}"),
        Text(f"B: {found['b']}\n"),
        _metrics(found, width),
        Text("[low, high]: 95 % intervals, by bootstrap over the samples, the same draws for both", style="italic"),
        _sides(found, better),
    ]
    heading = {"multiclass": "class", "multilabel": "label", "regression": "target"}[task]
    parts.append(_parts(heading, found["classes"], width))
    if found["slices"]:
        parts += [Text(), _parts(found["column"], found["slices"], width)]
    count = len(found["classes"]) + len(found["slices"])
    parts.append(Text(f"{count} intervals, each for itself: about one in twenty leaves out the truth", style="italic"))
    return Group(*parts, *_changed(found, better))


def _metrics(found: Comparison, width: int) -> Table:
    wide = width >= _WIDE  # elsewhere the intervals of the difference have to do
    table = _table("", *(f"{side} [95 %]" if wide else side for side in "AB"), "B less A [95 %]")
    for pair in found["metrics"]:
        metric = pair["metric"]
        both = [_cell(metric, numbers, width, "").plain for numbers in (pair["a"], pair["b"])]
        values = [Text(words if wide else words.partition(" ")[0]) for words in both]
        table.add_row(Text(NAMES[metric]), *values, _cell(metric, pair["difference"], width, "+"))
    return table


def _parts(heading: str, parts: Sequence[Part], width: int) -> Table:
    metric = NAMES[parts[0]["metric"]] if parts else ""
    table = _table(heading, "n", f"A, {metric}", f"B, {metric}", "B less A [95 %]", "won", "lost")
    for part in parts:
        both = (_cell(part["metric"], numbers, 0, "").plain for numbers in (part["a"], part["b"]))
        values = [Text(words.partition(" ")[0]) for words in both]  # the difference has the interval
        gain = _cell(part["metric"], part["difference"], width, "+")
        table.add_row(Text(part["name"]), Text(str(part["n"])), *values, gain, str(part["gained"]), str(part["lost"]))
    for number in (1, 2, 3, 5, 6):
        table.columns[number].justify = "right"
    return table


def _sides(found: Comparison, better: str) -> Text:
    sides = found["sides"]
    if better == "closer":
        words = f"A closer {sides['only_a']}, B closer {sides['only_b']}, equal {sides['both']}"
    else:
        words = (
            f"both right {sides['both']}, A alone {sides['only_a']}, B alone {sides['only_b']}, "
            f"neither {sides['neither']}"
        )
    return Text(f"\n{words}; {sides['test']}: p = {sides['p_value']:.3g}\n")


def _changed(found: Comparison, better: str) -> list[RenderableType]:
    if not found["changed"]:
        return [Text("\nNo sample changed sides.")]
    parts: list[RenderableType] = []
    for side, group in groupby(
        sorted(found["changed"], key=lambda change: change["better"]), lambda change: change["better"]
    ):
        changes = list(group)
        parts.append(Text(f"\n{side.upper()} {'' if better == 'closer' else 'alone '}{better}: {len(changes)} samples"))
        table = _table("sample", "label", "A", "B", "shift")
        for change in changes[:_SHOWN]:
            cells = [change["key"], *map(_words, (change["label"], change["a"], change["b"]))]
            table.add_row(*map(Text, cells), f"{change['shift']:+.3f}")
        parts.append(table)
        if len(changes) > _SHOWN:
            parts.append(Text(f"and {len(changes) - _SHOWN} more: --json has all"))
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
    if NAMES[metric].endswith("%"):
        return f"{100 * value:{sign}.{2 if width >= _WIDE else 1}f}"
    return f"{value:{sign}.3f}" if abs(value) < 100 else f"{value:{sign}.4g}"


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{number:.4g}" for number in value.values())
    return value if isinstance(value, str) else ", ".join(value) or "none"
