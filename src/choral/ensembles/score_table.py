"""The score table that `choral score` prints, 80 columns or wider."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

from rich import box
from rich.table import Table
from rich.text import Text

from choral.ensembles.missing_members import describe_missing_members
from choral.ensembles.score_rows import MulticlassRow, RegressionRow, ScoreRow, Scores
from choral.inference.evaluation_plan import HELD_OUT

_HEADINGS = {
    "multiclass": ("accuracy % [95 %]", "points to best [95 %]", "log loss"),
    "multilabel": ("", "score [95 %]", "to best [95 %]"),
    "regression": ("", "score [95 %]", "to best [95 %]"),
}
METRIC_HEADINGS = {
    "mean_ap": "mAP %",
    "f1": "F1 %",
    "accuracy": "accuracy %",
    "log_loss": "log loss",
    "rmse": "RMSE",
    "mae": "MAE",
    "r2": "R2",
}
_MAX_LISTED_VIEWS = 6
_FRACTIONS = ("accuracy", "mean_ap", "f1")
_RULE_NOTES = {
    "multiclass": "soft: mean of the members' probabilities; hard: majority of their votes",
    "multilabel": "soft: mean of the members' probabilities; mAP: average precision, averaged over labels; F1: micro,"
    " thresholded at one half",
    "regression": "mean, median: of the members' predictions",
}


def render_scores(scores: Scores) -> Table:
    """Return the scores as a table: fractions as percentages, their differences in percentage points.

    Published scores have rows of their own at the end, with their source and without an interval.
    """
    why = "in every member's training set, or unreadable;" if scores["split"] == HELD_OUT else "unreadable and"
    skipped = f", {scores['skipped']} {why} left out" if scores["skipped"] else ""
    missing, total = len(scores["missing_members"]), scores["configured"]
    members = f"; {total - missing} of {total} members" if missing else ""
    multiclass = scores["task"] == "multiclass"
    table = Table(
        title=Text(f"{scores['split']}: {scores['n']} samples{skipped}{members}"),
        caption=Text(_notes(scores), justify="left"),
        box=box.SIMPLE_HEAD,
        pad_edge=multiclass,  # the other tasks have one more column, and names need the space
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("", overflow="fold")
    for heading in _HEADINGS[scores["task"]]:
        table.add_column(heading, no_wrap=True)
    rows = scores["rows"]
    targets = len({cast(RegressionRow, row).get("target", "") for row in rows})
    for row, following in pairwise((*rows, None)):
        assert row is not None
        last = following is None or _block(row) != _block(following) or (multiclass and _next_views(row, following))
        style = "" if row["name"].startswith("member/") else "bold"
        cells = _multiclass_cells(cast(MulticlassRow, row)) if multiclass else _metric_cells(row, named=targets > 1)
        table.add_row(*map(Text, cells), style=style, end_section=last)
    for reference in scores["references"]:
        metric = reference["metric"]
        value = f"{format_value(metric, reference['value'])} published"
        if multiclass:
            other = "" if metric == "accuracy" else f" ({metric})"
            table.add_row(Text(f"{reference['name']}{other}"), value, "", "")
        else:
            table.add_row(Text(reference["name"]), METRIC_HEADINGS.get(metric, metric), value, "")
    return table


def format_interval(metric: str, values: Mapping[str, Any], sign: str = "") -> str:
    """Return a score and its interval as text; with the sign "+" a difference."""
    value, low, high = (format_value(metric, values[key], sign) for key in ("value", "low", "high"))
    return f"{value} [{low.strip()}, {high.strip()}]"


def format_value(metric: str, value: float, sign: str = "") -> str:
    """Return the value of a metric as text; fractions as percentages."""
    if metric in _FRACTIONS:  # of an average over labels, a second decimal carries no information
        return f"{100 * value:{sign}6.2f}" if metric == "accuracy" else f"{100 * value:{sign}.1f}"
    return f"{value:{sign}.3f}" if abs(value) < 100 else f"{value:{sign}.4g}"


def describe_learned_views(learned: Mapping[str, Any], gains: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return notes on which view weights were learned and what they gain on the scored split.

    Args:
        learned: name, weights, on, samples, by and losses, as in `LearnedViewsRow`.
        gains: as `ViewGain`.
    """
    weights = learned["weights"]
    largest = sorted((view for view in weights if weights[view] > 0), key=lambda view: -weights[view])
    listed = ", ".join(f"{view} {weights[view]:.2f}" for view in largest[:_MAX_LISTED_VIEWS])
    more = f" and {len(largest) - _MAX_LISTED_VIEWS} more" if len(largest) > _MAX_LISTED_VIEWS else ""
    losses = ", ".join(
        f"{name} {loss:.4f}" for name, loss in sorted(learned["losses"].items(), key=lambda item: item[1])
    )
    criterion = learned["by"].replace("_", " ")
    notes = [
        f"{learned['name']}: {len(largest)} of {len(weights)} views: {listed}{more}",
        f"  learned on {learned['on']} ({learned['samples']} samples) by greedy selection; {criterion} on it: {losses}",
    ]
    for to in dict.fromkeys(gain["to"] for gain in gains):
        parts = (
            f"{METRIC_HEADINGS[gain['metric']]} {gain['target'] + ' ' if gain.get('target') else ''}"
            f"{format_interval(gain['metric'], gain, '+').strip()}"
            for gain in gains
            if gain["to"] == to
        )
        baseline = "the mean over these views" if to == "uniform" else to
        notes.append(f"  difference to {baseline}: {'; '.join(parts)}")
    return notes


