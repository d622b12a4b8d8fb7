"""Metrics of slices for people, in 80 columns."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from choral.scoring.predictor_table import NAMES, cell, new_table, notes_below
from choral.scoring.slice_metrics import SlicesJson

_MAIN = {
    "multiclass": ("accuracy", "balanced_accuracy", "roc_auc", "log_loss", "ece"),
    "multilabel": ("mean_ap", "f1", "log_loss"),
    "regression": ("rmse", "mae", "r2"),
}
_SHORT = ("accuracy", "log_loss", "mean_ap", "f1", "rmse")  # where slices are many
_MANY = 8
_RARE = 0.05
_FEW = 20


def render_slices(found: SlicesJson) -> RenderableType:
    """Return a section a metric, in it a row a slice: samples, score, difference to the rest."""
    main = [name for name in _MAIN[found["task"]] if len(found["slices"]) <= _MANY or name in _SHORT]
    table = new_table()
    table.add_column("", overflow="fold")
    table.add_column("n", justify="right")
    table.add_column("score [95 %]", no_wrap=True)
    table.add_column("to the rest [95 %]", no_wrap=True)
    for name, overall in found["overall"].items():
        metric, _, target = name.partition(" ")
        if metric not in main:
            continue
        table.add_row(
            Text(f"{NAMES[metric]} {target}".strip()), str(found["n"]), cell(metric, overall), "", style="bold"
        )
        for number, one in enumerate(found["slices"], 1):
            own = one["metrics"][name]
            adjusted = own["p_adjusted"]
            mark = " *" if adjusted is not None and adjusted < _RARE else ""
            difference = cell(metric, own["difference"], "+") + mark
            last = number == len(found["slices"])
            table.add_row(
                Text(f"  {one['name']}"), str(one["n"]), cell(metric, own["score"]), difference, end_section=last
            )
    title = f"{found['name']} on {found['split']} by {found['column']}: {found['n']} samples"
    return Group(Text(title, style="italic"), table, notes_below(_notes(found)))


def _notes(found: SlicesJson) -> list[str]:
    notes = ["[low, high]: 95 % intervals, by bootstrap over the samples; bold: all samples"]
    count = found["comparisons"]
    if count == 1:
        notes.append("to the rest: of two slices one comparison a metric")
        notes.append("*: p below 0.05; of several metrics and columns that are looked at, some will be so by chance")
    elif count:
        notes.append(f"to the rest: {count} comparisons a metric; by chance alone 1 in 20 intervals leaves 0 out")
        notes.append(f"*: p below 0.05 also after Holm's correction for these {count}")
    if any(one["n"] < _FEW for one in found["slices"]):
        notes.append(f"of fewer than {_FEW} samples little can be said: wide intervals are meant so")
    if found["left_out"]:
        left_out = ", ".join(NAMES[name] for name in found["left_out"])
        notes.append(f"left out: {left_out}: rankings of so many samples, classes and slices would take minutes")
    if "ece" in found["overall"] and len(found["slices"]) <= _MANY:
        notes.append("ECE: calibration error without its upward bias, which is larger where samples are few")
    return notes
