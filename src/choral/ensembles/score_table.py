"""The table of scores for people, in 80 columns or more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

from rich import box
from rich.table import Table
from rich.text import Text

from choral.ensembles.missing_members import how_many
from choral.ensembles.score_rows import ClassRow, Row, Scores, TargetRow
from choral.inference.evaluation_plan import HELD_OUT

_HEADINGS = {
    "multiclass": ("accuracy % [95 %]", "points to best [95 %]", "log loss"),
    "multilabel": ("", "score [95 %]", "to best [95 %]"),
    "regression": ("", "score [95 %]", "to best [95 %]"),
}
METRICS = {
    "mean_ap": "mAP %",
    "f1": "F1 %",
    "accuracy": "accuracy %",
    "log_loss": "log loss",
    "rmse": "RMSE",
    "mae": "MAE",
    "r2": "R2",
}
_VIEWS_SHOWN = 6
_FRACTIONS = ("accuracy", "mean_ap", "f1")
_RULES = {
    "multiclass": "soft: mean of the members' probabilities; hard: majority of their votes",
    "multilabel": "soft: mean of the members' probabilities; mAP: mean over labels of the average precision; F1: over all"
    " labels together, above one half",
    "regression": "mean, median: of the members' numbers",
}


def render(scores: Scores) -> Table:
    """Return the scores as a table: fractions as percentages, and their differences in points.

    Published figures stand in rows of their own, below, marked as such, with their source and without an interval.
    """
    why = "seen by all members, or unreadable," if scores["split"] == HELD_OUT else "unreadable and"
    skipped = f", {scores['skipped']} {why} left out" if scores["skipped"] else ""
    absent, total = len(scores["absent"]), scores["configured"]
    members = f"; {total - absent} of {total} members" if absent else ""
    single = scores["task"] == "multiclass"
    table = Table(
        title=Text(f"{scores['split']}: {scores['n']} samples{skipped}{members}"),
        caption=Text(_notes(scores), justify="left"),
        box=box.SIMPLE_HEAD,
        pad_edge=single,  # a column more than others: names need the room
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("", overflow="fold")
    for heading in _HEADINGS[scores["task"]]:
        table.add_column(heading, no_wrap=True)
    rows = scores["rows"]
    targets = len({cast(TargetRow, row).get("target", "") for row in rows})
    for row, following in pairwise((*rows, None)):
        assert row is not None
        last = following is None or _section(row) != _section(following) or (single and _begins_anew(row, following))
        style = "" if row["name"].startswith("member/") else "bold"
        cells = _class_cells(cast(ClassRow, row)) if single else _metric_cells(row, named=targets > 1)
        table.add_row(*map(Text, cells), style=style, end_section=last)
    for reference in scores["references"]:
        metric = reference["metric"]
        value = f"{number(metric, reference['value'])} published"
        if single:
            other = "" if metric == "accuracy" else f" ({metric})"
            table.add_row(Text(f"{reference['name']}{other}"), value, "", "")
        else:
            table.add_row(Text(reference["name"]), METRICS.get(metric, metric), value, "")
    return table


def _section(row: Row) -> tuple[str, str]:
    return row["metric"], cast(TargetRow, row).get("target", "")


def _begins_anew(row: Row, following: Row) -> bool:
    """Whether a member follows a rule: those are of other views."""
    return following["name"].startswith("member/") and not row["name"].startswith("member/")


def _class_cells(row: ClassRow) -> list[str]:
    gain, loss = row["difference"], row["log_loss"]
    accuracy, difference = interval("accuracy", row), interval("accuracy", gain, "+") if gain else "  best"
    return [row["name"], accuracy, difference, f"{loss['value']:.4f}" if loss else "-"]


def _metric_cells(row: Row, named: bool) -> list[str]:
    metric, gain = row["metric"], row["difference"]
    heading = f"{METRICS[metric]} {cast(TargetRow, row)['target']}" if named else METRICS[metric]
    difference = interval(metric, gain, "+") if gain else "best"
    return [row["name"], heading, interval(metric, row), difference]


def interval(metric: str, numbers: Mapping[str, Any], sign: str = "") -> str:
    """Return a score, or with the sign "+" a difference, and its interval as text."""
    value, low, high = (number(metric, numbers[key], sign) for key in ("value", "low", "high"))
    return f"{value} [{low.strip()}, {high.strip()}]"


def number(metric: str, value: float, sign: str = "") -> str:
    """Return a value of a metric as text: of fractions as a percentage."""
    if metric in _FRACTIONS:  # of averages over labels, a second decimal says nothing
        return f"{100 * value:{sign}6.2f}" if metric == "accuracy" else f"{100 * value:{sign}.1f}"
    return f"{value:{sign}.3f}" if abs(value) < 100 else f"{value:{sign}.4g}"


def _fitted(scores: Scores) -> list[str]:
    """Say what the rules were fitted on that know more than the predictions that they combine."""
    notes = []
    by_rule = {rule["rule"]: rule for rule in scores["rules"]}
    if "weighted" in by_rule:
        rule = by_rule["weighted"]
        notes.append(
            f"weighted, greedy: members weighted by what is best on {rule['on']} ({rule['samples']} samples), of all convex "
            "weights, and by greedy selection"
        )
    elif scores["not_fitted"] and len(scores["members"]) > 1:
        notes.append(f"no weighted, greedy or temperature: {scores['not_fitted']}")
    if "stack" in by_rule:
        notes.append(f"stack: logistic regression on out-of-fold predictions ({by_rule['stack']['samples']} samples)")
    elif scores["not_stacked"]:
        notes.append(f"no stack: {scores['not_stacked']}")
    if "boosting" in by_rule:
        notes.append("boosting: each vote counted as much as its round is worth")
    if scores["temperatures"]:
        found = (
            f"{item['name']} {item['value']:.2f} (log loss {item['log_loss']['value']:.4f} to "
            f"{item['tempered']['value']:.4f})"
            for item in scores["temperatures"]
        )
        notes.append(f"temperature on {scores['temperatures'][0]['on']}, not in the table: {', '.join(found)}")
    return notes


def learned_notes(learned: Mapping[str, Any], gains: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say which weights of views were learned, and what they gain on what is scored.

    Args:
        learned: name, weights, on, samples, by and losses.
        gains: see `rows.ViewGain`.
    """
    weights = learned["weights"]
    largest = sorted((view for view in weights if weights[view] > 0), key=lambda view: -weights[view])
    shown = ", ".join(f"{view} {weights[view]:.2f}" for view in largest[:_VIEWS_SHOWN])
    more = f" and {len(largest) - _VIEWS_SHOWN} more" if len(largest) > _VIEWS_SHOWN else ""
    there = ", ".join(
        f"{name} {loss:.4f}" for name, loss in sorted(learned["losses"].items(), key=lambda item: item[1])
    )
    by = learned["by"].replace("_", " ")
    notes = [
        f"{learned['name']}: {len(largest)} of {len(weights)} views: {shown}{more}",
        f"  chosen on {learned['on']} ({learned['samples']} samples) by greedy selection; {by} there: {there}",
    ]
    for to in dict.fromkeys(gain["to"] for gain in gains):
        parts = (
            f"{METRICS[gain['metric']]} {gain['target'] + ' ' if gain.get('target') else ''}"
            f"{interval(gain['metric'], gain, '+').strip()}"
            for gain in gains
            if gain["to"] == to
        )
        notes.append(f"  less {'the mean over these views' if to == 'uniform' else to}: {'; '.join(parts)}")
    return notes


