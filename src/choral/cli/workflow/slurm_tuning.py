"""A search on a SLURM cluster: jobs that each run `choral tune` on the same folder, and share its trials."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from choral.cli.workflow import check_run
from choral.cli.workflow.tuning import search_of
from choral.config import Config
from choral.config.fields import check
from choral.config.files import to_yaml
from choral.ensembles.member_jobs import solo_config
from choral.jobs.slurm import queue
from choral.jobs.slurm.scripts import Resources, has_torch, tuning_script
from choral.jobs.slurm.site import Site
from choral.runs.run_dir import RunDir, write_atomic


def submit_search(config: Config, jobs: int, resources: Resources, site: Site, console: Console, dry: bool) -> None:
    """Submit so many jobs that work on a search, or print what would be done.

    More of them can be submitted at any time, while others are at work or when none is.

    Raises:
        ConfigError, DataError: found before anything is submitted.
        ChoralError: SLURM does not answer or refuses.
    """
    check(jobs >= 1, "--submit", "expected 1 or more jobs")
    check(resources.nodes == 1, "--nodes", "a trial has one node: expected 1")
    here = str(Path.cwd())
    check(
        not set(here) & set("%\\"), "--submit", f"SLURM reads % and \\ in the name of this folder as patterns: {here}"
    )
    if has_torch():
        search_of(config)
    else:  # a login node: what needs torch is checked by the jobs
        check_run(replace(solo_config(config, config.run), augment=replace(config.augment, host=())))
    root = RunDir.of(config).path / "tune"
    if not resources.gpus and not resources.cpus:
        resources = replace(resources, cpus=config.ensemble.devices_per_member)
    script = tuning_script(
        f"choral-tune-{config.run}"[:80],
        root / "slurm" / "tune-%A_%a.log",
        resources.options(site),
        site,
        {"ranks": config.ensemble.devices_per_member},
    )
    limit = f"%{resources.max_parallel}" if resources.max_parallel else ""
    path, requested = root / "slurm" / "tune.sbatch", root / "requested.yaml"
    words = ["sbatch", "--parsable", f"--array=1-{jobs}{limit}", str(path), str(requested)]

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    if dry:
        say(f"##### {path}\n{script}\n##### commands\n{shlex.join(words)}")
        return
    queue.read_queue()  # that there is one, before anything is written
    write_atomic(path, script)
    write_atomic(requested, to_yaml(config))
    say(f"job {queue.submit(words)}: {jobs} at work on {config.tune.trials} trials")
    say(f"How far it is: choral tune {requested} --show")
