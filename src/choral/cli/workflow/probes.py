"""Probes of a run: asked for through the launcher, read as curves, printed as a table."""

from __future__ import annotations

import os
import sys

from rich.console import Console

from choral.analysis.probe_curves import Curves, Probed, make_curves
from choral.analysis.probe_table import render_curves
from choral.analysis.probes.plan import plan_probes, probe_path
from choral.analysis.probes.request import ProbeRequest
from choral.cli.workflow.launch import gpus, launch
from choral.data.shards.index import Dataset
from choral.inference.ledger import Ledger
from choral.runs.run_dir import RunDir
from choral.scoring.predictor import Predictor
from choral.scoring.scoreboard.test_set_uses import look_at, looks_line


def probe(request: ProbeRequest, processes: int = 0) -> int:
    """Probe a run through the launcher, sharing this terminal, unless that is done; return the exit status.

    Without a number of processes: all GPUs, or a rank for each of up to four cores.

    Raises:
        ConfigError, ChoralError, DataError: found before anything is started.
    """
    folder, config = request.folder, request.config()
    plan = plan_probes(config, folder, Dataset.open(config.data.shards), request.split, request.families)
    if plan.is_done and not request.force:
        print(f"{folder.path}: {request.split} is already probed", file=sys.stderr)
        return 0
    if not processes and not gpus():
        processes = min(4, len(os.sched_getaffinity(0)))  # ranks scale better than threads, and change no figure
    return launch("choral.analysis.probes", request.words, processes, folder)


def probed_curves(folder: RunDir, split: str, families: tuple[str, ...] = ()) -> Curves:
    """Return the curves of a split that has just been probed; of a test split, that is a look at it.

    Args:
        folder: of the run.
        split: that was probed.
        families: names of those that are wanted; none: all that there are.

    Raises:
        DataError: it was not probed.
    """
    ledger = Ledger.open(probe_path(folder, split))
    probed = Probed(ledger)
    said = Predictor(probed.model, ledger, probed.predictions(None), ledger.meta.task != "regression")
    look_at(folder, folder.config(), [said])
    return make_curves(probed, folder.name).of(families)


def print_curves(folder: RunDir, curves: Curves, console: Console) -> None:
    """Print the table of curves, and below that of a test split how often that was looked at."""
    console.print(render_curves(curves))
    if words := looks_line(folder, folder.config(), Ledger.open(probe_path(folder, curves.split)).meta):
        console.print(words, style="italic", markup=False, highlight=False)
