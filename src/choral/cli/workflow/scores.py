"""What is computed from ledgers: scores, combinations, and the tables of them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from choral.ensembles import score_run as scoring
from choral.ensembles.diversity_figure import draw_diversity
from choral.ensembles.diversity_table import render_diversity
from choral.ensembles.fitting_data import known_of
from choral.ensembles.missing_members import absent_from
from choral.ensembles.saved_combination import Asked, combine_run
from choral.ensembles.score_table import render
from choral.inference.trained_models import member_run_dirs
from choral.runs.run_dir import RunDir, write_atomic, write_json
from choral.scoring.predictor import evaluated
from choral.scoring.scoreboard.recording import record_combination, record_steps
from choral.scoring.scoreboard.test_set_uses import look_at_rows, looks_line


def score(folder: RunDir, split: str | None) -> scoring.Scores:
    """Score the ledger of a split and keep the result in the run folder.

    Args:
        folder: of the run.
        split: None: `assess.predictor.default_split`.

    Raises:
        DataError: the split has not been evaluated.
    """
    config = folder.config()
    ledger = evaluated(folder, config, split)
    name = ledger.meta.split
    references = [asdict(reference) for reference in config.references if reference.split == name]
    absent = absent_from(ledger.members, folder, config)
    scores = scoring.score_run(
        ledger,
        references,
        absent,
        configured=len(member_run_dirs(folder, config)),
        known=known_of(folder, config, ledger),
    )
    look_at_rows(folder, config, ledger.meta, scores["rows"])
    record_steps(folder, config, name)
    write_json(folder.path / f"scores-{name}.json", scores)
    if scores["diversity"] is not None:
        write_atomic(diversity_figure(folder, name), draw_diversity(scores["diversity"], name))
    return scores


def combine(folder: RunDir, split: str | None, asked: Asked) -> dict[str, Any]:
    """Combine what the members of a run said about a split; see `combine_run`.

    Args:
        folder: of the run.
        split: None: `assess.predictor.default_split`.
        asked: the rule and what belongs to it.
    """
    config = folder.config()
    ledger = evaluated(folder, config, split)
    name = ledger.meta.split
    found = combine_run(folder, config, name, asked)
    look_at_rows(folder, config, ledger.meta, found["scores"])
    record_combination(folder, config, name, found["name"])
    return found


def print_scores(scores: scoring.Scores, folder: RunDir, console: Console) -> None:
    """Print the table of scores, and of several members what they gain, why, and where the figure of it is."""
    console.print(render(scores))
    print_looks(folder, scores["split"], console)
    if scores["diversity"] is not None:
        console.print(render_diversity(scores["diversity"]))
        console.print(
            f"Figure: {diversity_figure(folder, scores['split'])}", markup=False, highlight=False, soft_wrap=True
        )


def print_looks(folder: RunDir, split: str, console: Console) -> None:
    """Print below a table of test scores how often that test split was looked at."""
    config = folder.config()
    if words := looks_line(folder, config, evaluated(folder, config, split).meta):
        console.print(words, style="italic", markup=False, highlight=False)


def diversity_figure(folder: RunDir, split: str) -> Path:
    """Return the path of the figure of what a split says about the gain and the diversity of members."""
    return folder.path / f"diversity-{split}.svg"


def scores_as_json(scores: scoring.Scores) -> str:
    """Return the scores for machines."""
    return scoring.to_json(scores)
