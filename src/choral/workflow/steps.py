"""All steps of a run in order, each skipped where its result is there."""

from __future__ import annotations

import time

from rich.console import Console

from choral.assess.recording import project_of
from choral.config import Config
from choral.errors import Stopped
from choral.predict.request import Request
from choral.predict.voices import member_folders
from choral.runfolder import RunFolder
from choral.workflow.evaluation import evaluate
from choral.workflow.scoring import print_scores, score
from choral.workflow.training import pack_if_missing, train_all


def run_all(config: Config, progress: Console, results: Console) -> int:
    """Do all steps that are not done yet, print the scores, and return the exit status."""
    started = time.monotonic()
    folder = RunFolder.of(config)
    folder.check_same(config)
    pack_if_missing(config, progress)
    status = train_all(config, folder, progress)
    if status:
        trained = any(member.result for member in member_folders(folder, config).values())
        if status == Stopped.exit_code or not trained:
            return status
    evaluated = evaluate(Request(folder), processes=0)
    if evaluated:
        return evaluated
    print_scores(score(folder, None), folder, results)
    minutes, seconds = divmod(int(time.monotonic() - started), 60)
    results.print(
        f"Run folder: {folder.path}  (this call took {minutes} min {seconds} s)", markup=False, highlight=False
    )
    results.print(f"Ask it: choral predict {folder.name} IMAGE...", markup=False, highlight=False)
    results.print(f"Beside earlier steps: choral scores {project_of(config)}", markup=False, highlight=False)
    return status
