"""A run as SLURM jobs: its members as an array, or as a chain where each builds on those before, and an evaluation."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console

from choral.cli.workflow import check_run
from choral.config import Config, members_of
from choral.config.fields import check
from choral.core.errors import ChoralError
from choral.data.shards.index import Dataset
from choral.ensembles.member_jobs import pending_jobs
from choral.inference.evaluation_plan import plan_evaluation
from choral.inference.trained_models import member_run_dirs
from choral.jobs.slurm import queue
from choral.jobs.slurm.queue import Entry
from choral.jobs.slurm.scripts import Resources, evaluation_script, has_torch, training_script
from choral.jobs.slurm.site import Site
from choral.runs.run_dir import RunDir, read_json, write_atomic, write_json

_ENDING_S = 120.0  # that a cancelled job may take to save


@dataclass
class Jobs:
    """The newest job of each member and of the evaluation, by id; kept in RUN/slurm/jobs.json."""

    members: dict[str, str] = field(default_factory=dict)
    evaluation: str = ""

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.members or self.evaluation)

    @classmethod
    def read(cls, folder: RunDir) -> Jobs:
        """Return the jobs of a run; none where it was never submitted."""
        known = read_json(slurm_folder(folder) / "jobs.json") or {}
        return cls(dict(known.get("members", {})), str(known.get("evaluation", "")))

    def write(self, folder: RunDir) -> None:
        """Keep them."""
        write_json(slurm_folder(folder) / "jobs.json", {"members": self.members, "evaluation": self.evaluation})

    def live(self, entries: Mapping[str, Entry]) -> tuple[dict[str, Entry], Entry | None]:
        """Return the entries of members, and of the evaluation, that wait or run."""
        members = {name: entries[job] for name, job in self.members.items() if job in entries and entries[job].is_live}
        evaluation = entries.get(self.evaluation)
        return members, evaluation if evaluation is not None and evaluation.is_live else None


def slurm_folder(folder: RunDir) -> Path:
    """Return where a run keeps what belongs to SLURM."""
    return folder.path / "slurm"


def submit_run(config: Config, folder: RunDir, resources: Resources, site: Site, console: Console) -> None:
    """Submit what is neither done nor in the queue, and say what that is.

    Raises:
        ConfigError, DataError: found before anything is submitted.
        ChoralError: another process works in the run's folder; SLURM does not answer or refuses.
    """
    _check(config, folder, resources)
    scripts = _scripts(config, folder, resources, site)
    queue.read_queue()  # that there is one, before a folder is made
    with RunDir(slurm_folder(folder)).lock():  # two calls at once would submit everything twice
        entries = _settled_queue(folder, console)
        submission = _Submission(config, folder, resources, entries, lambda text: _say(console, text))
        if submission.new:
            with folder.lock():  # not while jobs are sent: the first may start at once, and need it
                folder.check_same(config)
                pending_jobs(config, folder)
                folder.claim(config)
            submission.write_members()
        for name, text in scripts.items():
            write_atomic(slurm_folder(folder) / name, text)
        submission.send()


def _settled_queue(folder: RunDir, console: Console) -> Mapping[str, Entry]:
    """Return the queue once no job of the run is ending: what was cancelled a moment ago still saves, and looks alive."""
    deadline, said = time.monotonic() + _ENDING_S, False
    while True:
        entries = queue.read_queue()
        members, evaluation = Jobs.read(folder).live(entries)
        states = [entry.state for entry in (*members.values(), evaluation) if entry is not None]
        if "COMPLETING" not in states or time.monotonic() > deadline:
            return entries
        if not said:
            _say(console, "waiting for jobs of this run that are ending")
            said = True
        time.sleep(1)


def show_submission(config: Config, folder: RunDir, resources: Resources, site: Site, console: Console) -> None:
    """Print the scripts and commands that `submit_run` would write and run, and do nothing."""
    _check(config, folder, resources)
    entries = queue.read_queue() if queue.is_here() else {}
    for name, text in _scripts(config, folder, resources, site).items():
        _say(console, f"##### {slurm_folder(folder) / name}\n{text}")
    _say(console, "##### commands")
    _Submission(config, folder, resources, entries, lambda text: _say(console, text), dry=True).send()


def _check(config: Config, folder: RunDir, resources: Resources) -> None:
    folder.check_same(config)
    here = str(Path.cwd())
    check(not set(here) & set("%\\"), "submit", f"SLURM reads % and \\ in the name of this folder as patterns: {here}")
    members = members_of(config)
    single = config.ensemble.boosting > 0 or not members
    check(not single or not resources.max_parallel, "--max-parallel", "this run has no members that could run at once")
    if not has_torch():  # a login node: host transforms, which need it, are checked by the jobs
        config = replace(config, augment=replace(config.augment, host=()))
    check_run(config)


def _scripts(config: Config, folder: RunDir, resources: Resources, site: Site) -> dict[str, str]:
    """Return the run's scripts by file name."""
    ranks = config.ensemble.devices_per_member
    if not resources.gpus and not resources.cpus:
        resources = replace(resources, cpus=ranks)
    options, name, place = resources.options(site), f"choral-{folder.name}", slurm_folder(folder)
    settings = {"ranks": ranks, "retries": config.ensemble.retries, "max_stalls": 5}
    pattern = "train-%A_%a.log" if members_of(config) and not config.ensemble.boosting else "train-%j.log"
    return {
        "train.sbatch": training_script(name, place / pattern, options, site, settings),
        "evaluate.sbatch": evaluation_script(f"{name}-evaluate"[:80], place / "evaluate-%j.log", options, site),
    }


