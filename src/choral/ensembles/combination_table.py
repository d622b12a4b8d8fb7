"""The table that `choral combine` prints: the combination, the plain mean and the best member, and how it was fitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from choral.ensembles.score_table import METRIC_HEADINGS, describe_learned_views, format_interval

_MAX_LISTED_WEIGHTS = 8
_MAX_METRIC_COLUMNS = 2


def render_combination(combination: Mapping[str, Any]) -> Table:
    """Return the result of `combine_run` as a table of 80 columns: scores first, then what the combination gains."""
    metrics = list(dict.fromkeys(row["metric"] for row in combination["scores"]))
    count = len(combination["members"])
    members = f"{count} member{'s' if count > 1 else ''}"
    table = Table(
        title=Text(f"{combination['split']}: {combination['n']} samples, {members}, {_describe_views(combination)}"),
        caption=Text("\n".join(_notes(combination)), justify="left"),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title_justify="left",
        caption_justify="left",
    )
    add_rows = _add_metric_columns if len(metrics) <= _MAX_METRIC_COLUMNS else _add_metric_blocks
    add_rows(table, combination["scores"], metrics)
    return table


def _add_metric_columns(table: Table, scores: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> None:
    """Add one column a metric."""
    table.add_column("", overflow="fold")
    for metric in metrics:
        table.add_column(Text(f"{METRIC_HEADINGS[metric]} [95 %]"), no_wrap=True)
    cells = {(row["name"], row["metric"]): row for row in scores}
    names = list(dict.fromkeys(name for name, _ in cells))
    for name in names:
        values = [_cell(metric, cells.get((name, metric))) for metric in metrics]
        table.add_row(Text(_row_heading(name)), *values, style="bold" if name == names[-1] else "")
    for key in ("difference", "to_baseline"):
        gains = [(cells.get((names[-1], metric)) or {}).get(key) for metric in metrics]
        other = next((gain["to"] for gain in gains if gain), "")
        values = [_cell(metric, gain, "+") for metric, gain in zip(metrics, gains, strict=True)]
        table.add_row(Text(f"  less {_row_heading(other)}"), *values)


def _add_metric_blocks(table: Table, scores: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> None:
    """Add one block of rows for each target and metric: the scores, then the differences of the last one.

    For more than two metrics, whose columns would leave no space for names.
    """
    table.add_column("", overflow="fold")
    table.add_column("", no_wrap=True)
    table.add_column(Text("score [95 %]"), no_wrap=True)
    targets = list(dict.fromkeys(_target(row) for row in scores))
    for target, metric in product(targets, metrics):
        rows = [row for row in scores if _target(row) == target and row["metric"] == metric]
        heading = f"{METRIC_HEADINGS[metric]} {target}" if len(targets) > 1 else METRIC_HEADINGS[metric]
        for row in rows:
            style = "bold" if row is rows[-1] else ""
            table.add_row(Text(_row_heading(row["name"])), Text(heading), _cell(metric, row), style=style)
        for gain in (rows[-1]["difference"], rows[-1].get("to_baseline")):
            if gain:
                table.add_row(Text(f"  less {_row_heading(gain['to'])}"), Text(heading), _cell(metric, gain, "+"))
        table.add_section()


def _target(row: Mapping[str, Any]) -> str:
    return str(row.get("target", ""))


def _cell(metric: str, values: Mapping[str, Any] | None, sign: str = "") -> Text:
    return Text(format_interval(metric, values, sign).strip() if values else "-")


def _row_heading(name: str) -> str:
    return "plain mean" if name in ("soft", "mean") else name.removeprefix("combined/")


def _notes(combination: Mapping[str, Any]) -> list[str]:
    fit, notes = (
        combination["fit"],
        ["[low, high]: 95 % intervals, by bootstrap over the samples; differences are paired"],
    )
    notes.append(f"{combination['scores'][0]['name']}: the best single member, under the same views")
    if combination["learned_views"]:
        learned = {
            **combination["learned_views"],
            "name": "learned views",
            "weights": combination["view_weights"],
        }
        notes += describe_learned_views(learned, combination["view_gains"])
    if fit["weights"]:
        notes.append(f"{fit['rule']}: {_list_weights(fit['weights'])}{_describe_fit(fit)}")
    if fit["calibrated"]:
        before, after = fit["calibrated"]["before"], fit["calibrated"]["after"]
        split = combination["fitted_on"]
        gain = f"log loss on {split} {before:.4f} to {after:.4f}"
        notes.append(f"temperature {fit['temperature']:.4g}, fitted on {split} after averaging: {gain}")
    elif fit["temperature"] != 1:
        notes.append(f"temperature {fit['temperature']:.4g}, as given")
    ties = [row["ties"] for row in combination["scores"] if row.get("ties") is not None]
    if ties:
        notes.append(f"tied votes, decided by mean probability: {ties[0]}")
    return notes


def _describe_fit(fit: Mapping[str, Any]) -> str:
    if fit["on"] == "given":
        return ", as given"
    if fit["on"] == "rounds":
        return ", the alphas of the boosting rounds"
    data = "out-of-fold predictions" if fit["rule"] == "stack" else fit["on"]
    strength = f", penalty {fit['strength']:g}" if fit["strength"] is not None else ""
    return f"; fitted on {data} ({fit['samples']} samples) by {fit['by'].replace('_', ' ')}{strength}"


def _list_weights(weights: Mapping[str, float]) -> str:
    largest = sorted(weights, key=lambda name: -abs(weights[name]))[:_MAX_LISTED_WEIGHTS]
    listed = ", ".join(f"{name} {weights[name]:.3f}" for name in weights if name in largest)
    more = len(weights) - _MAX_LISTED_WEIGHTS
    return f"{listed} and {more} smaller ones" if more > 0 else listed


def _describe_views(combination: Mapping[str, Any]) -> str:
    views = combination["views"]
    if combination["view_weights"]:
        return f"learned weights of {len(views)} of {len(combination['view_weights'])} views"
    if views == ["tta"]:
        return f"mean over the views {', '.join(combination['tta_views'])}"
    return f"view {views[0]}" if len(views) == 1 else f"mean over the views {', '.join(views)}"
