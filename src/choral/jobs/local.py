"""Run jobs in parallel on this machine, with slots, retries, a clean stop and no orphaned processes.

Each job runs under a guard (`guard.py`) in its own process group. All state is in the caller's directories: after any
interruption, including kill -9, the same call restarts the jobs that are not done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rich.console import Console

from choral.core.errors import ConfigError, Stopped
from choral.core.stop_signals import StopSignals
from choral.jobs.display import Display, Row
from choral.jobs.guard import ORPHAN_GRACE_S
from choral.jobs.job import Job, JobSource, Outcome, describe_exit
from choral.jobs.process import JobProcess

__all__ = ["Job", "Outcome", "run_jobs"]

GRACE_S = 60.0  # torchrun gives its workers 30 s
_POLL_S, _DISPLAY_S = 0.1, 1.0
_MAX_STALLS = 3  # consecutive restarts after exit status 75 that made no progress
_LOG_WAIT_S = ORPHAN_GRACE_S + 20.0  # how long processes of a killed earlier run may take to end
_GUARD_TIMEOUT_S = 15.0  # after the grace period; a guard that still runs then is broken


def run_jobs(
    jobs: Sequence[Job],
    *,
    slots: Sequence[Mapping[str, str]],
    progress: Callable[[Job], Mapping[str, str]] | None = None,
    progress_token: Callable[[Job], object] | None = None,
    retries: int = 1,
    grace_s: float = GRACE_S,
    console: Console | None = None,
    label: str = "job",
    source: JobSource | None = None,
) -> list[Outcome]:
    """Run jobs, one per slot at a time, and return their outcomes, in the order of `jobs`, then of `source`.

    Exit status 0 means done. 75 means "stopped, run again": the job is restarted without counting a failure, unless that
    happened three times in a row without progress. Any other status is a failure; the job is restarted up to `retries`
    times. A job that fails for good does not stop the others.

    SIGINT, SIGTERM, SIGHUP and SIGUSR1 stop everything: each job's process group gets SIGTERM, and after `grace_s` the
    processes that are left get SIGKILL; a second Ctrl-C kills at once. These jobs count as stopped, and the call returns.
    Signals are handled only in the main thread. If this process is killed, its jobs end by themselves.

    Args:
        jobs: with distinct names and folders.
        slots: one mapping of environment variables per slot.
        progress: returns the columns to display for a job that was started; called about once a second.
        progress_token: returns a value that changes when a job makes progress, such as its newest checkpoint.
        retries: how many failures of a job are followed by a restart.
        grace_s: seconds between SIGTERM and SIGKILL.
        console: for the table or lines; stderr by default.
        label: heading of the column of job names.
        source: creates further jobs once all of `jobs` are started. The call ends when no job is running and it creates
            none.

    Raises:
        ConfigError: there is no slot, a job has no command, or two jobs share a name or folder.
    """
    if not jobs and source is None:
        return []
    _check(jobs, slots)
    runner = _Runner(jobs, slots, progress_token, retries, grace_s, source)
    with StopSignals() as signals, Display(console or Console(stderr=True), label=label) as display:
        next_display = 0.0
        try:
            runner.take_from_source()
            while runner.unfinished:
                if signals.stop:
                    runner.stop(kill=signals.kill)
                runner.start_waiting_jobs()
                runner.handle_ended_jobs()
                if runner.messages or time.monotonic() >= next_display:
                    next_display = time.monotonic() + _DISPLAY_S
                    runner.stop_unneeded_jobs()
                    display.update(runner.rows(progress))
                    while runner.messages:
                        display.print_message(runner.messages.pop(0))
                runner.take_from_source()
                if runner.unfinished:
                    time.sleep(_POLL_S)
        finally:
            runner.kill_all()  # does nothing unless an exception was raised
        display.update(runner.rows(progress))
    return runner.outcomes()


@dataclass
class _Task:
    """The state of one job."""

    job: Job
    from_source: bool = False
    state: Literal["waiting", "running", "stopping", "done", "failed", "stopped"] = "waiting"
    attempts: int = 0
    failures: int = 0
    stalls: int = 0
    token: object = None
    process: JobProcess | None = None
    slot: Mapping[str, str] = field(default_factory=dict)
    first_start: float = 0.0
    end: float = 0.0
    blocked_since: float | None = None  # since when processes of an earlier run hold its log
    exit_code: int | None = None
    log_tail: str = ""
    reason: str = ""

    @property
    def outcome(self) -> Outcome:
        assert self.state in ("done", "failed", "stopped"), self.state
        return Outcome(self.job, self.state, self.exit_code, self.attempts, self.log_tail, self.reason)


class _Runner:
    """Assigns jobs to slots, and restarts them."""

    def __init__(
        self,
        jobs: Sequence[Job],
        slots: Sequence[Mapping[str, str]],
        progress_token: Callable[[Job], object] | None,
        retries: int,
        grace_s: float,
        source: JobSource | None = None,
    ) -> None:
        self._source = source
        self._tasks = [_Task(job) for job in jobs]
        self._free_slots = list(slots)
        self._progress_token = progress_token or (lambda job: None)
        self._retries, self._grace_s = retries, grace_s
        self._stopping_since: float | None = None
        self._killed = False
        self.messages: list[str] = []

    @property
    def unfinished(self) -> list[_Task]:
        return [task for task in self._tasks if task.state not in ("done", "failed", "stopped")]

    @property
    def _active(self) -> list[tuple[_Task, JobProcess]]:
        return [(task, task.process) for task in self._tasks if task.process]

    def outcomes(self) -> list[Outcome]:
        return [task.outcome for task in self._tasks]

    def take_from_source(self) -> None:
        """Take a job from the source for each free slot that no waiting job will use."""
        if self._source is None or self._stopping_since is not None:
            return
        while sum(task.state == "waiting" for task in self._tasks) < len(self._free_slots):
            job = self._source.next_job()
            if job is None:
                return
            self._tasks.append(_Task(job, from_source=True))
            _check([task.job for task in self._tasks], [{}])

    def stop_unneeded_jobs(self) -> None:
        """Stop running jobs that the source no longer needs."""
        for task, process in self._active if self._source is not None else ():
            if (
                task.from_source
                and task.state == "running"
                and self._source is not None
                and self._source.should_end(task.job)
            ):
                task.state = "stopping"
                process.stop()

    def start_waiting_jobs(self) -> None:
        """Assign free slots to waiting jobs, in order."""
        for task in self._tasks:
            if not self._free_slots:
                return
            if task.state == "waiting" and self._stopping_since is None:
                self._start(task)

    def _start(self, task: _Task) -> None:
        slot = self._free_slots[0]
        token = self._progress_token(task.job)
        env = {**task.job.env, **slot}
        try:
            process = JobProcess.start(task.job.command, task.job.log, env, task.attempts + 1, self._grace_s)
        except OSError as error:
            self._finish(task, "failed", f"its log cannot be written ({error.strerror or error})")
            return
        now = time.monotonic()
        if process is None:
            self._wait_for_log(task, now)
            return
        self._free_slots.pop(0)
        task.process, task.slot, task.token, task.blocked_since = process, slot, token, None
        task.state = "running"
        task.attempts += 1
        task.first_start = task.first_start or now

    def _wait_for_log(self, task: _Task, now: float) -> None:
        if task.blocked_since is None:
            task.blocked_since = now
            self.messages.append(
                f"{task.job.name}: waiting for processes of an earlier run that still use {task.job.folder}"
            )
        elif now - task.blocked_since > _LOG_WAIT_S:
            self._finish(task, "failed", f"processes of another run use {task.job.folder}: end them, or wait for them")

    def handle_ended_jobs(self) -> None:
        """Free the slots of jobs that have ended, and finish or restart these jobs."""
        for task, process in self._active:
            code = process.poll()
            if code is None:
                continue
            task.exit_code, task.process = code, None
            self._free_slots.append(task.slot)
            task.log_tail = "" if code == 0 else process.log_tail()
            if code == 0:
                self._finish(task, "done")
            elif self._stopping_since is not None or task.state == "stopping":
                self._finish(task, "stopped")
            elif code == Stopped.exit_code:
                self._after_stop(task)
            else:
                self._after_failure(task, code)

    def _after_stop(self, task: _Task) -> None:
        task.stalls = task.stalls + 1 if self._progress_token(task.job) == task.token else 0
        if task.stalls >= _MAX_STALLS:
            self._finish(task, "failed", f"it stopped by itself {task.stalls} times in a row without progress")
        else:
            task.state = "waiting"
            self.messages.append(f"{task.job.name}: stopped by itself (exit status 75); restarting it")

    def _after_failure(self, task: _Task, code: int) -> None:
        task.failures += 1
        if task.failures > self._retries:
            self._finish(task, "failed", describe_exit(code))
        else:
            task.state = "waiting"
            last = task.log_tail.splitlines()[-1:] or ["no output"]
            self.messages.append(f"{task.job.name}: {describe_exit(code)}, restarting it ({last[0]})")

    def _finish(self, task: _Task, state: Literal["done", "failed", "stopped"], reason: str = "") -> None:
        task.state, task.reason, task.end = state, reason, time.monotonic()
        if state == "failed":
            self.messages.append(task.outcome.message)
        if self._source is not None and task.from_source:
            self._source.job_ended(task.outcome)

    def stop(self, kill: bool) -> None:
        """Stop all jobs; call it again until none is left. Waiting jobs end at once, running ones after saving."""
        now = time.monotonic()
        if self._stopping_since is None:
            self._stopping_since = now
            self.messages.append(f"stopping: jobs have {self._grace_s:.0f} s to save; Ctrl-C again kills them at once")
            for task in self._tasks:
                if task.state == "waiting":
                    self._finish(task, "stopped")
            for task, process in self._active:
                if task.state != "stopping":  # it is not being stopped already
                    task.state = "stopping"
                    process.stop()
        if kill and not self._killed:
            self._killed = True
            for _, process in self._active:
                process.kill()
        if now - self._stopping_since > self._grace_s + _GUARD_TIMEOUT_S:
            self.kill_all()

    def kill_all(self) -> None:
        """Kill all running jobs without a grace period."""
        for _, process in self._active:
            process.destroy()

    def rows(self, progress: Callable[[Job], Mapping[str, str]] | None) -> list[Row]:
        now = time.monotonic()
        rows = []
        for task in self._tasks:
            columns: Mapping[str, str] = {}
            if progress and task.attempts:
                try:
                    columns = progress(task.job)
                except Exception as error:  # a display error must not end hours of work
                    columns = {"progress": f"{type(error).__name__}: {error}"}
            elapsed_s = (task.end or now) - task.first_start if task.attempts else 0.0
            rows.append(Row(task.job.name, task.state, task.attempts, elapsed_s, columns))
        return rows


def _check(jobs: Sequence[Job], slots: Sequence[Mapping[str, str]]) -> None:
    if not slots:
        raise ConfigError("jobs: no slot to run them in")
    for attribute, values in (("name", [job.name for job in jobs]), ("folder", [str(job.folder) for job in jobs])):
        duplicates = sorted({value for value in values if values.count(value) > 1})
        if duplicates:
            raise ConfigError(f"jobs: two jobs have the {attribute} {duplicates[0]!r}; each needs its own")
    for job in jobs:
        if not job.command:
            raise ConfigError(f"jobs: {job.name} has no command")
