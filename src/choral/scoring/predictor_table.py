"""Renders the report of a predictor in 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from choral.ensembles.score_rows import IntervalDict
from choral.scoring.predictor_report import PredictorReport

METRIC_HEADINGS = {
    "accuracy": "accuracy %",
    "top_2": "top-2 %",
    "top_5": "top-5 %",
    "balanced_accuracy": "balanced accuracy %",
    "f1_macro": "F1 (macro) %",
    "f1_micro": "F1 (micro) %",
    "f1": "F1 %",
    "precision": "precision %",
    "recall": "recall %",
    "exact_match": "exact match %",
    "mean_ap": "mAP %",
    "average_precision": "average precision %",
    "roc_auc": "ROC-AUC %",
    "log_loss": "log loss",
    "brier": "Brier score",
    "ece": "ECE, debiased %",
    "rmse": "RMSE",
    "mae": "MAE",
    "r2": "R2",
    "spearman": "Spearman",
}
_COLUMNS = {  # of the table of classes: with and without interval, to fit into 80 columns
    "multiclass": (("precision", "recall", "f1"), ()),
    "multilabel": (("average_precision", "f1"), ("precision", "recall")),
}
_MAX_CLASSES = 20
_MAX_MATRIX = 12  # classes of a confusion matrix


def render_predictor_report(report: PredictorReport) -> RenderableType:
    """Return overall metrics, those of each class, label or target, and the confusions of classes."""
    skipped = f", {report['skipped']} left out" if report["skipped"] else ""
    title = Text(f"{report['name']} on {report['split']}: {report['n']} samples{skipped}", style="italic")
    parts: list[RenderableType] = [title, _build_overall_table(report)]
    if report["task"] == "regression":
        if len(report["classes"]) > 1:
            parts.append(_build_target_table(report))
    else:
        parts += _build_class_tables(report)
    if report["confusion"] is not None and len(report["classes"]) <= _MAX_MATRIX:
        title = Text("confusion matrix: rows are true classes, columns predicted ones", style="italic")
        parts += [title, _build_confusion_matrix(report["classes"], report["confusion"])]
    elif report["confusions"]:
        parts += [Text("most frequent confusions", style="italic"), _build_confusion_table(report)]
    return Group(*parts, render_notes(_build_notes(report)))


def render_notes(notes: Sequence[str]) -> Text:
    """Return the notes below a table, one per line."""
    return Text("\n".join(notes), style="dim italic")


def format_metric(metric: str, numbers: IntervalDict | None, sign: str = "", *, bare: bool = False) -> str:
    """Return a value with its interval as text; proportions are in percent.

    Args:
        metric: a key of `METRIC_HEADINGS`.
        numbers: value and interval; None: the text is "-".
        sign: "+" for differences, else "".
        bare: leave out the interval.
    """
    if numbers is None:
        return "-"

    def text(value: float) -> str:
        if METRIC_HEADINGS[metric].endswith("%"):
            return f"{100 * value:{sign}.1f}"
        return f"{value:{sign}.3f}" if abs(value) < 100 else f"{value:{sign}.4g}"

    value = text(numbers["value"])
    return value if bare else f"{value} [{text(numbers['low'])}, {text(numbers['high'])}]"


def build_table() -> Table:
    """Return an empty table in the style of the score table; it has no title, because titles wrap at the table's width."""
    return Table(box=box.SIMPLE_HEAD, pad_edge=False)


def _build_overall_table(report: PredictorReport) -> Table:
    table = build_table()
    table.add_column("")
    table.add_column("value [95 %]", no_wrap=True)
    for metric, numbers in report["metrics"].items():
        table.add_row(METRIC_HEADINGS[metric], format_metric(metric, numbers))
    return table


