"""What `choral tune` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from choral.scoring.predictor_table import NAMES
from choral.training.state import LOWER_IS_BETTER

_SHOWN = 10
_TOLD = ("accuracy", "log_loss", "mean_ap", "rmse", "r2")
_SHARES = ("accuracy", "mean_ap", "f1", "r2")


def print_search(report: Mapping[str, Any], console: Console) -> None:
    """Print the best trials and the first, what the best gains, what the keys explain, and where the best config is."""

    def say(words: str) -> None:
        console.print(words, markup=False, highlight=False, soft_wrap=True)

    trials, metric = report["trials"], report["metric"]
    console.print(_trials(trials, metric))
    ended = sum(trial["state"] == "ended early" for trial in trials)
    failed = sum(trial["state"] == "failed" for trial in trials)
    further = [f"{ended} ended early by their validation"] if ended else []
    further += [f"{failed} failed"] if failed else []
    say("; ".join([f"{len(trials)} trials, {metric.replace('_', ' ')} on {report['split']}", *further]))
    best = report["best"]
    if best is not None and best["number"] == 0:
        say("nothing that was tried is better than the config as it is (trial 0)")
    for pair in report["gain"]:
        if (numbers := pair["difference"]) is not None and pair["metric"] in (
            "accuracy",
            "log_loss",
            "mean_ap",
            "rmse",
            "r2",
        ):
            say(f"best less first, {NAMES[pair['metric']]}: {_difference(pair['metric'], numbers)}")
    if report["gain"]:
        say(f"The best of {len(trials)} is flattered by having been chosen on these samples; other data decide.")
    if report["importance"]:
        shares = ", ".join(f"{key} {share:.0%}" for key, share in report["importance"].items())
        say(f"Of the differences between trials explain: {shares}")
    if best is not None and best["number"]:
        say(f"Best: {report['file']}, to run or to build on: choral run {report['file']}")


def _trials(trials: Sequence[Mapping[str, Any]], metric: str) -> Table:
    sign = 1 if metric in LOWER_IS_BETTER else -1
    rated = [trial for trial in trials if trial["state"] == "done"]
    rated.sort(key=lambda trial: (sign * trial["value"], trial["number"]))
    shown = rated[:_SHOWN]
    shown += [trial for trial in trials if trial["number"] == 0 and trial not in shown]
    shown += [trial for trial in trials if trial["state"] == "running"]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    keys = list(dict.fromkeys(key for trial in trials for key in trial["set"]))
    for heading in ("trial", metric, *(key.partition(".")[2] for key in keys)):
        table.add_column(Text(heading.replace("_", "\n")), justify="right", vertical="bottom", overflow="fold")
    for trial in shown:
        value = "-" if trial["value"] is None else _value(metric, trial["value"])
        word = value if trial["state"] == "done" else f"{trial['state']}: {value}"
        cells = [f"{own:.3g}" if isinstance(own := trial["set"].get(key, ""), float) else str(own) for key in keys]
        table.add_row(Text(str(trial["number"])), Text(word), *map(Text, cells))
    return table


def _value(metric: str, value: float) -> str:
    return f"{100 * value:.2f} %" if metric in _SHARES else f"{value:.4f}"


def _difference(metric: str, numbers: Mapping[str, float]) -> str:
    scale, form, unit = (100, "+.2f", " points") if metric in _SHARES else (1, "+.4f", "")
    value, low, high = (format(scale * numbers[key], form) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]{unit}"
