"""Run jobs in parallel on this machine: slots, retries, a clean stop, no orphan.

Each job runs under a guard (`guard.py`) in a process group of its own. All state is in the caller's folders: after an
interruption of any kind, kill -9 included, the same call starts what is not done again.
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
from choral.jobs.job import Feed, Job, Outcome, describe_exit
from choral.jobs.process import JobProcess

__all__ = ["Job", "Outcome", "run_jobs"]

GRACE_S = 60.0  # torchrun gives its workers 30 s
_POLL_S, _SHOW_S = 0.1, 1.0
_MAX_STALLS = 3  # restarts in a row after "stopped, run again" that got no further
_LOG_WAIT_S = ORPHAN_GRACE_S + 20.0  # that processes of a killed earlier run may take to end
_BACKSTOP_S = 15.0  # beyond the grace: a guard that has not ended by then does not work


def run_jobs(
    jobs: Sequence[Job],
    *,
    slots: Sequence[Mapping[str, str]],
    progress: Callable[[Job], Mapping[str, str]] | None = None,
    progress_token: Callable[[Job], object] | None = None,
    retries: int = 1,
    grace_s: float = GRACE_S,
    console: Console | None = None,
    kind: str = "job",
    feed: Feed | None = None,
) -> list[Outcome]:
    """Run jobs, as many at once as there are slots, and return how each ended, in the order of `jobs`, then of the feed.

    Exit status 0 is done. 75 is "stopped, run again": started again without counting as a failure, until it came three
    times in a row without progress. Anything else is a failure: started again up to `retries` times. A job that fails
    for good does not stop the others.

    SIGINT, SIGTERM and SIGHUP stop everything: each job's process group gets SIGTERM, and whatever is left of it after
    `grace_s` SIGKILL; a second Ctrl-C kills at once. The jobs then count as stopped, and the caller goes on. Signals
    are handled only if this is called in the main thread. If this process is killed, its jobs end by themselves.

    Args:
        jobs: with distinct names and folders.
        slots: one mapping of environment variables a slot.
        progress: what to show of a running job, as columns; called about once a second.
        progress_token: a value that changes when a job gets further, for instance its last checkpoint.
        retries: failures of a job that are tried again.
        grace_s: seconds between SIGTERM and SIGKILL.
        console: for the table or lines; stderr by default.
        kind: what a job is called in the table.
        feed: gives further jobs when those are started; it ends the call by giving none while none is running.

    Raises:
        ConfigError: no slot, no command, or two jobs with one name or folder.
    """
    if not jobs and feed is None:
        return []
    _check(jobs, slots)
    runner = _Runner(jobs, slots, progress_token, retries, grace_s, feed)
    with StopSignals() as signals, Display(console or Console(stderr=True), kind=kind) as display:
        next_show = 0.0
        try:
            runner.draw()
            while runner.unfinished:
                if signals.stop:
                    runner.stop(kill=signals.kill)
                runner.start_waiting()
                runner.collect()
                if runner.messages or time.monotonic() >= next_show:
                    next_show = time.monotonic() + _SHOW_S
                    runner.end_needless()
                    display.show(runner.rows(progress))
                    while runner.messages:
                        display.say(runner.messages.pop(0))
                runner.draw()
                if runner.unfinished:
                    time.sleep(_POLL_S)
        finally:
            runner.destroy()  # has nothing to do, unless an exception passes
        display.show(runner.rows(progress))
    return runner.outcomes()


@dataclass
class _Task:
    """A job on its way."""

    job: Job
    fed: bool = False  # by the feed
    state: Literal["waiting", "running", "stopping", "done", "failed", "stopped"] = "waiting"
    attempts: int = 0
    failures: int = 0
    stalls: int = 0
    token: object = None
    process: JobProcess | None = None
    slot: Mapping[str, str] = field(default_factory=dict)
    first_start: float = 0.0
    end: float = 0.0
    blocked_since: float | None = None  # by processes of an earlier run
    exit_code: int | None = None
    log_tail: str = ""
    reason: str = ""

    @property
    def outcome(self) -> Outcome:
        assert self.state in ("done", "failed", "stopped"), self.state
        return Outcome(self.job, self.state, self.exit_code, self.attempts, self.log_tail, self.reason)


class _Runner:
    """The queue, the slots and the rules for starting again."""

    def __init__(
        self,
        jobs: Sequence[Job],
        slots: Sequence[Mapping[str, str]],
        progress_token: Callable[[Job], object] | None,
        retries: int,
        grace_s: float,
        feed: Feed | None = None,
    ) -> None:
        self._feed = feed
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

    def draw(self) -> None:
        """Take jobs from the feed, a job for each slot that no waiting one will take."""
        if self._feed is None or self._stopping_since is not None:
            return
        while sum(task.state == "waiting" for task in self._tasks) < len(self._free_slots):
            job = self._feed.next()
            if job is None:
                return
            self._tasks.append(_Task(job, fed=True))
            _check([task.job for task in self._tasks], [{}])

    def end_needless(self) -> None:
        """Ask running jobs to end that the feed has enough of."""
        for task, process in self._active if self._feed is not None else ():
            if task.fed and task.state == "running" and self._feed is not None and self._feed.enough(task.job):
                task.state = "stopping"
                process.stop()

    def start_waiting(self) -> None:
        """Give free slots to waiting jobs, in order."""
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
                f"{task.job.name}: waiting for processes of an earlier run that are still at work in {task.job.folder}"
            )
        elif now - task.blocked_since > _LOG_WAIT_S:
            self._finish(
                task, "failed", f"processes of another run are at work in {task.job.folder}: end them, or wait for them"
            )

    def collect(self) -> None:
        """Take note of the jobs that have ended, and decide what comes next for them."""
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
            self.messages.append(f"{task.job.name}: stopped by itself (exit status 75); starting it again")

    def _after_failure(self, task: _Task, code: int) -> None:
        task.failures += 1
        if task.failures > self._retries:
            self._finish(task, "failed", describe_exit(code))
        else:
            task.state = "waiting"
            last = task.log_tail.splitlines()[-1:] or ["no output"]
            self.messages.append(f"{task.job.name}: {describe_exit(code)}, starting it again ({last[0]})")

    def _finish(self, task: _Task, state: Literal["done", "failed", "stopped"], reason: str = "") -> None:
        task.state, task.reason, task.end = state, reason, time.monotonic()
        if state == "failed":
            self.messages.append(task.outcome.message)
        if self._feed is not None and task.fed:
            self._feed.ended(task.outcome)

    def stop(self, kill: bool) -> None:
        """Stop all jobs, waiting ones at once; to be called again until none is left."""
        now = time.monotonic()
        if self._stopping_since is None:
            self._stopping_since = now
            self.messages.append(f"stopping: jobs have {self._grace_s:.0f} s to save; Ctrl-C again kills them at once")
            for task in self._tasks:
                if task.state == "waiting":
                    self._finish(task, "stopped")
            for task, process in self._active:
                if task.state != "stopping":  # already, by the feed
                    task.state = "stopping"
                    process.stop()
        if kill and not self._killed:
            self._killed = True
            for _, process in self._active:
                process.kill()
        if now - self._stopping_since > self._grace_s + _BACKSTOP_S:
            self.destroy()

    def destroy(self) -> None:
        """Kill what is running, without further ceremony."""
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
                except Exception as error:  # what is only shown must not end hours of work
                    columns = {"progress": f"{type(error).__name__}: {error}"}
            elapsed_s = (task.end or now) - task.first_start if task.attempts else 0.0
            rows.append(Row(task.job.name, task.state, task.attempts, elapsed_s, columns))
        return rows


def _check(jobs: Sequence[Job], slots: Sequence[Mapping[str, str]]) -> None:
    if not slots:
        raise ConfigError("jobs: no slot to run them in")
    for kind, values in (("name", [job.name for job in jobs]), ("folder", [str(job.folder) for job in jobs])):
        double = sorted({value for value in values if values.count(value) > 1})
        if double:
            raise ConfigError(f"jobs: two jobs have the {kind} {double[0]!r}; each needs its own")
    for job in jobs:
        if not job.command:
            raise ConfigError(f"jobs: {job.name} has no command")
