"""All stages of a run in order, each skipped where its result is there."""

from __future__ import annotations

import sys
import time

from rich.console import Console

from choral.cli.workflow.analysis import analyze
from choral.cli.workflow.bundle_forms import check_forms
from choral.cli.workflow.evaluation import evaluate
from choral.cli.workflow.export import export_stage
from choral.cli.workflow.scores import print_scores, score
from choral.cli.workflow.stages import Before, before_ensemble, evaluate_steps, say_stage
from choral.cli.workflow.summary import Step, board_tables, print_summary, write_summary
from choral.cli.workflow.training import pack_if_missing, train_all
from choral.config import Config
from choral.core.errors import ChoralError, Stopped
from choral.inference.evaluation_request import Request
from choral.inference.trained_models import member_run_dirs
from choral.runs.run_dir import RunDir, is_run
from choral.scoring.scoreboard.recording import project_of


def run_all(config: Config, progress: Console, results: Console) -> int:
    """Do the stages of `config.stages` that are not done yet, print what came of them, and return the exit status."""
    started = time.monotonic()
    chosen = config.chosen_stages
    if "export" in chosen:
        check_forms(config.export.formats, ())  # before hours of training
    if "pack" in chosen:
        pack_if_missing(config, progress)
    before = before_ensemble(config, progress)
    folder, whole = RunDir.of(before.config), bool(before.runs)
    status = 0
    if "ensemble" in chosen:
        folder.check_same(before.config)
        if whole:
            say_stage("ensemble", progress)
        status = train_all(before.config, folder, progress)
        if status:
            trained = any(member.result for member in member_run_dirs(folder, before.config).values())
            if status == Stopped.exit_code or not trained:
                return status
    if "evaluate" in chosen:
        if whole:
            say_stage("evaluate", progress)
        evaluated = evaluate(Request(folder), processes=0)
        if evaluated:
            return evaluated
        evaluate_steps(before.runs, before.config)
        if "analyze" in chosen:
            _write_page(folder, before.config)
        print_scores(score(folder, None), folder, results)
    if whole:
        _summarize(folder, before, results)
    if "export" in chosen:
        if whole:
            say_stage("export", progress)
        bundle = export_stage(folder, before.config, progress)
        results.print(
            f"It answers elsewhere: {bundle} (choral predict {bundle} IMAGE...)", markup=False, highlight=False
        )
    minutes, seconds = divmod(int(time.monotonic() - started), 60)
    results.print(
        f"Run folder: {folder.path}  (this call took {minutes} min {seconds} s)", markup=False, highlight=False
    )
    if "evaluate" in chosen:
        results.print(f"Ask it: choral predict {folder.name} IMAGE...", markup=False, highlight=False)
        results.print(f"Beside earlier steps: choral scores {project_of(config)}", markup=False, highlight=False)
        if "analyze" not in chosen:  # its first look for duplicates takes minutes, which nobody asked for
            results.print(f"What it gets wrong: choral analyze {folder.name}", markup=False, highlight=False)
    return status


def _summarize(folder: RunDir, before: Before, results: Console) -> None:
    """Print what each step has brought, and write it as a page."""
    tables = board_tables((*before.runs, folder), before.config)
    print_summary(tables, folder, results)
    names = list(member_run_dirs(folder, before.config))
    said = (
        f"{folder.name}: {len(names)} networks: {', '.join(names)}" if len(names) > 1 else f"{folder.name}: one network"
    )
    links = ((f"analysis-{before.config.data.val_split}.html", f"What {folder.name} gets wrong"),)
    last = (Step("ensemble", said, links),) if is_run(folder.path) else ()
    path = write_summary(tables, (*before.steps, *last), folder)
    results.print(f"What each step brought: {path}", markup=False, highlight=False, soft_wrap=True)


def _write_page(folder: RunDir, config: Config) -> None:
    """Write the page about validation data, if these were evaluated; what goes wrong is said, and costs no evaluation."""
    if config.data.val_split not in config.evaluate.splits:
        return
    try:
        path = analyze(folder)
    except (ChoralError, OSError) as error:
        print(f"there is no page about split {config.data.val_split}: {error}", file=sys.stderr)
    else:
        print(f"What it gets wrong: {path}", file=sys.stderr)
