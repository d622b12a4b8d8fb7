"""Verbs on configs and runs: config, show, train, ensemble, evaluate, run."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

from choral.cli import workflow
from choral.cli.parser import Verbs, stderr, stdout, with_config
from choral.cli.workflow.slurm_start import train_start
from choral.config import STAGES, Config, check_stages
from choral.config.fields import check, split_at_commas
from choral.config.files import load_config, to_yaml
from choral.core.errors import ConfigError
from choral.inference.evaluation_request import add_arguments, request_of
from choral.jobs.launcher import Machines
from choral.runs.run_dir import RunDir
from choral.tracking.sweep import named_by_sweep


def add_run_verbs(verbs: Verbs) -> None:
    """Add the verbs from config to run."""
    example = "choral config configs/default.yaml data.shards=shards/ train.lr=3e-4"
    with_config(
        verbs.add(
            "config", config_verb, example, "Print the resolved config: defaults, base files, file and overrides."
        )
    )

    verb = verbs.add(
        "show",
        show_verb,
        "choral show configs/elpv-demo.yaml augment.preset=heavy --out heavy.png",
        "Draw a contact sheet: training samples as evaluation sees them, and as training does in its first epochs.\n"
        "Takes seconds, without a GPU and without a network; the data must be packed.",
    )
    with_config(verb)
    verb.add_argument("--out", type=Path, metavar="FILE", help=".png or .jpg (default: show-RUN.png)")
    verb.add_argument("--samples", type=int, default=6, help="rows (default: %(default)s)")
    verb.add_argument("--epochs", type=int, default=5, help="augmented images a sample (default: %(default)s)")

    verb = verbs.add(
        "train",
        train_verb,
        "choral train configs/default.yaml data.shards=shards/ --processes 2",
        "Train one network through Accelerate's launcher, or continue it. On a GPU machine a process is a GPU.",
    )
    with_config(verb)
    verb.add_argument("--processes", type=int, default=0, help="ranks (default: all GPUs; 1 without any)")
    verb.add_argument("--folder", type=Path, help="the run folder, instead of runs/NAME")
    verb.add_argument(
        "--machines", type=int, default=1, help="that train together, each with this command (default: 1)"
    )
    verb.add_argument("--machine-rank", type=int, help="of this machine, from 0 (default: SLURM_NODEID, else 0)")
    verb.add_argument("--rendezvous", metavar="HOST:PORT", help="of the first machine; with --machines")
    text = "for schedulers that start a job again after exit status 75:"
    verb.add_argument("--retries", type=int, default=0, help=f"{text} failures that end so (default: %(default)s)")
    verb.add_argument("--max-stalls", type=int, help=f"{text} starts without a newer checkpoint (default: no limit)")

    example = "choral ensemble configs/elpv-demo.yaml"
    with_config(
        verbs.add(
            "ensemble", ensemble_verb, example, "Train the members of an ensemble as parallel jobs on this machine."
        )
    )

    verb = verbs.add(
        "evaluate",
        evaluate_verb,
        "choral evaluate elpv-demo --split test --views d4",
        "Ask the trained members about splits, under every view, and write the prediction ledger. Each image is decoded\n"
        "once for all members and views. Stopped or killed, the same command goes on, on any number of processes.\n\n"
        "Several runs, checkpoints or bundles become one ensemble, a run called --name, to score, combine and predict with:\n"
        "  choral evaluate elpv-demo elpv-svm runs/elpv-lp-ft/checkpoints/step-00000120 --name all\n"
        "Other data, whose ledger is then called test@customers:\n"
        "  choral evaluate elpv-demo --data customers=data/march --split test",
    )
    add_arguments(verb)
    verb.add_argument(
        "--processes", type=int, default=0, help="ranks (default: all GPUs; without any, up to four cores)"
    )
    _add_run_verb(verbs)


def _add_run_verb(verbs: Verbs) -> None:
    text = (
        "Pack, train all members, evaluate and score: whatever is not done yet. Run it again to continue.\n"
        "With stages=all the whole workflow: a baseline, its error analysis, the augmentation that it advises tried and\n"
        "kept if it helps, the ensemble, the test split at last, and a page of what each step brought:\n"
        "  choral run configs/elpv-workflow.yaml\n"
        "  choral run configs/default.yaml data.shards=shards/ stages=all --skip improve"
    )
    verb = with_config(verbs.add("run", run_verb, "choral run configs/elpv-demo.yaml", text))
    several = f"of {', '.join(STAGES)}"
    verb.add_argument(
        "--only", default="", metavar="A,B", help=f"these stages, {several} (default: those of the config)"
    )
    verb.add_argument("--skip", default="", metavar="A,B", help="not these")
    verb.add_argument("--until", default="", metavar="STAGE", help="nothing after this one")


def config_verb(options: argparse.Namespace) -> int:
    """Print the resolved config."""
    sys.stdout.write(to_yaml(load_config(options.config, options.overrides)))
    return 0


def show_verb(options: argparse.Namespace) -> int:
    """Draw a contact sheet of augmented training samples."""
    from choral.data.loading.contact_sheet import contact_sheet

    config = load_config(options.config, options.overrides)
    print(contact_sheet(config, options.out, options.samples, options.epochs))
    return 0


def train_verb(options: argparse.Namespace) -> int:
    """Train one network through Accelerate's launcher."""
    config = named_by_sweep(load_config(options.config, options.overrides))
    folder = RunDir(options.folder) if options.folder else RunDir.of(config)
    arguments, machines = [options.config, *options.overrides], _machines(options)
    if options.max_stalls is None:
        return workflow.train_one(config, folder, arguments, options.processes, machines)
    return train_start(config, folder, arguments, options.processes, machines, options.retries, options.max_stalls)


