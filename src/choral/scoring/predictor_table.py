"""The card of a predictor for people, in 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from choral.ensembles.score_rows import Numbers
from choral.scoring.predictor_report import CardJson

NAMES = {
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
_COLUMNS = {  # of a class: with and without interval, so that 80 columns do
    "multiclass": (("precision", "recall", "f1"), ()),
    "multilabel": (("average_precision", "f1"), ("precision", "recall")),
}
_CLASSES = 20
_MATRIX = 12


def render_card(card: CardJson) -> RenderableType:
    """Return the metrics of all samples, those of each class, label or target, and which classes are taken for which."""
    skipped = f", {card['skipped']} left out" if card["skipped"] else ""
    title = Text(f"{card['name']} on {card['split']}: {card['n']} samples{skipped}", style="italic")
    parts: list[RenderableType] = [title, _overall(card)]
    if card["task"] == "regression":
        if len(card["classes"]) > 1:
            parts.append(_targets(card))
    else:
        parts += _classes(card)
    if card["confusion"] is not None and len(card["classes"]) <= _MATRIX:
        title = Text("confusion: a row a true class, a column a predicted one", style="italic")
        parts += [title, _matrix(card["classes"], card["confusion"])]
    elif card["confusions"]:
        parts += [Text("most frequent confusions", style="italic"), _confusions(card)]
    return Group(*parts, notes_below(_notes(card)))


def notes_below(notes: Sequence[str]) -> Text:
    """Return what words in a table mean, one note a line."""
    return Text("\n".join(notes), style="dim italic")


def cell(metric: str, numbers: Numbers | None, sign: str = "", *, bare: bool = False) -> str:
    """Return a score, or with the sign "+" a difference, with its interval as text: of fractions in percent.

    Args:
        metric: a name of `NAMES`.
        numbers: None: "-".
        sign: "" or "+".
        bare: without the interval.
    """
    if numbers is None:
        return "-"

    def text(value: float) -> str:
        if NAMES[metric].endswith("%"):
            return f"{100 * value:{sign}.1f}"
        return f"{value:{sign}.3f}" if abs(value) < 100 else f"{value:{sign}.4g}"

    value = text(numbers["value"])
    return value if bare else f"{value} [{text(numbers['low'])}, {text(numbers['high'])}]"


def new_table() -> Table:
    """Return an empty table in the style of the table of scores, without title: those wrap at the width of the table."""
    return Table(box=box.SIMPLE_HEAD, pad_edge=False)


def _overall(card: CardJson) -> Table:
    table = new_table()
    table.add_column("")
    table.add_column("value [95 %]", no_wrap=True)
    for metric, numbers in card["metrics"].items():
        table.add_row(NAMES[metric], cell(metric, numbers))
    return table


def _notes(card: CardJson) -> list[str]:
    notes = ["[low, high]: 95 % intervals, by bootstrap over the samples"]
    if card["task"] == "multiclass":
        means = "F1 (macro), ROC-AUC, average precision" if card["plain_ece"] is not None else "F1 (macro)"
        notes.append(
            f"balanced accuracy, {means}: means over classes, each against the others; F1 (micro) is the accuracy"
        )
        if card["decided"]:
            notes.append("classes as the threshold or costs of answer.json decide; ranks and losses by probabilities")
    if card["task"] == "multilabel":
        where = "by the thresholds of answer.json" if card["decided"] else "above one half"
        notes.append(f"mAP, ROC-AUC, F1 (macro): means over labels; F1: all labels together, {where}")
    if card["task"] == "regression" and len(card["classes"]) > 1:
        notes.append("means over targets; those in units of their own stand below")
    if card["plain_ece"] is not None:
        notes.append(
            f"ECE: calibration error over {card['bins']} bins of equally many; as usually computed, which is biased "
            f"upwards, {100 * card['plain_ece']:.1f} %"
        )
    return notes


def _classes(card: CardJson) -> list[RenderableType]:
    """Return a table of a row a class; of many classes those of the lowest F1, which is said above it."""
    names = list(card["by_class"])
    with_interval, without = _COLUMNS[card["task"]]
    many = len(names) > _CLASSES
    if many:
        names = sorted(names, key=lambda name: _value(card["by_class"][name]["f1"]))[:_CLASSES]
    kind = "labels" if card["task"] == "multilabel" else "classes"
    table = new_table()
    table.add_column("label" if card["task"] == "multilabel" else "class", overflow="fold")
    table.add_column("n", justify="right")
    for metric in with_interval:
        table.add_column(f"{_short(metric)} [95 %]", no_wrap=True)
    for metric in without:
        table.add_column(_short(metric), justify="right")
    for name in names:
        own = card["by_class"][name]
        cells = [cell(metric, own[metric]) for metric in with_interval]
        cells += [cell(metric, own[metric], bare=True) for metric in without]
        table.add_row(Text(name), str(card["counts"][name]), *cells)
    if not many:
        return [table]
    return [Text(f"the {_CLASSES} of {len(card['by_class'])} {kind} with the lowest F1", style="italic"), table]


def _short(metric: str) -> str:
    return "AP %" if metric == "average_precision" else NAMES[metric]


def _value(numbers: Numbers | None) -> float:
    return numbers["value"] if numbers is not None else -1.0


def _targets(card: CardJson) -> Table:
    table = new_table()
    for heading in ("target", "", "value [95 %]"):
        table.add_column(heading)
    for name, own in card["by_class"].items():
        for metric, numbers in own.items():
            last = metric == list(own)[-1]
            table.add_row(Text(name), NAMES[metric], cell(metric, numbers), end_section=last)
    return table


def _matrix(classes: Sequence[str], confusion: Sequence[Sequence[int]]) -> Table:
    table = new_table()
    table.add_column("", overflow="fold")
    for number in range(len(classes)):
        table.add_column(str(number + 1), justify="right")
    for number, (name, row) in enumerate(zip(classes, confusion, strict=True)):
        cells = [Text(str(count), style="bold" if place == number else "") for place, count in enumerate(row)]
        table.add_row(Text(f"{number + 1} {name}"), *cells)
    return table


def _confusions(card: CardJson) -> Table:
    table = new_table()
    for heading in ("class", "taken for"):
        table.add_column(heading, overflow="fold")
    for heading in ("times", "% of class"):
        table.add_column(heading, justify="right")
    for found in card["confusions"][:10]:
        share = f"{100 * found['share']:.1f}"
        table.add_row(Text(found["label"]), Text(found["predicted"]), str(found["count"]), share)
    return table
