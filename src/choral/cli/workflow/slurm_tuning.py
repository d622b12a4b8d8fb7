"""Submits a search to SLURM: jobs that each run `choral tune` in the same directory and share its trials."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from choral.cli.workflow.training import check_run
from choral.cli.workflow.tuning import prepare_search
from choral.config import Config
from choral.config.fields import check
from choral.config.files import to_yaml
from choral.ensembles.member_jobs import single_model_config
from choral.jobs.slurm import queue
from choral.jobs.slurm.scripts import Resources, has_torch, render_tuning_script
from choral.jobs.slurm.site import Site
from choral.runs.run_dir import RunDir, write_atomic


def submit_search(config: Config, jobs: int, resources: Resources, site: Site, console: Console, dry_run: bool) -> None:
    """Submit jobs that run the trials of a search, or with `dry_run` print the script and the command.

    More jobs can be submitted at any time, whether others are running or not.

    Args:
        config: of the run to tune.
        jobs: how many to submit, at least 1.
        resources, site: of each job.
        console: for the job id.
        dry_run: do not submit anything.

    Raises:
        ConfigError, DataError: found before anything is submitted.
        ChoralError: SLURM does not respond or rejects the jobs.
    """
    check(jobs >= 1, "--submit", "expected 1 or more jobs")
    check(resources.nodes == 1, "--nodes", "a trial runs on one node: expected 1")
    cwd = str(Path.cwd())
    check(not set(cwd) & set("%\\"), "--submit", f"SLURM interprets % and \\ in the name of this folder: {cwd}")
    if has_torch():
        prepare_search(config)
    else:  # on a login node; the jobs check whatever needs torch
        check_run(single_model_config(config, config.run).replace(augment=config.augment.replace(host=())))
    root = RunDir.from_config(config).path / "tune"
    if not resources.gpus and not resources.cpus:
        resources = replace(resources, cpus=config.ensemble.devices_per_member)
    script = render_tuning_script(
        f"choral-tune-{config.run}"[:80],
        root / "slurm" / "tune-%A_%a.log",
        resources.sbatch_options(site),
        site,
        {"ranks": config.ensemble.devices_per_member},
    )
    limit = f"%{resources.max_parallel}" if resources.max_parallel else ""
    path, requested = root / "slurm" / "tune.sbatch", root / "requested.yaml"
    command = ["sbatch", "--parsable", f"--array=1-{jobs}{limit}", str(path), str(requested)]

    def print_line(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    if dry_run:
        print_line(f"##### {path}\n{script}\n##### commands\n{shlex.join(command)}")
        return
    queue.read_queue()  # fails without a cluster, before anything is written
    write_atomic(path, script)
    write_atomic(requested, to_yaml(config))
    print_line(f"job {queue.submit(command)}: {jobs} tasks for {config.tune.trials} trials")
    print_line(f"Progress: choral tune {requested} --show")
