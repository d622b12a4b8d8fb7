"""What `choral combine` prints: the combination beside the plain mean and the best member, and how it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from choral.ensembles.score_table import METRICS, interval, learned_notes

_SHOWN = 8  # weights
_SIDE_BY_SIDE = 2  # metrics


def render_combination(found: Mapping[str, Any]) -> Table:
    """Return what `combine_run` found as a table, in 80 columns: scores below, then what the combination gains."""
    metrics = list(dict.fromkeys(row["metric"] for row in found["scores"]))
    members = f"{len(found['members'])} member{'s' if len(found['members']) > 1 else ''}"
    table = Table(
        title=Text(f"{found['split']}: {found['n']} samples, {members}, {_views(found)}"),
        caption=Text("\n".join(_notes(found)), justify="left"),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title_justify="left",
        caption_justify="left",
    )
    (_add_side_by_side if len(metrics) <= _SIDE_BY_SIDE else _add_one_by_one)(table, found["scores"], metrics)
    return table


def _add_side_by_side(table: Table, scores: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> None:
    """A column a metric."""
    table.add_column("", overflow="fold")
    for metric in metrics:
        table.add_column(Text(f"{METRICS[metric]} [95 %]"), no_wrap=True)
    cells = {(row["name"], row["metric"]): row for row in scores}
    names = list(dict.fromkeys(name for name, _ in cells))
    for name in names:
        values = [_cell(metric, cells.get((name, metric))) for metric in metrics]
        table.add_row(Text(_shown(name)), *values, style="bold" if name == names[-1] else "")
    for key in ("difference", "to_baseline"):
        gains = [(cells.get((names[-1], metric)) or {}).get(key) for metric in metrics]
        other = next((gain["to"] for gain in gains if gain), "")
        values = [_cell(metric, gain, "+") for metric, gain in zip(metrics, gains, strict=True)]
        table.add_row(Text(f"  less {_shown(other)}"), *values)


def _add_one_by_one(table: Table, scores: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> None:
    """A block of rows a metric, of each target: more metrics than two leave no room for names beside them."""
    table.add_column("", overflow="fold")
    table.add_column("", no_wrap=True)
    table.add_column(Text("score [95 %]"), no_wrap=True)
    targets = list(dict.fromkeys(_target(row) for row in scores))
    for target, metric in product(targets, metrics):
        rows = [row for row in scores if _target(row) == target and row["metric"] == metric]
        heading = f"{METRICS[metric]} {target}" if len(targets) > 1 else METRICS[metric]
        for row in rows:
            style = "bold" if row is rows[-1] else ""
            table.add_row(Text(_shown(row["name"])), Text(heading), _cell(metric, row), style=style)
        for gain in (rows[-1]["difference"], rows[-1].get("to_baseline")):
            if gain:
                table.add_row(Text(f"  less {_shown(gain['to'])}"), Text(heading), _cell(metric, gain, "+"))
        table.add_section()


def _target(row: Mapping[str, Any]) -> str:
    return str(row.get("target", ""))


def _cell(metric: str, numbers: Mapping[str, Any] | None, sign: str = "") -> Text:
    return Text(interval(metric, numbers, sign).strip() if numbers else "-")


def _shown(name: str) -> str:
    """Return what a row is called in the table."""
    return "plain mean" if name in ("soft", "mean") else name.removeprefix("combined/")


def _notes(found: Mapping[str, Any]) -> list[str]:
    fit, notes = found["fit"], ["[low, high]: 95 % intervals, by bootstrap over the samples; differences are paired"]
    notes.append(f"{found['scores'][0]['name']}: the best single member, under the same views")
    if found["learned_views"]:
        learned = {**found["learned_views"], "name": "learned views", "weights": found["view_weights"]}
        notes += learned_notes(learned, found["view_gains"])
    if fit["weights"]:
        notes.append(f"{fit['rule']}: {_weights(fit['weights'])}{_fitted_on(fit)}")
    if fit["calibrated"]:
        before, after = fit["calibrated"]["before"], fit["calibrated"]["after"]
        split = found["fitted_on"]
        gain = f"log loss there {before:.4f} to {after:.4f}"
        notes.append(f"temperature {fit['temperature']:.4g}, fitted on {split} after averaging: {gain}")
    elif fit["temperature"] != 1:
        notes.append(f"temperature {fit['temperature']:.4g}, as given")
    ties = [row["ties"] for row in found["scores"] if row.get("ties") is not None]
    if ties:
        notes.append(f"tied votes, decided by mean probability: {ties[0]}")
    return notes


def _fitted_on(fit: Mapping[str, Any]) -> str:
    if fit["on"] == "given":
        return ", as given"
    if fit["on"] == "rounds":
        return ", what the vote of each round is worth"
    kind = "out-of-fold predictions" if fit["rule"] == "stack" else fit["on"]
    strength = f", penalty {fit['strength']:g}" if fit["strength"] is not None else ""
    return f"; fitted on {kind} ({fit['samples']} samples) by {fit['by'].replace('_', ' ')}{strength}"


def _weights(weights: Mapping[str, float]) -> str:
    largest = sorted(weights, key=lambda name: -abs(weights[name]))[:_SHOWN]
    shown = ", ".join(f"{name} {weights[name]:.3f}" for name in weights if name in largest)
    return shown if len(weights) <= _SHOWN else f"{shown} and {len(weights) - _SHOWN} smaller ones"


def _views(found: Mapping[str, Any]) -> str:
    views = found["views"]
    if found["view_weights"]:
        return f"learned weights of {len(views)} of {len(found['view_weights'])} views"
    if views == ["tta"]:
        return f"mean over the views {', '.join(found['tta_views'])}"
    return f"view {views[0]}" if len(views) == 1 else f"mean over the views {', '.join(views)}"
