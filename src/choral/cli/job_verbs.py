"""Verbs on a SLURM cluster's jobs: submit, status, cancel; the latter two for runs of this machine, too."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from choral.cli.parser import Parser, Verbs, stdout, with_config, with_run
from choral.cli.workflow.slurm_status import as_json, cancel_run, long_notes, render, status_of
from choral.cli.workflow.slurm_submit import show_submission, submit_run
from choral.config.files import load_config
from choral.jobs.slurm.scripts import Resources
from choral.jobs.slurm.site import load_site
from choral.runs.run_dir import RunDir


def add_job_verbs(verbs: Verbs) -> None:
    """Add submit, status and cancel."""
    verb = verbs.add(
        "submit",
        submit_verb,
        "choral submit configs/elpv-demo.yaml --partition gpu --gpus 4 --time 4:00:00 --max-parallel 8",
        "Submit a run to SLURM: members as an array (rounds of boosting as a chain), then an evaluation that answers with\n"
        "the members that are trained. Called again, it submits what is neither done nor in the queue. No torch needed.",
    )
    with_config(verb)
    add_resources(verb)
    verb.add_argument("--dry-run", action="store_true", help="print scripts and commands, and do nothing")

    text = (
        "Show each member of a run: in the queue, running, done, or failed and why. On a cluster and on this machine."
    )
    verb = with_run(
        verbs.add(
            "status",
            status_verb,
            "choral status elpv-demo",
            text + "\nExit status: 0 all done, 1 something failed, 75 something unfinished.",
        )
    )
    verb.add_argument("--json", action="store_true", help="for machines")
    text = "Cancel the jobs of a run, or stop the process of this machine that works on it. `submit` or `run` continues it."
    with_run(verbs.add("cancel", cancel_verb, "choral cancel elpv-demo", text))


def add_resources(verb: Parser) -> None:
    """Let a verb take what jobs of a cluster ask for."""
    for name in ("partition", "account", "qos", "constraint"):
        verb.add_argument(f"--{name}", default="", help=f"of the jobs (default: the site's {name})")
    verb.add_argument("--gpus", type=int, default=0, help="a node, one rank each (default: CPUs alone)")
    text = "a node (default: with GPUs what the cluster gives, else ensemble.devices_per_member)"
    verb.add_argument("--cpus", type=int, default=0, help=text)
    verb.add_argument("--mem", default="", help="a node, such as 32G")
    verb.add_argument("--nodes", type=int, default=1, help="a member (default: %(default)s)")
    verb.add_argument(
        "--time", default="", help="limit of each job, such as 4:00:00; it saves, and goes on in a new start"
    )
    verb.add_argument("--max-parallel", type=int, default=0, help="members at once (default: what the cluster lets)")
    text = "settings of the cluster (default: $CHORAL_SITE, else ~/.config/choral/site.yaml, if there is one)"
    verb.add_argument("--site", type=Path, metavar="FILE", help=text)


def resources_of(options: argparse.Namespace) -> Resources:
    """Return what parsed arguments ask for."""
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
    do = show_submission if options.dry_run else submit_run
    do(config, RunDir.of(config), resources_of(options), load_site(options.site), stdout)
    return 0


def status_verb(options: argparse.Namespace) -> int:
    """Show what the members of a run are doing."""
    folder = RunDir.find(options.run)
    status = status_of(folder)
    if options.json:
        print(json.dumps(as_json(status, folder.name), indent=1, ensure_ascii=False))
    else:
        stdout.print(render(status, folder.name))
        for note in long_notes(status):
            print(note)
    return status.exit_code


def cancel_verb(options: argparse.Namespace) -> int:
    """Cancel what is going on in a run."""
    for line in cancel_run(RunDir.find(options.run)) or ["nothing is running or waiting"]:
        print(line)
    return 0