def _machines(options: argparse.Namespace) -> Machines:
    if options.machines == 1:
        return Machines()
    rank = int(os.environ.get("SLURM_NODEID", "0")) if options.machine_rank is None else options.machine_rank
    host, _, port = (options.rendezvous or "").rpartition(":")
    if options.machines < 1 or not 0 <= rank < options.machines:
        raise ConfigError(f"--machines {options.machines} --machine-rank {rank}: expected ranks from 0 to machines - 1")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"--rendezvous: with several machines, expected HOST:PORT, got '{options.rendezvous or ''}'")
    return Machines(options.machines, rank, host, int(port))


def ensemble_verb(options: argparse.Namespace) -> int:
    """Train the members of an ensemble as parallel jobs."""
    config = load_config(options.config, options.overrides)
    return workflow.train_all(config, RunDir.of(config), stderr)


def evaluate_verb(options: argparse.Namespace) -> int:
    """Write the ledger of a run, or of several as one ensemble."""
    return workflow.evaluate(request_of(options), options.processes)


def run_verb(options: argparse.Namespace) -> int:
    """Pack, train, evaluate, score: whatever is not done yet."""
    config = load_config(options.config, options.overrides)
    return workflow.run_all(_with_stages(config, options), stderr, stdout)


def _with_stages(config: Config, options: argparse.Namespace) -> Config:
    """Return the config with the stages that the command line leaves."""
    only, skipped, until = (split_at_commas(text) for text in (options.only, options.skip, options.until))
    for name, given in (("only", only), ("skip", skipped), ("until", until)):
        check_stages(given or ["all"], f"--{name}")
    check(len(until) <= 1 and "all" not in until, "--until", "expected one stage")
    check("all" not in skipped, "--skip", "expected some of the stages, not all of them")
    chosen = replace(config, stages=tuple(only)).chosen_stages if only else config.chosen_stages
    last = STAGES.index(until[0]) if until else len(STAGES)
    left = tuple(stage for stage in chosen if stage not in skipped and STAGES.index(stage) <= last)
    check(bool(left), "stages", f"none is left of {', '.join(chosen)}: see --only, --skip and --until")
    return replace(config, stages=left)
