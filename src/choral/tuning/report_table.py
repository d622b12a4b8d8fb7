"""The report of a search, as `choral tune` prints it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from choral.scoring.predictor_table import METRIC_HEADINGS
from choral.training.state import LOWER_IS_BETTER

_MAX_TRIALS = 10
_COMPARED_METRICS = ("accuracy", "log_loss", "mean_ap", "rmse", "r2")
_PERCENT_METRICS = ("accuracy", "mean_ap", "f1", "r2")


def print_search_report(report: Mapping[str, Any], console: Console) -> None:
    """Print the best trials and the baseline, the gain of the best one, the importance of the keys, and the best config."""

    def print_line(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    trials, metric = report["trials"], report["metric"]
    console.print(_render_trials(trials, metric))
    ended = sum(trial["state"] == "ended early" for trial in trials)
    failed = sum(trial["state"] == "failed" for trial in trials)
    details = [f"{ended} ended early by their validation"] if ended else []
    details += [f"{failed} failed"] if failed else []
    print_line("; ".join([f"{len(trials)} trials, {metric.replace('_', ' ')} on {report['split']}", *details]))
    best = report["best"]
    if best is not None and best["number"] == 0:
        print_line("no trial is better than the unchanged config (trial 0)")
    for pair in report["gain"]:
        if (numbers := pair["difference"]) is not None and pair["metric"] in _COMPARED_METRICS:
            print_line(
                f"best minus baseline, {METRIC_HEADINGS[pair['metric']]}: {_format_difference(pair['metric'], numbers)}"
            )
    if report["gain"]:
        print_line(
            f"The best of {len(trials)} trials was selected on these samples, so its metric is biased upwards: confirm it on "
            "other data."
        )
    if report["importance"]:
        shares = ", ".join(f"{key} {share:.0%}" for key, share in report["importance"].items())
        print_line(f"Share of the differences between trials that each key explains: {shares}")
    if best is not None and best["number"]:
        print_line(f"Best config: {report['file']}. To run it: choral run {report['file']}")


def _render_trials(trials: Sequence[Mapping[str, Any]], metric: str) -> Table:
    sign = 1 if metric in LOWER_IS_BETTER else -1
    finished = [trial for trial in trials if trial["state"] == "done"]
    finished.sort(key=lambda trial: (sign * trial["value"], trial["number"]))
    displayed = finished[:_MAX_TRIALS]
    displayed += [trial for trial in trials if trial["number"] == 0 and trial not in displayed]
    displayed += [trial for trial in trials if trial["state"] == "running"]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    keys = list(dict.fromkeys(key for trial in trials for key in trial["set"]))
    for heading in ("trial", metric, *(key.partition(".")[2] for key in keys)):
        table.add_column(Text(heading.replace("_", "\n")), justify="right", vertical="bottom", overflow="fold")
    for trial in displayed:
        value = "-" if trial["value"] is None else _format_value(metric, trial["value"])
        cell = value if trial["state"] == "done" else f"{trial['state']}: {value}"
        cells = [f"{item:.3g}" if isinstance(item := trial["set"].get(key, ""), float) else str(item) for key in keys]
        table.add_row(Text(str(trial["number"])), Text(cell), *map(Text, cells))
    return table


def _format_value(metric: str, value: float) -> str:
    return f"{100 * value:.2f} %" if metric in _PERCENT_METRICS else f"{value:.4f}"


def _format_difference(metric: str, numbers: Mapping[str, float]) -> str:
    scale, form, unit = (100, "+.2f", " points") if metric in _PERCENT_METRICS else (1, "+.4f", "")
    value, low, high = (format(scale * numbers[key], form) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]{unit}"