def _build_notes(report: PredictorReport) -> list[str]:
    notes = ["[low, high]: 95 % intervals, by bootstrap over the samples"]
    if report["task"] == "multiclass":
        means = "F1 (macro), ROC-AUC, average precision" if report["plain_ece"] is not None else "F1 (macro)"
        notes.append(
            f"balanced accuracy, {means}: means over classes, one against the rest; F1 (micro) is the accuracy"
        )
        if report["decided"]:
            notes.append(
                "classes: decided with the threshold or costs of answer.json; rankings and losses use probabilities"
            )
    if report["task"] == "multilabel":
        where = "with the thresholds of answer.json" if report["decided"] else "above one half"
        notes.append(f"mAP, ROC-AUC, F1 (macro): means over labels; F1: all labels together, {where}")
    if report["task"] == "regression" and len(report["classes"]) > 1:
        notes.append("means over targets; see below for each target in its own unit")
    if report["plain_ece"] is not None:
        notes.append(
            f"ECE: calibration error over {report['bins']} bins of equal counts; the standard estimate, which is biased "
            f"upwards, {100 * report['plain_ece']:.1f} %"
        )
    return notes


def _build_class_tables(report: PredictorReport) -> list[RenderableType]:
    """Return the table of classes; of many classes, those with the lowest F1."""
    names = list(report["by_class"])
    with_interval, without = _COLUMNS[report["task"]]
    many = len(names) > _MAX_CLASSES
    if many:
        names = sorted(names, key=lambda name: _value(report["by_class"][name]["f1"]))[:_MAX_CLASSES]
    kind = "labels" if report["task"] == "multilabel" else "classes"
    table = build_table()
    table.add_column("label" if report["task"] == "multilabel" else "class", overflow="fold")
    table.add_column("n", justify="right")
    for metric in with_interval:
        table.add_column(f"{_shorten_metric(metric)} [95 %]", no_wrap=True)
    for metric in without:
        table.add_column(_shorten_metric(metric), justify="right")
    for name in names:
        metrics = report["by_class"][name]
        cells = [format_metric(metric, metrics[metric]) for metric in with_interval]
        cells += [format_metric(metric, metrics[metric], bare=True) for metric in without]
        table.add_row(Text(name), str(report["counts"][name]), *cells)
    if not many:
        return [table]
    return [Text(f"the {_MAX_CLASSES} of {len(report['by_class'])} {kind} with the lowest F1", style="italic"), table]


def _shorten_metric(metric: str) -> str:
    return "AP %" if metric == "average_precision" else METRIC_HEADINGS[metric]


def _value(numbers: IntervalDict | None) -> float:
    return numbers["value"] if numbers is not None else -1.0


def _build_target_table(report: PredictorReport) -> Table:
    table = build_table()
    for heading in ("target", "", "value [95 %]"):
        table.add_column(heading)
    for name, own in report["by_class"].items():
        for metric, numbers in own.items():
            last = metric == list(own)[-1]
            table.add_row(Text(name), METRIC_HEADINGS[metric], format_metric(metric, numbers), end_section=last)
    return table


def _build_confusion_matrix(classes: Sequence[str], confusion: Sequence[Sequence[int]]) -> Table:
    table = build_table()
    table.add_column("", overflow="fold")
    for number in range(len(classes)):
        table.add_column(str(number + 1), justify="right")
    for number, (name, row) in enumerate(zip(classes, confusion, strict=True)):
        cells = [Text(str(count), style="bold" if place == number else "") for place, count in enumerate(row)]
        table.add_row(Text(f"{number + 1} {name}"), *cells)
    return table


def _build_confusion_table(report: PredictorReport) -> Table:
    table = build_table()
    for heading in ("class", "predicted as"):
        table.add_column(heading, overflow="fold")
    for heading in ("times", "% of class"):
        table.add_column(heading, justify="right")
    for found in report["confusions"][:10]:
        share = f"{100 * found['share']:.1f}"
        table.add_row(Text(found["label"]), Text(found["predicted"]), str(found["count"]), share)
    return table
