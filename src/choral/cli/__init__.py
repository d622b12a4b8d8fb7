"""`choral VERB TARGET [key=value ...]`: one verb, one function. Results go to stdout, everything else to stderr.

Exit status: 0 done, 1 failed, 2 wrong usage, 75 stopped (run the same command again). A verb's module is imported when the
verb is used, so `--version` and `--help` import nothing but argparse.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from choral import __version__
from choral.cli.parser import Parser, Verb, Verbs
from choral.core.errors import ChoralError, ConfigError, did_you_mean

VERBS = {
    "pack": ("data_verbs", "Pack labelled images into WebDataset shards with an index."),
    "check": ("data_verbs", "Verify checksums, index and images of packed shards."),
    "ls": ("data_verbs", "Show classes, splits and sizes of packed shards."),
    "config": ("config_verb", "Print the resolved config, or the JSON schema of all keys."),
    "show": ("run_verbs", "Draw a contact sheet of augmented training samples."),
    "train": ("run_verbs", "Train one model, on one or several processes."),
    "ensemble": ("run_verbs", "Train the members of an ensemble as parallel jobs."),
    "evaluate": ("run_verbs", "Predict splits with every member and test-time view."),
    "run": ("run_verbs", "Pack, train, evaluate and score, skipping what is done."),
    "score": ("score_verb", "Print the metrics of a run, with confidence intervals."),
    "submit": ("job_verbs", "Submit a run to a SLURM cluster."),
    "status": ("job_verbs", "Show the state of a run's members."),
    "cancel": ("job_verbs", "Cancel the SLURM jobs of a run."),
    "tune": ("tune_verb", "Search for better hyperparameters with parallel trials."),
    "combine": ("combine_verbs", "Combine the members' predictions by a rule, and save the result."),
    "compare": ("board_verbs", "Compare two runs sample by sample."),
    "scores": ("board_verbs", "Show the scoreboard of a project."),
    "calibrate": ("calibrate_verb", "Calibrate a run's probabilities, and choose its decisions."),
    "analyze": ("analyze_verb", "Analyse the errors of a run and its data, on one HTML page."),
    "probe": ("probe_verb", "Measure a run's robustness to perturbed images."),
    "improve": ("improve_verb", "Retrain with the augmentation that the probes advise, and compare."),
    "export": ("export_verbs", "Export a run as a bundle, ONNX, torch.export or timm directory."),
    "verify": ("export_verbs", "Verify a bundle's checksums and golden samples."),
    "predict": ("predict_verb", "Classify images with a run or a bundle."),
    "serve": ("serve_verb", "Serve a bundle or a run over HTTP."),
}
"""Each verb's module in this package, and its line in the help."""

_HELP = """Example, on a folder with one subfolder of images per class:
  choral pack photos/ shards/
  choral run configs/default.yaml data.shards=shards/

Fine-tune pretrained image models, train ensembles as parallel jobs, and measure how reliable they are.

usage: choral VERB TARGET [key=value ...]

verbs:
{verbs}

`choral VERB --help` describes a verb, `choral --version` prints the version.
Exit status: 0 done, 1 failed, 2 wrong usage, 75 stopped: run the same command again."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status."""
    try:
        options = _parse(sys.argv[1:] if arguments is None else arguments)
        verb: Verb = options.verb
        return verb(options)
    except ChoralError as error:
        _report(f"error: {error}", "red")
        return error.exit_code
    except KeyboardInterrupt:
        _report("interrupted; run the same command again to continue")
        return 75
    except BrokenPipeError:  # `choral ls DIR | head`
        sys.stderr.close()
        return 1


def verb_parser(name: str) -> Parser:
    """Return the parser of one verb; imports the module of that verb only."""
    module, _ = VERBS[name]
    verbs = Verbs()
    import_module(f"choral.cli.{module}").add_verbs(verbs)
    return verbs.parsers[name]


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; a verb's parser accepts options before, between and after positional arguments."""
    first = arguments[0] if arguments else "--help"
    if first in ("-h", "--help"):
        width = max(map(len, VERBS))
        print(_HELP.format(verbs="\n".join(f"  {name:{width}}  {summary}" for name, (_, summary) in VERBS.items())))
        raise SystemExit(0 if arguments else 2)
    if first == "--version":
        print(f"choral {__version__}")
        raise SystemExit(0)
    if first not in VERBS:
        raise ConfigError(f"'{first}' is not a verb.{did_you_mean(first, VERBS)} See choral --help")
    return verb_parser(first).parse_intermixed_args(list(arguments[1:]))


def _report(message: str, style: str = "") -> None:
    from choral.cli.consoles import stderr  # rich is imported only to print

    stderr.print(message, style=style or None, markup=False, highlight=False, soft_wrap=True)
