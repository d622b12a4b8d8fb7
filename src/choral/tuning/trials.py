"""The trials as jobs: each a run of its own in RUN/tune/trials/NUMBER, started as `choral train` would be by hand.

Any number of processes, on any machines that share the disk, can work on one search: who works on a trial holds a lock on
its folder. A trial whose process is gone is taken up, before a new one is begun, by whoever comes next; it continues from
its checkpoint.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO

from choral.config import Config, TuneConfig
from choral.config.files import to_yaml, with_overrides
from choral.ensembles.member_jobs import progress_columns
from choral.jobs import Job, Outcome
from choral.runs.run_dir import RunDir, read_json, write_atomic
from choral.training.state import LOWER_IS_BETTER, VARIANTS
from choral.tuning.space import Space, changes_of
from choral.tuning.study import BASELINE, Study, Trial

METRICS_FILE = "metrics.jsonl"
_NOT_FINITE = "NotFinite"  # how the reason in status.json begins, see choral.training.finite_checks
Curve = list[float]


class Trials:
    """The feed of `run_jobs`: trials that were left, then new ones, until there are as many as wanted.

    Args:
        root: RUN/tune.
        study: of the trials.
        config: of one network, which the search began with.
        space: what is searched.
        metric: which decides, as validations call it.
    """

    def __init__(self, root: Path, study: Study, config: Config, space: Space, metric: str) -> None:
        self._root, self._study, self._config, self._space, self._metric = root, study, config, space, metric
        self._claims: dict[str, IO[str]] = {}
        self._needless: set[str] = set()
        self._exhausted = False
        self.stopped = False

    def next(self) -> Job | None:
        """Return the job of a trial that nobody works on, else of a new one; None: there are as many as wanted."""
        if self._exhausted:
            return None
        with exclusive(self._root / ".lock"):
            trials = self._study.trials()
            for trial in trials:
                if trial.state == "running" and self._claim(trial):
                    return self._job(trial)
            if len(trials) < self._config.tune.trials:
                trial = self._study.ask()
                self._claim(trial)
                return self._job(trial)
        self._exhausted = True
        return None

    def enough(self, job: Job) -> bool:
        """Return whether the validations of a running trial so far are not worth going on."""
        if self._study.report(int(job.name), curve_of(RunDir(job.folder), self._metric)):
            self._needless.add(job.name)
        return job.name in self._needless

    def ended(self, outcome: Outcome) -> None:
        """Tell the study how a trial has ended; one that was stopped from outside stays as it is, to be continued."""
        name, folder = outcome.job.name, RunDir(outcome.job.folder)
        number = int(name)
        if outcome.state == "stopped" and name not in self._needless:
            self.stopped = True
        else:
            self._study.report(number, curve_of(folder, self._metric))
            best = read_json(folder.checkpoints / "best.json")
            if outcome.state == "done" and best is not None:
                value = float(best["value"]) * (1 if self._study.larger_is_better else -1)
                self._study.tell(number, "done", value)
            elif name in self._needless or str(folder.status.get("reason", "")).startswith(_NOT_FINITE):
                self._study.tell(number, "ended early")
            else:
                self._study.tell(number, "failed")
        self._claims.pop(name).close()
        self._drop_beaten()

    def folder(self, trial: Trial) -> RunDir:
        """Return the folder of a trial."""
        return RunDir(self._root / "trials" / trial.name)

    def config_of(self, trial: Trial) -> Config:
        """Return the config of a trial's run."""
        changes = changes_of(self._config, self._space, {} if trial.number == BASELINE else trial.point)
        tracking = self._config.tracking
        group = tracking.group or f"{self._config.run}-tune"
        own = replace(self._config, run=trial.name, tune=TuneConfig(), tracking=replace(tracking, group=group))
        return with_overrides(own, changes, f"trial {trial.name}")

    def _job(self, trial: Trial) -> Job:
        folder, config = self.folder(trial), self.config_of(trial)
        write_atomic(folder.path / "requested.yaml", to_yaml(config))
        return Job(name=trial.name, command=command_of(folder, config), folder=folder.path)

    def _claim(self, trial: Trial) -> bool:
        """Take a trial for this process, unless another has it; whoever ends, however, has it no longer."""
        path = self.folder(trial).path / ".trial"
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("a", encoding="utf-8")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.close()
            return False
        self._claims[trial.name] = stream
        return True

    def _drop_beaten(self) -> None:
        """Delete the checkpoints of trials that have ended and are neither the best nor the first."""
        with exclusive(self._root / ".lock"):
            best = self._study.best()
            for trial in self._study.trials():
                if trial.state != "running" and trial.number not in (BASELINE, -1 if best is None else best.number):
                    shutil.rmtree(self.folder(trial).checkpoints, ignore_errors=True)


def command_of(folder: RunDir, config: Config) -> tuple[str, ...]:
    """Return the command that trains a trial, or continues it."""
    return (
        *(sys.executable, "-m", "choral", "train", str(folder.path / "requested.yaml")),
        *("--folder", str(folder.path), "--processes", str(config.ensemble.devices_per_member)),
    )


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Wait until no other process is here, and hold the place; the lock ends with the process, also when that is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def columns_of(job: Job) -> Mapping[str, str]:
    """Return what the live table shows of a trial."""
    return progress_columns(RunDir(job.folder).status)


def curve_of(folder: RunDir, metric: str) -> Curve:
    """Return what a run's validations found, first to last: of each the best of its weights; nan where none is finite."""
    path = folder.path / METRICS_FILE
    if not path.is_file():
        return []
    better = min if metric in LOWER_IS_BETTER else max
    curve: Curve = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            report = json.loads(line)
        except json.JSONDecodeError:
            continue  # it is being written
        if report.get("split") != "val":
            continue
        values = [report[prefix + metric] for prefix in VARIANTS if prefix + metric in report]
        finite = [float(value) for value in values if value is not None and math.isfinite(value)]
        curve.append(better(finite) if finite else math.nan)
    return curve
