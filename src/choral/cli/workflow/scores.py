"""Scores and combinations of a run, computed from its ledgers, and their tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from choral.core.figures import write_figure
from choral.ensembles import score_run as scoring
from choral.ensembles.diversity_figure import draw_diversity
from choral.ensembles.diversity_table import render_diversity
from choral.ensembles.fitting_data import load_fitting_data
from choral.ensembles.missing_members import find_missing_columns
from choral.ensembles.saved_combination import CombinationRequest, combine_run
from choral.ensembles.score_table import render_scores
from choral.inference.run_models import member_run_dirs
from choral.runs.run_dir import RunDir, read_json, write_json
from choral.scoring.predictor import open_evaluated_ledger
from choral.scoring.scoreboard.recording import record_combination, record_steps
from choral.scoring.scoreboard.test_set_uses import build_test_set_uses_note, record_test_set_uses_from_rows


def score(run_dir: RunDir, split: str | None) -> scoring.Scores:
    """Score the ledger of a split and write the result to the run directory.

    Args:
        run_dir: of the run.
        split: None: that of `resolve_default_split`.

    Raises:
        DataError: the split has not been evaluated.
    """
    config = run_dir.config()
    ledger = open_evaluated_ledger(run_dir, config, split)
    name = ledger.meta.split
    references = [reference.model_dump() for reference in config.references if reference.split == name]
    missing_members = find_missing_columns(ledger.members, run_dir, config)
    scores = scoring.score_run(
        ledger,
        references,
        missing_members,
        configured=len(member_run_dirs(run_dir, config)),
        fitting_data=load_fitting_data(run_dir, config, ledger),
    )
    record_test_set_uses_from_rows(run_dir, config, ledger.meta, scores["rows"])
    record_steps(run_dir, config, name)
    path, figure = run_dir.path / f"scores-{name}.json", diversity_figure_path(run_dir, name)
    earlier = (read_json(path) or {}).get("diversity") if figure.is_file() else None
    write_json(path, scores)
    if scores["diversity"] is not None and json.loads(json.dumps(scores["diversity"])) != earlier:
        write_figure(
            figure, draw_diversity(scores["diversity"], name)
        )  # only if it would differ: matplotlib loads slowly
    return scores


def combine(run_dir: RunDir, split: str | None, request: CombinationRequest) -> dict[str, Any]:
    """Combine the predictions of a run's members on a split, see `combine_run`.

    Args:
        run_dir: of the run.
        split: None: that of `resolve_default_split`.
        request: the rule and its options.
    """
    config = run_dir.config()
    ledger = open_evaluated_ledger(run_dir, config, split)
    name = ledger.meta.split
    combination = combine_run(run_dir, config, name, request)
    record_test_set_uses_from_rows(run_dir, config, ledger.meta, combination["scores"])
    record_combination(run_dir, config, name, combination["name"])
    return combination


def print_scores(scores: scoring.Scores, run_dir: RunDir, console: Console) -> None:
    """Print the score table; for several members also their gain and diversity, and the path of the figure."""
    console.print(render_scores(scores))
    print_test_set_uses(run_dir, scores["split"], console)
    if scores["diversity"] is not None:
        console.print(render_diversity(scores["diversity"]))
        console.print(
            f"Figure: {diversity_figure_path(run_dir, scores['split'])}", markup=False, highlight=False, soft_wrap=True
        )


def print_test_set_uses(run_dir: RunDir, split: str, console: Console) -> None:
    """Print the number of uses of a test split, below a table of its scores."""
    config = run_dir.config()
    if note := build_test_set_uses_note(run_dir, config, open_evaluated_ledger(run_dir, config, split).meta):
        console.print(note, style="italic", markup=False, highlight=False)


def diversity_figure_path(run_dir: RunDir, split: str) -> Path:
    """Return the path of the figure of gain and diversity on a split."""
    return run_dir.path / f"diversity-{split}.svg"


def scores_as_json(scores: scoring.Scores) -> str:
    """Return the scores as JSON text."""
    return scoring.to_json(scores)
