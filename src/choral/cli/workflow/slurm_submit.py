"""Submits a run as SLURM jobs: its members as an array, boosting rounds as a chain of dependent jobs, and an evaluation."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console

from choral.cli.workflow.training import check_run
from choral.config import Config, resolve_members
from choral.config.fields import check
from choral.core.errors import ChoralError
from choral.data.shards.index import Dataset
from choral.ensembles.member_jobs import build_pending_jobs
from choral.inference.evaluation_plan import plan_evaluation
from choral.inference.run_models import member_run_dirs
from choral.jobs.slurm import queue
from choral.jobs.slurm.queue import QueueEntry
from choral.jobs.slurm.scripts import Resources, has_torch, render_evaluation_script, render_training_script
from choral.jobs.slurm.site import Site
from choral.runs.run_dir import RunDir, read_json, write_atomic, write_json

_ENDING_TIMEOUT_S = 120.0  # how long a cancelled job may take to save


@dataclass
class SubmittedJobs:
    """Job ids of the last submission of each member and of the evaluation; stored in RUN/slurm/jobs.json."""

    members: dict[str, str] = field(default_factory=dict)
    evaluation: str = ""

    def __bool__(self) -> bool:
        """Return whether there are any jobs."""
        return bool(self.members or self.evaluation)

    @classmethod
    def read(cls, run_dir: RunDir) -> SubmittedJobs:
        """Return the jobs of a run; empty if it was never submitted."""
        stored = read_json(slurm_dir(run_dir) / "jobs.json") or {}
        return cls(dict(stored.get("members", {})), str(stored.get("evaluation", "")))

    def write(self, run_dir: RunDir) -> None:
        """Store the ids."""
        write_json(slurm_dir(run_dir) / "jobs.json", {"members": self.members, "evaluation": self.evaluation})

    def live(self, entries: Mapping[str, QueueEntry]) -> tuple[dict[str, QueueEntry], QueueEntry | None]:
        """Return the queue entries of the members, and of the evaluation, that wait or run."""
        members = {name: entries[job] for name, job in self.members.items() if job in entries and entries[job].is_live}
        evaluation = entries.get(self.evaluation)
        return members, evaluation if evaluation is not None and evaluation.is_live else None


def slurm_dir(run_dir: RunDir) -> Path:
    """Return the directory of a run for scripts, job ids and logs of SLURM."""
    return run_dir.path / "slurm"


def submit_run(config: Config, run_dir: RunDir, resources: Resources, site: Site, console: Console) -> None:
    """Submit the members that are neither done nor in the queue, and the evaluation; print the job ids.

    Raises:
        ConfigError, DataError: found before anything is submitted.
        ChoralError: another process uses the run directory; SLURM does not respond or rejects a job.
    """
    _check(config, run_dir, resources)
    scripts = _render_scripts(config, run_dir, resources, site)
    queue.read_queue()  # fails without a cluster, before anything is written
    with RunDir(slurm_dir(run_dir)).lock():  # two concurrent calls would submit everything twice
        entries = _wait_for_ending_jobs(run_dir, console)
        submission = _Submission(config, run_dir, resources, entries, lambda text: _print(console, text))
        if submission.new:
            with run_dir.lock():  # released before jobs are submitted: the first may start at once and need the lock
                run_dir.check_same_config(config)
                build_pending_jobs(config, run_dir)
                run_dir.store_config(config)
            submission.write_members()
        for name, text in scripts.items():
            write_atomic(slurm_dir(run_dir) / name, text)
        submission.send()


def _wait_for_ending_jobs(run_dir: RunDir, console: Console) -> Mapping[str, QueueEntry]:
    """Return the queue once no job of the run is ending; a job that was just cancelled still saves and counts as live."""
    deadline, announced = time.monotonic() + _ENDING_TIMEOUT_S, False
    while True:
        entries = queue.read_queue()
        members, evaluation = SubmittedJobs.read(run_dir).live(entries)
        states = [entry.state for entry in (*members.values(), evaluation) if entry is not None]
        if "COMPLETING" not in states or time.monotonic() > deadline:
            return entries
        if not announced:
            _print(console, "waiting for jobs of this run that are ending")
            announced = True
        time.sleep(1)


def print_submission(config: Config, run_dir: RunDir, resources: Resources, site: Site, console: Console) -> None:
    """Print the scripts and commands that `submit_run` would write and run, without doing so."""
    _check(config, run_dir, resources)
    entries = queue.read_queue() if queue.is_available() else {}
    for name, text in _render_scripts(config, run_dir, resources, site).items():
        _print(console, f"##### {slurm_dir(run_dir) / name}\n{text}")
    _print(console, "##### commands")
    _Submission(config, run_dir, resources, entries, lambda text: _print(console, text), dry_run=True).send()


def _check(config: Config, run_dir: RunDir, resources: Resources) -> None:
    run_dir.check_same_config(config)
    cwd = str(Path.cwd())
    check(not set(cwd) & set("%\\"), "submit", f"SLURM interprets % and \\ in the name of this folder: {cwd}")
    members = resolve_members(config)
    single = config.ensemble.boosting > 0 or not members
    check(not single or not resources.max_parallel, "--max-parallel", "this run has no members that can run at once")
    if not has_torch():  # on a login node; the jobs check the host transforms, which need torch
        config = config.replace(augment=config.augment.replace(host=()))
    check_run(config)


def _render_scripts(config: Config, run_dir: RunDir, resources: Resources, site: Site) -> dict[str, str]:
    """Return the run's scripts by filename."""
    ranks = config.ensemble.devices_per_member
    if not resources.gpus and not resources.cpus:
        resources = replace(resources, cpus=ranks)
    options, name, logs = resources.sbatch_options(site), f"choral-{run_dir.name}", slurm_dir(run_dir)
    settings = {"ranks": ranks, "retries": config.ensemble.retries, "max_stalls": 5}
    pattern = "train-%A_%a.log" if resolve_members(config) and not config.ensemble.boosting else "train-%j.log"
    return {
        "train.sbatch": render_training_script(name, logs / pattern, options, site, settings),
        "evaluate.sbatch": render_evaluation_script(f"{name}-evaluate"[:80], logs / "evaluate-%j.log", options, site),
    }


