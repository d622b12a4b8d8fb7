"""The verbs on jobs: submit to a SLURM cluster; status and cancel, also for runs of this machine."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from choral.cli.consoles import stdout
from choral.cli.parser import Parser, Verbs, with_config, with_run
from choral.cli.workflow.slurm_status import (
    cancel_run,
    long_notes,
    read_run_status,
    render_status_table,
    status_to_json,
)
from choral.cli.workflow.slurm_submit import print_submission, submit_run
from choral.config.files import load_config
from choral.jobs.slurm.scripts import Resources
from choral.jobs.slurm.site import load_site
from choral.runs.run_dir import RunDir


def add_verbs(verbs: Verbs) -> None:
    """Add `submit`, `status` and `cancel`."""
    verb = verbs.add(
        "submit",
        submit_verb,
        "choral submit configs/elpv-demo.yaml --partition gpu --gpus 4 --time 4:00:00 --max-parallel 8",
        "Submit a run to SLURM: its members as an array (boosting rounds as a chain), then an evaluation of those that were\n"
        "trained. Called again, it submits what is neither done nor queued. Needs no torch.",
    )
    with_config(verb)
    add_resources(verb)
    verb.add_argument("--dry-run", action="store_true", help="print scripts and commands without submitting")

    text = "Show the state of each member of a run: queued, running, done, or failed with the reason."
    verb = with_run(
        verbs.add(
            "status",
            status_verb,
            "choral status elpv-demo",
            text + "\nExit status: 0 all done, 1 something failed, 75 something is unfinished.",
        )
    )
    verb.add_argument("--json", action="store_true", help="print JSON")
    text = "Cancel the SLURM jobs of a run, or stop its process on this machine. `submit` or `run` continues it."
    with_run(verbs.add("cancel", cancel_verb, "choral cancel elpv-demo", text))


def add_resources(verb: Parser) -> None:
    """Add the options of the resources that SLURM jobs request."""
    for name in ("partition", "account", "qos", "constraint"):
        verb.add_argument(f"--{name}", default="", help=f"{name} of the jobs (default: that of the site file)")
    verb.add_argument("--gpus", type=int, default=0, help="GPUs per node, one rank each (default: CPUs only)")
    text = "CPU cores per node (default: with GPUs the cluster's default, else ensemble.devices_per_member)"
    verb.add_argument("--cpus", type=int, default=0, help=text)
    verb.add_argument("--mem", default="", help="memory per node, such as 32G")
    verb.add_argument("--nodes", type=int, default=1, help="nodes per member (default: %(default)s)")
    verb.add_argument(
        "--time", default="", help="time limit of each job, such as 4:00:00; it saves before, and is requeued"
    )
    verb.add_argument("--max-parallel", type=int, default=0, help="members at once (default: no limit)")
    text = "settings of the cluster (default: $CHORAL_SITE, else ~/.config/choral/site.yaml if it exists)"
    verb.add_argument("--site", type=Path, metavar="FILE", help=text)


def build_resources(options: argparse.Namespace) -> Resources:
    """Return the resources that the parsed options request."""
    return Resources(
        partition=options.partition,
        account=options.account,
        qos=options.qos,
        constraint=options.constraint,
        gpus=options.gpus,
        cpus=options.cpus,
        memory=options.mem,
        nodes=options.nodes,
        time=options.time,
        max_parallel=options.max_parallel,
    )


def submit_verb(options: argparse.Namespace) -> int:
    """Submit a run to a SLURM cluster."""
    config = load_config(options.config, options.overrides)
    action = print_submission if options.dry_run else submit_run
    action(config, RunDir.from_config(config), build_resources(options), load_site(options.site), stdout)
    return 0


def status_verb(options: argparse.Namespace) -> int:
    """Show the state of a run's members."""
    folder = RunDir.find(options.run)
    status = read_run_status(folder)
    if options.json:
        print(json.dumps(status_to_json(status, folder.name), indent=1, ensure_ascii=False))
    else:
        stdout.print(render_status_table(status, folder.name))
        for note in long_notes(status):
            print(note)
    return status.exit_code


def cancel_verb(options: argparse.Namespace) -> int:
    """Cancel the jobs of a run, or stop its process."""
    for line in cancel_run(RunDir.find(options.run)) or ["nothing is running or queued"]:
        print(line)
    return 0
