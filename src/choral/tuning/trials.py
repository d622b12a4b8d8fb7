"""The trials as jobs: each is a run in RUN/tune/trials/NUMBER, started like `choral train` by hand.

Any number of processes, on machines that share a disk, can work on one search. A process that runs a trial holds a lock in
its directory. A trial whose process is gone is continued from its checkpoint, by the next process with a free slot, before
that process starts a new trial.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from choral.config import Config, TuneConfig
from choral.config.files import to_yaml, with_overrides
from choral.ensembles.member_jobs import progress_columns
from choral.jobs import Job, Outcome
from choral.runs.run_dir import RunDir, read_json, write_atomic
from choral.training.state import LOWER_IS_BETTER, WEIGHT_VARIANTS
from choral.tuning.space import Space, config_overrides
from choral.tuning.study import BASELINE, Study, Trial

METRICS_FILE = "metrics.jsonl"
_NOT_FINITE = "NotFinite"  # how the reason in status.json begins, see choral.training.finite_checks
Curve = list[float]


class TrialSource:
    """The job source of a search: unfinished trials without a process, then new ones, up to `tune.trials`.

    Args:
        root: RUN/tune.
        study: of the search.
        config: base config of the search, of one model.
        space: the search space.
        metric: that is optimised, as validations log it.

    Attributes:
        stopped: whether a trial was stopped from outside.
    """

    def __init__(self, root: Path, study: Study, config: Config, space: Space, metric: str) -> None:
        self._root, self._study, self._config, self._space, self._metric = root, study, config, space, metric
        self._claims: dict[str, IO[str]] = {}
        self._pruned: set[str] = set()
        self._exhausted = False
        self.stopped = False

    def next_job(self) -> Job | None:
        """Return the job of an unfinished trial without a process, else of a new trial, else None."""
        if self._exhausted:
            return None
        with file_lock(self._root / ".lock"):
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

    def should_end(self, job: Job) -> bool:
        """Return whether the pruner ends a running trial, from its validations so far."""
        if self._study.should_prune(int(job.name), read_validation_curve(RunDir(job.folder), self._metric)):
            self._pruned.add(job.name)
        return job.name in self._pruned

    def job_ended(self, outcome: Outcome) -> None:
        """Record in the study how a trial ended; one that was stopped from outside stays running and can be continued."""
        name, run_dir = outcome.job.name, RunDir(outcome.job.folder)
        number = int(name)
        if outcome.state == "stopped" and name not in self._pruned:
            self.stopped = True
        else:
            self._study.should_prune(number, read_validation_curve(run_dir, self._metric))
            best = read_json(run_dir.checkpoints / "best.json")
            if outcome.state == "done" and best is not None:
                value = float(best["value"]) * (1 if self._study.larger_is_better else -1)
                self._study.tell(number, "done", value)
            elif name in self._pruned or str(run_dir.status.get("reason", "")).startswith(_NOT_FINITE):
                self._study.tell(number, "ended early")
            else:
                self._study.tell(number, "failed")
        self._claims.pop(name).close()
        self._delete_checkpoints()

    def run_dir(self, trial: Trial) -> RunDir:
        """Return the run directory of a trial."""
        return RunDir(self._root / "trials" / trial.name)

    def trial_config(self, trial: Trial) -> Config:
        """Return the config of a trial's run."""
        changes = config_overrides(self._config, self._space, {} if trial.number == BASELINE else trial.point)
        tracking = self._config.tracking
        group = tracking.group or f"{self._config.run}-tune"
        base = self._config.replace(run=trial.name, tune=TuneConfig(), tracking=tracking.replace(group=group))
        return with_overrides(base, changes, f"trial {trial.name}")

    def _job(self, trial: Trial) -> Job:
        run_dir, config = self.run_dir(trial), self.trial_config(trial)
        write_atomic(run_dir.path / "requested.yaml", to_yaml(config))
        return Job(name=trial.name, command=train_command(run_dir, config), folder=run_dir.path)

    def _claim(self, trial: Trial) -> bool:
        """Lock a trial for this process; return False if another process has it. The lock ends with the process."""
        path = self.run_dir(trial).path / ".trial"
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("a", encoding="utf-8")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.close()
            return False
        self._claims[trial.name] = stream
        return True

    def _delete_checkpoints(self) -> None:
        """Delete the checkpoints of ended trials except for the best one and the baseline."""
        with file_lock(self._root / ".lock"):
            best = self._study.best()
            for trial in self._study.trials():
                if trial.state != "running" and trial.number not in (BASELINE, -1 if best is None else best.number):
                    shutil.rmtree(self.run_dir(trial).checkpoints, ignore_errors=True)


def train_command(run_dir: RunDir, config: Config) -> tuple[str, ...]:
    """Return the command that starts or continues the training of a trial."""
    return (
        *(sys.executable, "-m", "choral", "train", str(run_dir.path / "requested.yaml")),
        *("--folder", str(run_dir.path), "--processes", str(config.ensemble.devices_per_member)),
    )


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file, waiting for it if needed. The lock ends with the process, even if that is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def progress_of_trial(job: Job) -> Mapping[str, str]:
    """Return the columns of a trial in the live table."""
    return progress_columns(RunDir(job.folder).status)


def read_validation_curve(run_dir: RunDir, metric: str) -> Curve:
    """Return the metric of each validation of a run, in order.

    With several sets of weights (moving average, soup) it is the best finite value, and nan if none is finite.
    """
    path = run_dir.path / METRICS_FILE
    if not path.is_file():
        return []
    better = min if metric in LOWER_IS_BETTER else max
    curve: Curve = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            report = json.loads(line)
        except json.JSONDecodeError:
            continue  # the line is being written
        if report.get("split") != "val":
            continue
        values = [report[prefix + metric] for prefix in WEIGHT_VARIANTS if prefix + metric in report]
        finite = [float(value) for value in values if value is not None and math.isfinite(value)]
        curve.append(better(finite) if finite else math.nan)
    return curve
