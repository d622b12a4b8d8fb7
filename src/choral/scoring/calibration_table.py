"""Renders the report of `choral calibrate` in 80 columns: calibration before and after, sets, and decisions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

_HEADINGS = {
    "accuracy": "accuracy, %",
    "log_loss": "log loss",
    "brier": "Brier",
    "ece": "ECE, %",
    "aurc": "AURC, %",
}
_PERCENT = ("accuracy", "ece", "aurc")
_WIDTH = 78  # leaves room for the notes below a small table
_MAX_ROWS = 12  # classes, labels or targets
_COVERAGES = (1.0, 0.9, 0.8, 0.7, 0.5)


def render_calibration(report: Mapping[str, Any]) -> Iterator[Table | Text]:
    """Yield the tables of a report of `calibrate_run`."""
    if "metrics" in report:
        yield _metrics(report)
    if "selective" in report:
        yield _selective(report["selective"])
    if report["conformal"] is not None:
        yield _conformal(report)
    if report["decision"].get("cost"):
        yield _costs(report)
    if report["decision"].get("thresholds"):
        yield _thresholds(report["decision"]["thresholds"])
    if report["unsure"] is not None:
        yield _unsure(report["unsure"])


def _table(title: str, *notes: str) -> Table:
    return Table(
        title=Text(title),
        caption=Text("\n".join(notes), justify="left"),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title_justify="left",
        caption_justify="left",
        min_width=_WIDTH,
    )


def _metrics(report: Mapping[str, Any]) -> Table:
    fitted = report["answer"]["fitted_on"]
    parameters = report["answer"]["calibration"]
    value = f" {parameters['temperature']:.4g}" if report["method"] == "temperature" else ""
    losses = ", ".join(f"{name} {loss:.4f}" for name, loss in report["cross_fitted_log_loss"].items())
    table = _table(
        f"{report['split']}: {report['n']} samples, {report['of']}, calibration by {report['method']}{value}",
        "[low, high]: 95 % intervals, by bootstrap; differences are paired",
        f"ECE: debiased; standard estimate {_percent(report['plain_ece']['before'])} and "
        f"{_percent(report['plain_ece']['after'])}; its difference assumes independence",
        *(["AURC: area under the risk-coverage curve"] if "aurc" in report["metrics"] else []),
        f"fitted on {fitted['split']} ({fitted['samples']} samples) after averaging; cross-fitted log loss on it:",
        f"  {losses}",
    )
    for heading in ("", "before", "after [95 %]", "difference [95 %]"):
        table.add_column(Text(heading), no_wrap=True)
    for name, row in report["metrics"].items():
        before = _interval(name, row["before"]).partition(" [")[0]
        table.add_row(_HEADINGS[name], before, _interval(name, row["after"]), _interval(name, row["difference"], "+"))
    return table


def _selective(curve: Mapping[str, Sequence[float]]) -> Table:
    table = _table("without the least confident samples", "the band is pointwise; see the figure")
    places = [curve["coverage"].index(one) for one in _COVERAGES]
    table.add_column("coverage, %", no_wrap=True)
    for place in places:
        table.add_column(f"{100 * curve['coverage'][place]:.0f}", no_wrap=True)
    table.add_row("accuracy, %", *(f"{100 * curve['accuracy'][place]:.1f}" for place in places))
    table.add_row(
        "  95 % band", *(f"{100 * curve['low'][place]:.1f}, {100 * curve['high'][place]:.1f}" for place in places)
    )
    return table


def _conformal(report: Mapping[str, Any]) -> Table:
    found = report["conformal"]
    contents = {
        "multiclass": "sets that contain the class",
        "multilabel": "sets that contain each label that applies",
        "regression": "intervals that contain the number",
    }[report["task"]]
    fitted = report["answer"]["fitted_on"]["split"]
    notes = [f"quantiles from {fitted}, which also chose the checkpoints: not fully independent"]
    if "covered" in found:
        low, high = found["expected"][0]
        if len(found["expected"]) == 1:
            notes.insert(
                0, f"expected with {found['samples'][0]} samples on {fitted}: {_percent(low)} to {_percent(high)} %"
            )
        covered = found["covered"]
        notes.insert(
            0, f"covered: {_percent(covered['value'])} % [{_percent(covered['low'])}, {_percent(covered['high'])}]"
        )
    if "size" in found:
        sizes = ", ".join(f"{count} of size {size}" for size, count in found["sizes"].items() if count)
        notes.insert(0, f"size: {found['size']['value']:.2f} on average: {sizes}")
    undercovered = [name for name, share in found["each"].items() if share and share["high"] < found["coverage"]]
    if len(found["samples"]) == 1 and undercovered:
        names = ", ".join(undercovered[:3]) + (" ..." if len(undercovered) > 3 else "")
        notes.append(f"lower within {names}: --by-class reaches it within each class")
    table = _table(f"{contents} with a probability of {100 * found['coverage']:g} % ({found['score']})", *notes)
    table.add_column({"multiclass": "class", "multilabel": "label"}.get(report["task"], "target"))
    table.add_column("covered, % [95 %]", no_wrap=True)
    table.add_column("samples", justify="right")
    if "half_width" in found:
        table.add_column("±", justify="right")
    for name, share in list(found["each"].items())[:_MAX_ROWS]:
        cells: list[Text | str] = [Text(name), _share(share), str(share["n"]) if share else "0"]
        if "half_width" in found:
            width = found["half_width"][name]
            cells.append("∞" if width is None else f"{width:.4g}")
        table.add_row(*cells)
    if len(found["each"]) > _MAX_ROWS:
        table.add_row(f"... {len(found['each']) - _MAX_ROWS} more", "", "")
    return table


def _costs(report: Mapping[str, Any]) -> Table:
    decision = report["decision"]
    cost = decision["cost"]
    table = _table(
        "cost per sample; true->predicted",
        "before: most probable class; after: class of least expected cost, calibrated",
    )
    for heading in ("", "before", "after"):
        table.add_column(heading, no_wrap=bool(heading))
    table.add_row("mean [95 %]", _interval("cost", cost["before"]), _interval("cost", cost["after"]))
    table.add_row("difference", "", _interval("cost", cost["difference"], "+"))
    names = report["classes"]
    if len(names) <= _MAX_ROWS:
        pairs = [(row, column) for row in range(len(names)) for column in range(len(names))]
        wrong = [(row, column) for row, column in pairs if row != column]
        before, after = decision["confusion"]["before"], decision["confusion"]["after"]
        for row, column in wrong:
            if before[row][column] or after[row][column]:
                label = Text(f"{names[row]}->{names[column]} (costs {decision['costs'][row][column]:g})")
                table.add_row(label, str(before[row][column]), str(after[row][column]))
    return table


def _thresholds(thresholds: Mapping[str, Mapping[str, Any]]) -> Table:
    table = _table("thresholds, chosen on validation", "before: the most probable class, or labels above one half")
    for heading in ("", "before, % [95 %]", "after, % [95 %]"):
        table.add_column(heading, no_wrap=bool(heading))
    for name, one in list(thresholds.items())[:_MAX_ROWS]:
        table.add_row(Text(f"{name}: {one['rule']}: from {one['value']:.4f}"), "", "")
        for metric in ("precision", "recall"):
            table.add_row(f"  {metric}", _share(one["before"][metric]), _share(one["after"][metric]))
    return table


def _unsure(found: Mapping[str, Any]) -> Table:
    table = _table(f"predictions below {found['below']:.4f} are reported as unsure")
    for heading in ("", "share, % [95 %]", "samples"):
        table.add_column(heading)
    names = {
        "answered": "sure",
        "accuracy_sure": "accuracy of sure ones",
        "accuracy_unsure": "accuracy of unsure ones",
        "accuracy_all": "accuracy of all",
    }
    for key, heading in names.items():
        table.add_row(heading, _share(found[key]), str(found[key]["n"]) if found[key] else "0")
    return table


def _share(share: Mapping[str, Any] | None) -> str:
    if share is None:
        return "-"
    return f"{_percent(share['value'])} [{_percent(share['low'])}, {_percent(share['high'])}]"


def _interval(metric: str, found: Mapping[str, float], sign: str = "") -> str:
    factor, digits = (100, 1 if metric == "accuracy" else 2) if metric in _PERCENT else (1, 4)
    value, low, high = (factor * found[key] for key in ("value", "low", "high"))
    return f"{value:{sign}.{digits}f} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"
