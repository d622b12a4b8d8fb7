"""`choral probe`: probes a run through the launcher, and prints the curves as a table."""

from __future__ import annotations

import os
import sys

from rich.console import Console

from choral.analysis.probe_curves import ProbeCurves, ProbePredictions, compute_curves
from choral.analysis.probe_table import render_curves
from choral.analysis.probes.plan import plan_probes, probe_path
from choral.analysis.probes.request import ProbeRequest
from choral.cli.workflow.launch import gpus, launch
from choral.data.shards.index import Dataset
from choral.inference.ledger import Ledger
from choral.runs.run_dir import RunDir
from choral.scoring.predictor import Predictor
from choral.scoring.scoreboard.test_set_uses import build_test_set_uses_note, record_test_set_uses


def probe(request: ProbeRequest, processes: int = 0) -> int:
    """Probe a run through the launcher on this terminal, unless that is done, and return the exit status.

    `processes` 0: all GPUs, or one rank for each of up to four cores.

    Raises:
        ConfigError, ChoralError, DataError: before anything is started.
    """
    folder, config = request.folder, request.config()
    plan = plan_probes(config, folder, Dataset.open(config.data.shards), request.split, request.families)
    if plan.is_done and not request.force:
        print(f"{folder.path}: {request.split} has already been probed", file=sys.stderr)
        return 0
    if not processes and not gpus():
        processes = min(
            4, len(os.sched_getaffinity(0))
        )  # ranks scale better than threads, and results do not depend on their number
    return launch("choral.analysis.probes", request.arguments, processes, folder)


def read_probe_curves(folder: RunDir, split: str, families: tuple[str, ...] = ()) -> ProbeCurves:
    """Return the curves of a probed split; on a test split that counts as one use of it.

    Args:
        folder: of the run.
        split: that was probed.
        families: names; empty: all that were probed.

    Raises:
        DataError: it was not probed.
    """
    ledger = Ledger.open(probe_path(folder, split))
    probed = ProbePredictions(ledger)
    predictor = Predictor(probed.model, ledger, probed.predictions(None), ledger.meta.task != "regression")
    record_test_set_uses(folder, folder.config(), [predictor])
    return compute_curves(probed, folder.name).of(families)


def print_curves(folder: RunDir, curves: ProbeCurves, console: Console) -> None:
    """Print the table of curves; below that of a test split, how often the split was used."""
    console.print(render_curves(curves))
    if note := build_test_set_uses_note(folder, folder.config(), Ledger.open(probe_path(folder, curves.split)).meta):
        console.print(note, style="italic", markup=False, highlight=False)
