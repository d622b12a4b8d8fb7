"""Compares two runs: `choral compare`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from choral.cli.workflow.predictor_report import load_slices
from choral.core.errors import ConfigError
from choral.runs.run_dir import RunDir
from choral.scoring.compare import Comparison, compare_predictors
from choral.scoring.compare_table import render_comparison
from choral.scoring.predictor import Predictor, load_predictor, resolve_default_split
from choral.scoring.scoreboard.test_set_uses import build_test_set_uses_note, record_test_set_uses


def compare_runs(
    folders: tuple[RunDir, RunDir], split: str = "", of: Sequence[str] = (), column: str = "", shards: str = ""
) -> tuple[Comparison, str]:
    """Return how the second run differs from the first, and the note on uses of the test split.

    Args:
        folders: of the runs; the same one twice compares two of its predictors.
        split: "": the default split of the first run.
        of: the name of a predictor of both runs, or one name per run; none: the default predictor of each run.
        column: metadata column, whose values are compared one by one; "": none.
        shards: the packed directory; "": data.shards of the second run.

    Raises:
        ConfigError: more than two predictors, or an unknown one.
        DataError: the runs were not evaluated on the same samples; the message gives the reason.
    """
    if len(of) > 2:
        raise ConfigError(f"--of: expected one predictor for both runs, or one for each, got {', '.join(of)}")
    chosen = (*of, *of)[:2] if of else ("", "")
    name = split or resolve_default_split(folders[0], folders[0].config())
    a, b = (_load_predictor(folder, name, one) for folder, one in zip(folders, chosen, strict=True))
    names = (f"{folders[0].name} {a.name}", f"{folders[1].name} {b.name}")
    slices = load_slices(folders[1].config(), b.ledger, column, shards) if column else None
    found = compare_predictors(a, b, names, column, slices)
    for folder, predictor in zip(folders, (a, b), strict=True):
        record_test_set_uses(folder, folder.config(), [predictor])
    return found, build_test_set_uses_note(folders[1], folders[1].config(), b.ledger.meta)


def print_comparison(found: Comparison, uses: str, console: Console) -> None:
    """Print a comparison, and below it the number of uses of the test split."""
    console.print(render_comparison(found, console.width))
    if uses:
        console.print(f"\n{uses}", style="italic", markup=False, highlight=False)


def _load_predictor(folder: RunDir, split: str, name: str) -> Predictor:
    try:
        return load_predictor(folder, folder.config(), split, name)
    except ConfigError as error:
        raise ConfigError(f"--of: {folder.name}: {error}") from None