def _block(row: ScoreRow) -> tuple[str, str]:
    return row["metric"], cast(RegressionRow, row).get("target", "")


def _next_views(row: ScoreRow, following: ScoreRow) -> bool:
    """Whether rows under other views follow: their members come after the rules of the previous views."""
    return following["name"].startswith("member/") and not row["name"].startswith("member/")


def _multiclass_cells(row: MulticlassRow) -> list[str]:
    gain, loss = row["difference"], row["log_loss"]
    accuracy = format_interval("accuracy", row)
    difference = format_interval("accuracy", gain, "+") if gain else "  best"
    return [row["name"], accuracy, difference, f"{loss['value']:.4f}" if loss else "-"]


def _metric_cells(row: ScoreRow, named: bool) -> list[str]:
    metric, gain = row["metric"], row["difference"]
    heading = METRIC_HEADINGS[metric]
    if named:
        heading = f"{heading} {cast(RegressionRow, row)['target']}"
    difference = format_interval(metric, gain, "+") if gain else "best"
    return [row["name"], heading, format_interval(metric, row), difference]


def _fitting_notes(scores: Scores) -> list[str]:
    """Return notes on what the rules with parameters were fitted on."""
    notes = []
    by_rule = {rule["rule"]: rule for rule in scores["rules"]}
    if "weighted" in by_rule:
        rule = by_rule["weighted"]
        notes.append(
            f"weighted, greedy: best convex weights of the members, and weights of greedy selection, on {rule['on']} "
            f"({rule['samples']} samples)"
        )
    elif scores["not_fitted"] and len(scores["members"]) > 1:
        notes.append(f"no weighted, greedy or temperature: {scores['not_fitted']}")
    if "stack" in by_rule:
        notes.append(f"stack: logistic regression on out-of-fold predictions ({by_rule['stack']['samples']} samples)")
    elif scores["not_stacked"]:
        notes.append(f"no stack: {scores['not_stacked']}")
    if "boosting" in by_rule:
        notes.append("boosting: votes weighted by the alphas of their rounds (SAMME)")
    if scores["temperatures"]:
        listed = (
            f"{row['name']} {row['value']:.2f} (log loss {row['log_loss']['value']:.4f} to {row['tempered']['value']:.4f})"
            for row in scores["temperatures"]
        )
        split = scores["temperatures"][0]["on"]
        notes.append(f"temperature fitted on {split}, not applied in the table: {', '.join(listed)}")
    return notes


def _notes(scores: Scores) -> str:
    """Return the notes below the table that explain the terms in it."""
    notes = ["[low, high]: 95 % intervals, by bootstrap over the samples", _RULE_NOTES[scores["task"]]]
    ties = [f"{row['ties']} in {row['name']}" for row in cast(list[MulticlassRow], scores["rows"]) if row.get("ties")]
    if ties:
        notes[1] += f" (tied votes, decided by mean probability: {', '.join(ties)})"
    notes += _fitting_notes(scores)
    if scores["learned_views"]:
        notes += describe_learned_views(scores["learned_views"], scores["learned_views"]["gains"])
    if scores["tta_views"]:
        mean = {"logits": "mean of the logits", "geometric": "geometric mean"}.get(scores["average"], "mean")
        notes.append(f"+tta: {mean} over the views {', '.join(scores['tta_views'])}")
    heading = "points to best" if scores["task"] == "multiclass" else "to best"
    notes.append(f"{heading}: paired difference to {scores['best_member']}, the best single member")
    for source in dict.fromkeys(reference["source"] for reference in scores["references"]):
        names = [reference["name"] for reference in scores["references"] if reference["source"] == source]
        notes.append(
            f"published: {', '.join(names)}: {source}; possibly on other samples, so without a paired difference"
        )
    if scores["missing_members"]:
        notes.insert(0, describe_missing_members(scores["configured"], scores["missing_members"]))
    return "\n".join(notes)
