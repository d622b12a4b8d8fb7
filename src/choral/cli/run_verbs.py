"""The verbs that work on runs: show, train, ensemble, evaluate, run."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from choral.cli.consoles import stderr, stdout
from choral.cli.parser import Verbs, with_config
from choral.cli.workflow.evaluation import evaluate
from choral.cli.workflow.run_stages import run_all
from choral.cli.workflow.slurm_start import RestartPolicy, train_scheduled_start
from choral.cli.workflow.training import train_all, train_one
from choral.config import STAGES, Config, check_stages
from choral.config.fields import check
from choral.config.files import load_config
from choral.config.text import split_at_commas
from choral.core.errors import ConfigError
from choral.inference.evaluation_request import add_arguments, build_request
from choral.jobs.launcher import Machines
from choral.runs.run_dir import RunDir
from choral.tracking.sweep import with_sweep_run_name


def add_verbs(verbs: Verbs) -> None:
    """Add `show`, `train`, `ensemble`, `evaluate` and `run`."""
    verb = verbs.add(
        "show",
        show_verb,
        "choral show configs/elpv-demo.yaml augment.preset=heavy --out heavy.png",
        "Draw a contact sheet: training samples as in evaluation, and augmented as in the first epochs of training.\n"
        "Takes seconds and loads no model; the data must be packed.",
    )
    with_config(verb)
    verb.add_argument("--out", type=Path, metavar="FILE", help=".png or .jpg (default: show-RUN.png)")
    verb.add_argument("--samples", type=int, default=6, help="rows (default: %(default)s)")
    verb.add_argument("--epochs", type=int, default=5, help="augmented images per sample (default: %(default)s)")

    verb = verbs.add(
        "train",
        train_verb,
        "choral train configs/default.yaml data.shards=shards/ --processes 2",
        "Train one model, or continue its training. On a machine with GPUs, each process uses one GPU.",
    )
    with_config(verb)
    verb.add_argument("--processes", type=int, default=0, help="ranks (default: one per GPU; 1 without GPUs)")
    verb.add_argument("--folder", type=Path, help="the run directory, instead of runs/NAME")
    verb.add_argument("--machines", type=int, default=1, help="number of machines; each runs this command (default: 1)")
    verb.add_argument("--machine-rank", type=int, help="rank of this machine, from 0 (default: SLURM_NODEID, else 0)")
    verb.add_argument("--rendezvous", metavar="HOST:PORT", help="address of the first machine; needed with --machines")
    text = "for schedulers that requeue on exit status 75:"
    verb.add_argument("--retries", type=int, default=0, help=f"{text} failures to requeue (default: %(default)s)")
    verb.add_argument("--max-stalls", type=int, help=f"{text} give up after so many starts without a newer checkpoint")

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
        "Predict splits with every trained member and test-time view, and write the predictions. Each image is decoded once\n"
        "for all members and views. A stopped or killed command continues on any number of processes.\n\n"
        "Several runs, checkpoints or bundles are evaluated as one ensemble, a new run called --name:\n"
        "  choral evaluate elpv-demo elpv-svm runs/elpv-lp-ft/checkpoints/step-00000120 --name all\n"
        "Other data than the run's own, whose predictions are called test@customers:\n"
        "  choral evaluate elpv-demo --data customers=data/march --split test",
    )
    add_arguments(verb)
    verb.add_argument(
        "--processes", type=int, default=0, help="ranks (default: one per GPU; without GPUs one per core, at most four)"
    )
    _add_run_verb(verbs)


def _add_run_verb(verbs: Verbs) -> None:
    text = (
        "Pack, train all members, evaluate and score, skipping what is done. Run it again to continue.\n"
        "With stages=all it runs the whole workflow: a baseline, its error analysis, retraining with the advised\n"
        "augmentation, the ensemble, the test split at the end, and a page with the gain of each stage:\n"
        "  choral run configs/elpv-workflow.yaml\n"
        "  choral run configs/default.yaml data.shards=shards/ stages=all --skip improve"
    )
    verb = with_config(verbs.add("run", run_verb, "choral run configs/elpv-demo.yaml", text))
    stages = f"of {', '.join(STAGES)}"
    verb.add_argument(
        "--only", default="", metavar="A,B", help=f"only these stages, {stages} (default: those of the config)"
    )
    verb.add_argument("--skip", default="", metavar="A,B", help="skip these stages")
    verb.add_argument("--until", default="", metavar="STAGE", help="stop after this stage")


def show_verb(options: argparse.Namespace) -> int:
    """Draw a contact sheet of augmented training samples."""
    from choral.data.loading.contact_sheet import write_contact_sheet

    config = load_config(options.config, options.overrides)
    print(write_contact_sheet(config, options.out, options.samples, options.epochs))
    return 0


def train_verb(options: argparse.Namespace) -> int:
    """Train one model."""
    config = with_sweep_run_name(load_config(options.config, options.overrides))
    folder = RunDir(options.folder) if options.folder else RunDir.from_config(config)
    arguments, machines = [options.config, *options.overrides], _machines(options)
    if options.max_stalls is None:
        return train_one(config, folder, arguments, options.processes, machines)
    return train_scheduled_start(
        config, folder, arguments, options.processes, machines, RestartPolicy(options.retries, options.max_stalls)
    )


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
    return train_all(config, RunDir.from_config(config), stderr)


def evaluate_verb(options: argparse.Namespace) -> int:
    """Predict splits with a run, or with several as one ensemble."""
    return evaluate(build_request(options), options.processes)


def run_verb(options: argparse.Namespace) -> int:
    """Run the stages that are not done yet."""
    config = load_config(options.config, options.overrides)
    return run_all(_with_stages(config, options), stderr, stdout)


def _with_stages(config: Config, options: argparse.Namespace) -> Config:
    """Return the config with the stages that --only, --skip and --until select."""
    only, skipped, until = (split_at_commas(text) for text in (options.only, options.skip, options.until))
    for name, given in (("only", only), ("skip", skipped), ("until", until)):
        check_stages(given or ["all"], f"--{name}")
    check(len(until) <= 1 and "all" not in until, "--until", "expected one stage")
    check("all" not in skipped, "--skip", "expected some of the stages, not all of them")
    chosen = config.replace(stages=tuple(only)).chosen_stages if only else config.chosen_stages
    last = STAGES.index(until[0]) if until else len(STAGES)
    left = tuple(stage for stage in chosen if stage not in skipped and STAGES.index(stage) <= last)
    check(bool(left), "stages", f"--only, --skip and --until leave none of {', '.join(chosen)}")
    return config.replace(stages=left)
