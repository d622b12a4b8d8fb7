"""Prints the result of `choral improve`: each step on validation data, and the comparison on test data."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from choral.cli.workflow.improvement import Improvement
from choral.ensembles.score_rows import IntervalDict
from choral.scoring.predictor_table import METRIC_HEADINGS
from choral.scoring.seed_comparison import SeedComparison


def print_improvement(result: Improvement, console: Console) -> None:
    """Print a table of the steps, why each was kept or not, and the test results."""

    def print_line(text: str) -> None:
        console.print(text, markup=False, highlight=False)

    if any(one.run for one in result.rounds):
        console.print(_build_step_table(result))
    for one in result.rounds:
        print_line(f"round {one.number}: {', '.join(one.families) or 'no advice'}: {one.reason}")
    seeds = f"means of {result.seeds} seeds" if result.seeds > 1 else "of one seed; others may differ (see --seeds)"
    print_line(f"Validation data also chose the checkpoints and the advice. Figures are {seeds}")
    for split, pairs in result.test.items():
        console.print(_build_test_table(split, result, pairs))
    if not result.test:
        unchanged = "Nothing was kept, so there is nothing to compare on test data"
        print_line(unchanged if result.final == result.baseline else "Not evaluated on test data")
    kept = ", ".join(f"augment.{key}: {value}" for key, value in result.settings.items())
    print_line(f"Kept: {kept or 'nothing; the config stays as it is'}")


def _build_step_table(result: Improvement) -> Table:
    first = next(one for one in result.rounds if one.run).validation
    table = _new_table(result.split, first)
    table.add_row("baseline", *(_cell(pair["metric"], pair["a"]) for pair in first), Text("-"), "")
    for one in result.rounds:
        if one.run:
            values = [_cell(pair["metric"], pair["b"]) for pair in one.validation]
            verdict = "kept" if one.kept else "not kept"
            name = Text("+ " + ", ".join(one.families))
            table.add_row(name, *values, _cell(first[0]["metric"], one.validation[0]["difference"], "+"), verdict)
    return table


def _build_test_table(split: str, result: Improvement, pairs: tuple[SeedComparison, ...]) -> Table:
    table = _new_table(split, pairs)
    table.add_row(Text(result.baseline), *(_cell(pair["metric"], pair["a"]) for pair in pairs), Text("-"), "")
    values = [_cell(pair["metric"], pair["b"]) for pair in pairs]
    table.add_row(Text(result.final), *values, _cell(pairs[0]["metric"], pairs[0]["difference"], "+"), "")
    return table


def _new_table(split: str, pairs: tuple[SeedComparison, ...]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"{split}: {pairs[0]['n']} samples", title_justify="left")
    table.add_column("")
    for pair in pairs:
        table.add_column(f"{METRIC_HEADINGS[pair['metric']]} [95 %]")
    table.add_column(f"{METRIC_HEADINGS[pairs[0]['metric']]}, paired [95 %]")
    table.add_column("")
    return table


def _cell(metric: str, interval: IntervalDict | None, sign: str = "") -> Text:
    if interval is None:
        return Text("-")
    scale, form = (100, f"{sign}.2f") if METRIC_HEADINGS[metric].endswith("%") else (1, f"{sign}.4f")
    value, low, high = (format(scale * interval[key], form) for key in ("value", "low", "high"))
    return Text(f"{value} [{low}, {high}]")
