"""What a run should be trained with next: its validation images are probed, and what they advise is written beside it."""

from __future__ import annotations

from rich.console import Console

from choral.analysis.advice import Advice, write_advice
from choral.analysis.advice_from_probes import make_advice
from choral.analysis.probe_curves import make_curves, probe_predictions
from choral.analysis.probes.request import ProbeRequest
from choral.cli.workflow.probes import probe
from choral.core.errors import ChoralError, Stopped
from choral.runs.run_dir import RunDir


def advise(folder: RunDir, processes: int = 0) -> Advice:
    """Probe the validation split of a trained run, unless that is done, and write its advice: RUN/advice.yaml and .json.

    Args:
        folder: of the run.
        processes: ranks that probe; 0: all GPUs, or a few of the cores.

    Raises:
        Stopped: the same again continues.
        ChoralError: it is not trained, or could not be probed.
    """
    config = folder.config()
    split = config.data.val_split
    code = probe(ProbeRequest(folder, split), processes)
    if code == Stopped.exit_code:
        raise Stopped(f"{folder.path}: stopped while {split} was probed; run the same command again to continue")
    probed = probe_predictions(folder, config, split)
    if code or probed is None:
        raise ChoralError(f"{folder.path}: {split} could not be probed: see above")
    advice = make_advice(probed, make_curves(probed, folder.name), config.augment)
    write_advice(folder, advice)
    return advice


def print_advice(advice: Advice, console: Console) -> None:
    """Print what is advised and why, and what is not."""

    def say(words: str) -> None:
        console.print(words, markup=False, highlight=False)

    say(f"{advice.note}")
    for line in advice.lines:
        say(f"  augment.{', augment.'.join(f'{key}: {value}' for key, value in line.settings.items())}")
        say(f"    {line.reason}")
