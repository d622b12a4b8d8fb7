"""`choral analyze`: what is wrong with the answers of a run, and with its data, as a page and as JSON."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID

from choral import __version__
from choral.analysis.page.frame import inputs_of_page
from choral.analysis.page.highlights import highlights_of
from choral.analysis.page.report import report
from choral.analysis.page.stored_images import finder_of
from choral.analysis.results import Analysis
from choral.analysis.run_analysis import analysis_of
from choral.cli.workflow.evaluation import evaluate
from choral.config import Config
from choral.core.errors import ChoralError, ConfigError, Stopped
from choral.core.files import sha256_of
from choral.data.shards.index import Dataset
from choral.inference.evaluation_plan import HELD_OUT
from choral.inference.evaluation_request import Request
from choral.inference.external_data import index_of
from choral.inference.ledger import Ledger
from choral.runs.run_dir import RunDir, write_atomic
from choral.scoring.policy import answer_path
from choral.scoring.predictor import evaluated
from choral.scoring.scoreboard.test_set_uses import is_test, looks_line


def analyze(
    folder: RunDir,
    split: str = "",
    of: str = "",
    out: Path | None = None,
    *,
    force: bool = False,
    results: Console | None = None,
) -> Path:
    """Write the page of a split's errors, unless it is there and of what is there now, and return its path.

    Args:
        folder: of the run.
        split: that is analysed; "": data.val_split. Unless it holds test data, it is evaluated first where it has not been.
        of: the name of a predictor; "": what the run answers with.
        out: file to write; None: `analysis_page`.
        force: write it again.
        results: where what to look at first is printed, below a page that is there already, too.

    Raises:
        ConfigError: no such predictor, or `out` is a folder.
        DataError: the split holds test data and has not been evaluated, or the data are not where they were.
        Stopped: while it was evaluated; the same call continues.
        ChoralError: evaluation failed, or the page cannot be written.
    """
    config = folder.config()
    split = split or config.data.val_split
    path = out or analysis_page(folder, split)
    if path.is_dir():
        raise ConfigError(f"--out: {path} is a folder: give the name of a file, such as {path / 'page.html'}")
    _evaluate_if_missing(folder, config, split)
    inputs = _inputs_of(folder, config, split, of)
    unchanged = not force and inputs_of_page(path) == inputs
    if unchanged:
        print(f"{path}: already there, and nothing has changed since", file=sys.stderr)
    if unchanged and results is None:
        return path
    found = analyzed(folder, split, of)
    if not unchanged:
        note = looks_line(folder, config, evaluated(folder, config, split).meta)
        find = finder_of(_dataset_of(folder, config, split), config.data.train_split)
        write_atomic(path, report(found, find, config.data.max_pixels, inputs, note))
    if results is not None:
        for one in highlights_of(found):
            results.print(f"- {one.text}", markup=False, highlight=False, soft_wrap=True)
    return path


def analyzed(folder: RunDir, split: str = "", of: str = "") -> Analysis:
    """Return what `analyze` shows; arguments and errors are the same. Of test data, that is a look at them."""
    config = folder.config()
    split = split or config.data.val_split
    _evaluate_if_missing(folder, config, split)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def told(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        return analysis_of(folder, config, split, of, progress=told)


def analysis_page(folder: RunDir, split: str) -> Path:
    """Return where the page of a split lies."""
    return folder.path / f"analysis-{split}.html"


def _evaluate_if_missing(folder: RunDir, config: Config, split: str) -> None:
    """Evaluate a split that has not been, unless it holds test data: to look at these is for the user to decide.

    Raises:
        Stopped: it was stopped, and continues when called again.
        ChoralError: it failed; the reason has been printed.
    """
    if is_test(config, split) or (folder.predictions / f"{split}.parquet").is_file():
        return
    status = evaluate(Request(folder, split=split), processes=0)
    if status == Stopped.exit_code:
        raise Stopped(f"{folder.path}: stopped while split {split} was evaluated; run the same command again")
    if status:
        raise ChoralError(f"{folder.path}: split {split} could not be evaluated, see above")


def _inputs_of(folder: RunDir, config: Config, split: str, of: str) -> str:
    """Return a checksum of all that a page is made of.

    Ledgers are told apart by what predicted them, which they say, and other files by their contents.
    """
    ledgers = {path.stem: Ledger.open(path).meta.to_json() for path in sorted(folder.predictions.glob("*.parquet"))}
    files = [answer_path(folder), folder.path / "advice.json", folder.path / "probes" / f"{split}.parquet"]
    files += sorted((folder.path / "combined").glob("*/rule.json"))
    parts = {
        "choral": __version__,
        "asked": [folder.name, split, of],
        "dataset": _dataset_of(folder, config, split).fingerprint,
        "ledgers": ledgers,
        "files": {str(path.relative_to(folder.path)): sha256_of(path) for path in files if path.is_file()},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _dataset_of(folder: RunDir, config: Config, split: str) -> Dataset:
    return Dataset.open(config.data.shards) if split == HELD_OUT else index_of(folder, config, split).dataset