class _Submission:
    """One call of `choral submit`: decides which members need a job, and runs the sbatch commands in order."""

    def __init__(
        self,
        config: Config,
        run_dir: RunDir,
        resources: Resources,
        entries: Mapping[str, QueueEntry],
        print_line: Callable[[str], None],
        dry_run: bool = False,
    ) -> None:
        self._config, self._run_dir, self._resources = config, run_dir, resources
        self._print, self._dry_run = print_line, dry_run
        self._jobs = SubmittedJobs.read(run_dir)
        self._live, self._live_evaluation = self._jobs.live(entries)
        self._dry_jobs = 0
        self._names = list(member_run_dirs(run_dir, config))
        self._members_file = slurm_dir(run_dir) / "members.txt"
        # Lines keep their positions: tasks that are still in the queue read theirs when they start.
        lines = self._members_file.read_text(encoding="utf-8").splitlines() if self._members_file.is_file() else []
        self._member_lines = [*lines, *(name for name in self._names if name not in lines)]
        self._unfinished = [
            name
            for name, member in member_run_dirs(run_dir, config).items()
            if member.result is None or name in self._live
        ]
        self.new = [name for name in self._unfinished if name not in self._live]

    def write_members(self) -> None:
        """Write members.txt; line N is the member that task N of an array trains."""
        if resolve_members(self._config):
            write_atomic(self._members_file, "".join(f"{name}\n" for name in self._member_lines))

    def send(self) -> None:
        """Submit the training jobs and the evaluation."""
        new = self.new
        done = len(self._names) - len(self._unfinished)
        if done:
            self._print(f"{done} of {len(self._names)} already trained")
        for name, entry in self._live.items():
            self._print(f"{name}: already in the queue as job {self._jobs.members[name]} ({entry.state.lower()})")
        if self._config.ensemble.boosting:
            self._send_chain(new)
        elif new and resolve_members(self._config):
            self._send_array(new)
        elif new:
            self._record({new[0]: self._sbatch([], "train.sbatch")})
        self._send_evaluation(bool(new))

    def _send_array(self, names: Sequence[str]) -> None:
        tasks = {name: self._member_lines.index(name) + 1 for name in names}
        limit = f"%{self._resources.max_parallel}" if self._resources.max_parallel else ""
        job = self._sbatch([f"--array={','.join(map(str, tasks.values()))}{limit}"], "train.sbatch")
        self._record({name: f"{job}_{task}" for name, task in tasks.items()})

    def _send_chain(self, names: Sequence[str]) -> None:
        previous = ""
        for name in self._unfinished:
            if name in names:
                options = [f"--dependency=afterok:{previous}", "--kill-on-invalid-dep=yes"] if previous else []
                self._record({name: self._sbatch(options, "train.sbatch", name)})
            previous = self._jobs.members[name]

    def _send_evaluation(self, training: bool) -> None:
        if not training and self._live_evaluation is not None:
            self._print(f"evaluation: already in the queue as job {self._jobs.evaluation}")
            return
        if not self._unfinished and self._is_evaluated():
            self._print(f"everything is done: choral score {self._run_dir.name}")
            return
        if self._live_evaluation is not None and self._live_evaluation.state == "PENDING":
            self._print(f"evaluation: job {self._jobs.evaluation} would start too early and is replaced")
            if not self._dry_run:
                queue.cancel([self._jobs.evaluation])
        awaited = dict.fromkeys(self._jobs.members[name].partition("_")[0] for name in self._unfinished)
        options = [f"--dependency=afterany:{':'.join(awaited)}"] if awaited else []
        self._jobs.evaluation = self._sbatch(options, "evaluate.sbatch")
        if not self._dry_run:
            self._jobs.write(self._run_dir)
            self._print(f"evaluation: job {self._jobs.evaluation}")
            self._print(f"Progress: choral status {self._run_dir.name}")

    def _is_evaluated(self) -> bool:
        try:
            return not plan_evaluation(self._config, self._run_dir, Dataset.open(self._config.data.shards)).missing()
        except ChoralError:
            return False

    def _sbatch(self, options: Sequence[str], script: str, *member: str) -> str:
        command = [
            "sbatch",
            "--parsable",
            *options,
            str(slurm_dir(self._run_dir) / script),
            str(self._run_dir.path),
            *member,
        ]
        if not self._dry_run:
            return queue.submit(command)
        self._print(shlex.join(command))
        self._dry_jobs += 1
        return f"JOB{self._dry_jobs}"  # placeholder for the id that sbatch would print

    def _record(self, jobs: Mapping[str, str]) -> None:
        self._jobs.members |= jobs
        if not self._dry_run:
            self._jobs.write(self._run_dir)
            for name, job in jobs.items():
                self._print(f"{name}: job {job}")


def _print(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
