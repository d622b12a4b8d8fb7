"""Two runs beside each other, for `choral compare`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from choral.cli.workflow.predictor_report import slice_masks
from choral.core.errors import ConfigError
from choral.runs.run_dir import RunDir
from choral.scoring.compare import Comparison, compare
from choral.scoring.compare_table import render_comparison
from choral.scoring.predictor import Predictor, default_split, predictor_of
from choral.scoring.scoreboard.test_set_uses import look_at, looks_line


def compare_runs(
    folders: tuple[RunDir, RunDir], split: str = "", of: Sequence[str] = (), column: str = "", shards: str = ""
) -> tuple[Comparison, str]:
    """Return how the second run differs from the first, and the line that stands under tables of test scores.

    Args:
        folders: of the runs; the same one twice compares two of its predictors.
        split: "": that which `choral score` would take of the first.
        of: the name of a predictor of both, or one of each; none: what each run would answer with.
        column: of metadata, whose values are compared one by one; "": none.
        shards: where the samples are packed; "": data.shards of the second run.

    Raises:
        ConfigError: more than two predictors, or one that there is not.
        DataError: the runs were not evaluated on the same samples; the reason is given.
    """
    if len(of) > 2:
        raise ConfigError(f"--of: expected a predictor of both runs, or one of each, got {', '.join(of)}")
    chosen = (*of, *of)[:2] if of else ("", "")
    name = split or default_split(folders[0], folders[0].config())
    a, b = (_predictor(folder, name, one) for folder, one in zip(folders, chosen, strict=True))
    names = (f"{folders[0].name} {a.name}", f"{folders[1].name} {b.name}")
    slices = slice_masks(folders[1].config(), b.ledger, column, shards) if column else None
    found = compare(a, b, names, column, slices)
    for folder, predictor in zip(folders, (a, b), strict=True):
        look_at(folder, folder.config(), [predictor])
    return found, looks_line(folders[1], folders[1].config(), b.ledger.meta)


def print_comparison(found: Comparison, uses: str, console: Console) -> None:
    """Print a comparison, and below it how often the test split was looked at."""
    console.print(render_comparison(found, console.width))
    if uses:
        console.print(f"\n{uses}", style="italic", markup=False, highlight=False)


def _predictor(folder: RunDir, split: str, name: str) -> Predictor:
    try:
        return predictor_of(folder, folder.config(), split, name)
    except ConfigError as error:
        raise ConfigError(f"--of: {folder.name}: {error}") from None
