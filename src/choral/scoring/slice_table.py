"""Renders the metrics of slices in 80 columns."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from choral.scoring.predictor_table import METRIC_HEADINGS, build_table, format_metric, render_notes
from choral.scoring.slice_metrics import SliceReport

_MAIN = {
    "multiclass": ("accuracy", "balanced_accuracy", "roc_auc", "log_loss", "ece"),
    "multilabel": ("mean_ap", "f1", "log_loss"),
    "regression": ("rmse", "mae", "r2"),
}
_SHORT = ("accuracy", "log_loss", "mean_ap", "f1", "rmse")  # with more than _MANY slices
_MANY = 8
_SIGNIFICANT = 0.05
_SMALL_SLICE = 20  # samples


def render_slices(report: SliceReport) -> RenderableType:
    """Return a table with a section per metric and a row per slice: samples, score, difference to the rest."""
    main = [name for name in _MAIN[report["task"]] if len(report["slices"]) <= _MANY or name in _SHORT]
    table = build_table()
    table.add_column("", overflow="fold")
    table.add_column("n", justify="right")
    table.add_column("score [95 %]", no_wrap=True)
    table.add_column("vs rest [95 %]", no_wrap=True)
    for name, overall in report["overall"].items():
        metric, _, target = name.partition(" ")
        if metric not in main:
            continue
        table.add_row(
            Text(f"{METRIC_HEADINGS[metric]} {target}".strip()),
            str(report["n"]),
            format_metric(metric, overall),
            "",
            style="bold",
        )
        for number, one in enumerate(report["slices"], 1):
            metrics = one["metrics"][name]
            adjusted = metrics["p_adjusted"]
            mark = " *" if adjusted is not None and adjusted < _SIGNIFICANT else ""
            difference = format_metric(metric, metrics["difference"], "+") + mark
            last = number == len(report["slices"])
            table.add_row(
                Text(f"  {one['name']}"),
                str(one["n"]),
                format_metric(metric, metrics["score"]),
                difference,
                end_section=last,
            )
    title = f"{report['name']} on {report['split']} by {report['column']}: {report['n']} samples"
    return Group(Text(title, style="italic"), table, render_notes(_notes(report)))


def _notes(report: SliceReport) -> list[str]:
    notes = ["[low, high]: 95 % intervals, by bootstrap over the samples; bold: all samples"]
    count = report["comparisons"]
    if count == 1:
        notes.append("vs rest: with two slices, one comparison per metric")
        notes.append("*: p below 0.05; among many metrics and columns, some are by chance")
    elif count:
        notes.append(f"vs rest: {count} comparisons per metric; by chance alone, 1 in 20 intervals excludes 0")
        notes.append(f"*: p below 0.05 after Holm's correction for these {count}")
    if any(one["n"] < _SMALL_SLICE for one in report["slices"]):
        notes.append(f"slices of fewer than {_SMALL_SLICE} samples have wide intervals")
    if report["left_out"]:
        left_out = ", ".join(METRIC_HEADINGS[name] for name in report["left_out"])
        notes.append(f"left out: {left_out}: ranking so many samples, classes and slices would take minutes")
    if "ece" in report["overall"] and len(report["slices"]) <= _MANY:
        notes.append("ECE: calibration error without its upward bias, which is larger with few samples")
    return notes
