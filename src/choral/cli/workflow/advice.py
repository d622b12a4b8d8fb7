"""Probes a run on validation images and writes the advice: what it should be trained with next."""

from __future__ import annotations

from rich.console import Console

from choral.analysis.advice import Advice, write_advice
from choral.analysis.advice_from_probes import make_advice
from choral.analysis.probe_curves import compute_curves, read_probe_predictions
from choral.analysis.probes.request import ProbeRequest
from choral.cli.workflow.probes import probe
from choral.core.errors import ChoralError, Stopped
from choral.runs.run_dir import RunDir


def advise(folder: RunDir, processes: int = 0) -> Advice:
    """Probe the validation split of a trained run, unless that is done, and write RUN/advice.yaml and RUN/advice.json.

    Args:
        folder: of the run.
        processes: ranks that probe; 0: all GPUs, or a few of the cores.

    Raises:
        Stopped: the same call continues.
        ChoralError: it is not trained, or could not be probed.
    """
    config = folder.config()
    split = config.data.val_split
    code = probe(ProbeRequest(folder, split), processes)
    if code == Stopped.exit_code:
        raise Stopped(f"{folder.path}: stopped while probing {split}; run the same command again to continue")
    probed = read_probe_predictions(folder, config, split)
    if code or probed is None:
        raise ChoralError(f"{folder.path}: {split} probing failed, see above")
    advice = make_advice(probed, compute_curves(probed, folder.name), config.augment)
    write_advice(folder, advice)
    return advice


def print_advice(advice: Advice, console: Console) -> None:
    """Print the note, and the settings and reason of each line."""

    def print_line(text: str) -> None:
        console.print(text, markup=False, highlight=False)

    print_line(advice.note)
    for line in advice.lines:
        print_line(f"  augment.{', augment.'.join(f'{key}: {value}' for key, value in line.settings.items())}")
        print_line(f"    {line.reason}")
