"""What `choral improve` prints: each step on validation, what it brought, and the test data at the end."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from choral.cli.workflow.improvement import Improved
from choral.ensembles.score_rows import Numbers
from choral.scoring.predictor_table import NAMES
from choral.scoring.seed_comparison import SeedPair


def print_improved(found: Improved, console: Console) -> None:
    """Print the steps as a table, why each was kept or not, and what the test data say."""

    def say(words: str) -> None:
        console.print(words, markup=False, highlight=False)

    tried = [one for one in found.rounds if one.run]
    if tried:
        console.print(_steps(found))
    for one in found.rounds:
        say(f"round {one.number}: {', '.join(one.families) or 'no advice'}: {one.reason}")
    over = f", the mean of {found.seeds} seeds" if found.seeds > 1 else "; one seed, so another may differ: see --seeds"
    say(f"Validation also chose checkpoints and advice{over}")
    for split, pairs in found.test.items():
        console.print(_tested(split, found, pairs))
    if not found.test:
        say("Nothing to compare on test data" if found.final == found.baseline else "The test data were not asked")
    kept = ", ".join(f"augment.{key}: {value}" for key, value in found.settings.items())
    say(f"Kept: {kept or 'the config as it is'}")


def _steps(found: Improved) -> Table:
    first = next(one for one in found.rounds if one.run).validation
    table = _table(found.split, first)
    table.add_row("baseline", *(_cell(pair["metric"], pair["a"]) for pair in first), Text("-"), "")
    for one in found.rounds:
        if one.run:
            values = [_cell(pair["metric"], pair["b"]) for pair in one.validation]
            words = "kept" if one.kept else "not kept"
            name = Text("+ " + ", ".join(one.families))
            table.add_row(name, *values, _cell(first[0]["metric"], one.validation[0]["difference"], "+"), words)
    return table


def _tested(split: str, found: Improved, pairs: tuple[SeedPair, ...]) -> Table:
    table = _table(split, pairs)
    table.add_row(Text(found.baseline), *(_cell(pair["metric"], pair["a"]) for pair in pairs), Text("-"), "")
    values = [_cell(pair["metric"], pair["b"]) for pair in pairs]
    table.add_row(Text(found.final), *values, _cell(pairs[0]["metric"], pairs[0]["difference"], "+"), "")
    return table


def _table(split: str, pairs: tuple[SeedPair, ...]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"{split}: {pairs[0]['n']} samples", title_justify="left")
    table.add_column("")
    for pair in pairs:
        table.add_column(f"{NAMES[pair['metric']]} [95 %]")
    table.add_column(f"{NAMES[pairs[0]['metric']]}, paired [95 %]")
    table.add_column("")
    return table


def _cell(metric: str, figures: Numbers | None, sign: str = "") -> Text:
    if figures is None:
        return Text("-")
    scale, form = (100, f"{sign}.2f") if NAMES[metric].endswith("%") else (1, f"{sign}.4f")
    value, low, high = (format(scale * figures[key], form) for key in ("value", "low", "high"))
    return Text(f"{value} [{low}, {high}]")