def _notes(scores: Scores) -> str:
    """Say under the table what the words in it mean, as far as they occur."""
    notes = ["[low, high]: 95 % intervals, by bootstrap over the samples", _RULES[scores["task"]]]
    ties = [f"{row['ties']} in {row['name']}" for row in cast(list[ClassRow], scores["rows"]) if row.get("ties")]
    if ties:
        notes[1] += f" (tied votes, decided by mean probability: {', '.join(ties)})"
    notes += _fitted(scores)
    if scores["learned_views"]:
        notes += learned_notes(scores["learned_views"], scores["learned_views"]["gains"])
    if scores["tta_views"]:
        mean = {"logits": "mean of the logits", "geometric": "geometric mean"}.get(scores["average"], "mean")
        notes.append(f"+tta: {mean} over the views {', '.join(scores['tta_views'])}")
    points = "points to best" if scores["task"] == "multiclass" else "to best"
    notes.append(f"{points}: paired difference to {scores['best_member']}, the best single member")
    sources = dict.fromkeys(reference["source"] for reference in scores["references"])
    for source in sources:
        names = [reference["name"] for reference in scores["references"] if reference["source"] == source]
        notes.append(f"published: {', '.join(names)}: {source}; perhaps on other samples, so not compared in pairs")
    if scores["absent"]:
        notes.insert(0, how_many(scores["configured"], scores["absent"]))
    return "\n".join(notes)