class _Submission:
    """The jobs of one call: which members still need one, and the commands in their order."""

    def __init__(
        self,
        config: Config,
        folder: RunDir,
        resources: Resources,
        entries: Mapping[str, Entry],
        say: Callable[[str], None],
        dry: bool = False,
    ) -> None:
        self._config, self._folder, self._resources, self._say, self._dry = config, folder, resources, say, dry
        self._jobs = Jobs.read(folder)
        self._live, self._live_evaluation = self._jobs.live(entries)
        self._shown = 0
        self._names = list(member_run_dirs(folder, config))
        self._list = slurm_folder(folder) / "members.txt"
        # Lines stay where they are, for tasks that still wait in the queue read them when they start.
        lines = self._list.read_text(encoding="utf-8").splitlines() if self._list.is_file() else []
        self._lines = [*lines, *(name for name in self._names if name not in lines)]
        self._unfinished = [
            name
            for name, member in member_run_dirs(folder, config).items()
            if member.result is None or name in self._live
        ]
        self.new = [name for name in self._unfinished if name not in self._live]

    def write_members(self) -> None:
        """Write members.txt, whose line N is the member of an array's task N."""
        if members_of(self._config):
            write_atomic(self._list, "".join(f"{name}\n" for name in self._lines))

    def send(self) -> None:
        """Submit the training jobs and the evaluation."""
        new = self.new
        done = len(self._names) - len(self._unfinished)
        if done:
            self._say(f"{done} of {len(self._names)} already trained")
        for name, entry in self._live.items():
            self._say(f"{name}: already in the queue as job {self._jobs.members[name]} ({entry.state.lower()})")
        if self._config.ensemble.boosting:
            self._send_chain(new)
        elif new and members_of(self._config):
            self._send_array(new)
        elif new:
            self._keep({new[0]: self._sbatch([], "train.sbatch")})
        self._send_evaluation(bool(new))

    def _send_array(self, names: Sequence[str]) -> None:
        tasks = {name: self._lines.index(name) + 1 for name in names}
        limit = f"%{self._resources.max_parallel}" if self._resources.max_parallel else ""
        job = self._sbatch([f"--array={','.join(map(str, tasks.values()))}{limit}"], "train.sbatch")
        self._keep({name: f"{job}_{task}" for name, task in tasks.items()})

    def _send_chain(self, names: Sequence[str]) -> None:
        before = ""
        for name in self._unfinished:
            if name in names:
                options = [f"--dependency=afterok:{before}", "--kill-on-invalid-dep=yes"] if before else []
                self._keep({name: self._sbatch(options, "train.sbatch", name)})
            before = self._jobs.members[name]

    def _send_evaluation(self, trains: bool) -> None:
        if not trains and self._live_evaluation is not None:
            self._say(f"evaluation: already in the queue as job {self._jobs.evaluation}")
            return
        if not self._unfinished and self._evaluated():
            self._say(f"everything is done: choral score {self._folder.name}")
            return
        if self._live_evaluation is not None and self._live_evaluation.state == "PENDING":
            self._say(f"evaluation: job {self._jobs.evaluation} would come too early, and is replaced")
            if not self._dry:
                queue.cancel([self._jobs.evaluation])
        waits_for = dict.fromkeys(self._jobs.members[name].partition("_")[0] for name in self._unfinished)
        options = [f"--dependency=afterany:{':'.join(waits_for)}"] if waits_for else []
        self._jobs.evaluation = self._sbatch(options, "evaluate.sbatch")
        if not self._dry:
            self._jobs.write(self._folder)
            self._say(f"evaluation: job {self._jobs.evaluation}")
            self._say(f"How far it is: choral status {self._folder.name}")

    def _evaluated(self) -> bool:
        try:
            return not plan_evaluation(self._config, self._folder, Dataset.open(self._config.data.shards)).missing()
        except ChoralError:
            return False

    def _sbatch(self, options: Sequence[str], script: str, *member: str) -> str:
        words = [
            "sbatch",
            "--parsable",
            *options,
            str(slurm_folder(self._folder) / script),
            str(self._folder.path),
            *member,
        ]
        if not self._dry:
            return queue.submit(words)
        self._say(shlex.join(words))
        self._shown += 1
        return f"JOB{self._shown}"  # what sbatch would print

    def _keep(self, jobs: Mapping[str, str]) -> None:
        self._jobs.members |= jobs
        if not self._dry:
            self._jobs.write(self._folder)
            for name, job in jobs.items():
                self._say(f"{name}: job {job}")


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
