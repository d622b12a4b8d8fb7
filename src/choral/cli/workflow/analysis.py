"""`choral analyze`: the errors of a run and the state of its data, as a page and as JSON."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID

from choral import __version__
from choral.analysis.page.highlights import find_highlights
from choral.analysis.page.report import render_report
from choral.analysis.page.stored_images import make_image_finder
from choral.analysis.results import Analysis
from choral.analysis.run_analysis import run_analysis
from choral.cli.workflow.evaluation import evaluate
from choral.config import Config
from choral.core.errors import ChoralError, ConfigError, Stopped
from choral.core.files import compute_sha256
from choral.core.pages.page import read_page_inputs
from choral.data.shards.index import Dataset
from choral.inference.evaluation_plan import HELD_OUT
from choral.inference.evaluation_request import EvaluationRequest
from choral.inference.external_data import open_ledger_index
from choral.inference.ledger import Ledger
from choral.runs.run_dir import RunDir, write_atomic
from choral.scoring.policy import policy_path
from choral.scoring.predictor import open_evaluated_ledger
from choral.scoring.scoreboard.test_set_uses import build_test_set_uses_note, is_test_split


def analyze(
    folder: RunDir,
    split: str = "",
    of: str = "",
    out: Path | None = None,
    *,
    force: bool = False,
    results: Console | None = None,
) -> Path:
    """Write the page of a split's analysis, unless it is there and up to date, and return its path.

    Args:
        folder: of the run.
        split: to analyze; "": data.val_split. A split that has not been evaluated is evaluated first, unless it is a test
            split.
        of: name of a predictor; "": the run's default.
        out: file to write; None: `page_path`.
        force: write the page again.
        results: console for the findings, which are printed even if the page is up to date.

    Raises:
        ConfigError: no such predictor, or `out` is a directory.
        DataError: a test split has not been evaluated, or the data are not where they were.
        Stopped: during evaluation; the same call continues.
        ChoralError: evaluation failed, or the page cannot be written.
    """
    config = folder.config()
    split = split or config.data.val_split
    path = out or page_path(folder, split)
    if path.is_dir():
        raise ConfigError(f"--out: {path} is a directory; expected a file name, such as {path / 'page.html'}")
    _evaluate_if_missing(folder, config, split)
    inputs = _compute_inputs(folder, config, split, of)
    unchanged = not force and read_page_inputs(path) == inputs
    if unchanged:
        print(f"{path}: up to date", file=sys.stderr)
    if unchanged and results is None:
        return path
    analysis = compute_analysis(folder, split, of)
    if not unchanged:
        note = build_test_set_uses_note(folder, config, open_evaluated_ledger(folder, config, split).meta)
        find = make_image_finder(_open_dataset(folder, config, split), config.data.train_split)
        write_atomic(path, render_report(analysis, find, config.data.max_pixels, inputs, note))
    if results is not None:
        for highlight in find_highlights(analysis):
            results.print(f"- {highlight.text}", markup=False, highlight=False, soft_wrap=True)
    return path


def compute_analysis(folder: RunDir, split: str = "", of: str = "") -> Analysis:
    """Return the analysis of a split, with progress on stderr; arguments and errors as in `analyze`.

    On a test split, it counts as one use of the split.
    """
    config = folder.config()
    split = split or config.data.val_split
    _evaluate_if_missing(folder, config, split)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done)

        return run_analysis(folder, config, split, of, progress=update)


def page_path(folder: RunDir, split: str) -> Path:
    """Return the default path of a split's page."""
    return folder.path / f"analysis-{split}.html"


def _evaluate_if_missing(folder: RunDir, config: Config, split: str) -> None:
    """Evaluate a split that has not been evaluated, unless it is a test split: using that is the user's decision.

    Raises:
        Stopped: the same call continues.
        ChoralError: evaluation failed; the reason has been printed.
    """
    if is_test_split(config, split) or (folder.predictions / f"{split}.parquet").is_file():
        return
    status = evaluate(EvaluationRequest(folder, split=split), processes=0)
    if status == Stopped.exit_code:
        raise Stopped(f"{folder.path}: stopped while split {split} was evaluated; run the same command again")
    if status:
        raise ChoralError(f"{folder.path}: split {split} could not be evaluated, see above")


def _compute_inputs(folder: RunDir, config: Config, split: str, of: str) -> str:
    """Return the checksum of everything that a page is made of.

    Ledgers are identified by their metadata, which name the weights that predicted them, other files by their contents.
    """
    ledgers = {path.stem: Ledger.open(path).meta.to_json() for path in sorted(folder.predictions.glob("*.parquet"))}
    files = [policy_path(folder), folder.path / "advice.json", folder.path / "probes" / f"{split}.parquet"]
    files += sorted((folder.path / "combined").glob("*/rule.json"))
    parts = {
        "choral": __version__,
        "request": [folder.name, split, of],
        "dataset": _open_dataset(folder, config, split).fingerprint,
        "ledgers": ledgers,
        "files": {str(path.relative_to(folder.path)): compute_sha256(path) for path in files if path.is_file()},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _open_dataset(folder: RunDir, config: Config, split: str) -> Dataset:
    return Dataset.open(config.data.shards) if split == HELD_OUT else open_ledger_index(folder, config, split).dataset
