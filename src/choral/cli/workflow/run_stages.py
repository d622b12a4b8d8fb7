"""`choral run`: all stages of a run in order, skipping those whose result exists."""

from __future__ import annotations

import sys
import time

from rich.console import Console

from choral.cli.workflow.analysis import analyze
from choral.cli.workflow.bundle_forms import check_forms
from choral.cli.workflow.evaluation import evaluate
from choral.cli.workflow.export import export_stage
from choral.cli.workflow.scores import print_scores, score
from choral.cli.workflow.stages import EnsembleInputs, evaluate_earlier_models, prepare_ensemble, print_stage
from choral.cli.workflow.summary import Step, board_tables, print_summary, write_summary
from choral.cli.workflow.training import pack_if_missing, train_all
from choral.config import Config
from choral.core.errors import ChoralError, Stopped
from choral.inference.evaluation_request import EvaluationRequest
from choral.inference.run_models import member_run_dirs
from choral.runs.run_dir import RunDir, is_run_dir
from choral.scoring.scoreboard.recording import resolve_project


def run_all(config: Config, progress: Console, results: Console) -> int:
    """Run the stages of `config.stages` that are not done yet, print their results, and return the exit status."""
    started = time.monotonic()
    chosen = config.chosen_stages
    if "export" in chosen:
        check_forms(config.export.formats, ())  # before hours of training
    if "pack" in chosen:
        pack_if_missing(config, progress)
    inputs = prepare_ensemble(config, progress)
    folder, whole = RunDir.from_config(inputs.config), bool(inputs.runs)
    status = 0
    if "ensemble" in chosen:
        folder.check_same_config(inputs.config)
        if whole:
            print_stage("ensemble", progress)
        status = train_all(inputs.config, folder, progress)
        if status:
            trained = any(member.result for member in member_run_dirs(folder, inputs.config).values())
            if status == Stopped.exit_code or not trained:
                return status
    if "evaluate" in chosen:
        if whole:
            print_stage("evaluate", progress)
        evaluated = evaluate(EvaluationRequest(folder), processes=0)
        if evaluated:
            return evaluated
        evaluate_earlier_models(inputs.runs, inputs.config)
        if "analyze" in chosen:
            _write_page(folder, inputs.config)
        print_scores(score(folder, None), folder, results)
    if whole:
        _summarize(folder, inputs, results)
    if "export" in chosen:
        if whole:
            print_stage("export", progress)
        bundle = export_stage(folder, inputs.config, progress)
        results.print(f"Bundle: {bundle}  (choral predict {bundle} IMAGE...)", markup=False, highlight=False)
    minutes, seconds = divmod(int(time.monotonic() - started), 60)
    results.print(
        f"Run directory: {folder.path}  (this call took {minutes} min {seconds} s)", markup=False, highlight=False
    )
    if "evaluate" in chosen:
        results.print(f"Classify images: choral predict {folder.name} IMAGE...", markup=False, highlight=False)
        results.print(
            f"Compare with earlier steps: choral scores {resolve_project(config)}", markup=False, highlight=False
        )
        if "analyze" not in chosen:  # the first search for near-duplicates takes minutes
            results.print(f"Analyse errors: choral analyze {folder.name}", markup=False, highlight=False)
    return status


def _summarize(folder: RunDir, inputs: EnsembleInputs, results: Console) -> None:
    """Print the gain of each step, and write it as a page."""
    tables = board_tables((*inputs.runs, folder), inputs.config)
    print_summary(tables, folder, results)
    names = list(member_run_dirs(folder, inputs.config))
    models = f"{len(names)} models: {', '.join(names)}" if len(names) > 1 else "one model"
    links = ((f"analysis-{inputs.config.data.val_split}.html", f"Error analysis of {folder.name}"),)
    last = (Step("ensemble", f"{folder.name}: {models}", links),) if is_run_dir(folder.path) else ()
    path = write_summary(tables, (*inputs.steps, *last), folder)
    results.print(f"Gain of each step: {path}", markup=False, highlight=False, soft_wrap=True)


def _write_page(folder: RunDir, config: Config) -> None:
    """Write the error analysis of the validation split if it was evaluated; errors are reported, not raised."""
    if config.data.val_split not in config.evaluate.splits:
        return
    try:
        path = analyze(folder)
    except (ChoralError, OSError) as error:
        print(f"the error analysis of split {config.data.val_split} was not written: {error}", file=sys.stderr)
    else:
        print(f"Error analysis: {path}", file=sys.stderr)
