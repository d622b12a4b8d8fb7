"""`Job` and `Outcome`: a command to run and how it ended, on this machine or on a cluster."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol


@dataclass(frozen=True)
class Job:
    """A command to run.

    Attributes:
        name: unique among the jobs of a call.
        command: program and arguments; no shell interprets them.
        folder: stdout and stderr are appended to `log.txt` in it. Created if missing; it is not the working directory.
        env: variables added to this process's environment; the variables of the slot override them.
    """

    name: str
    command: tuple[str, ...]
    folder: Path
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        """Path of the file that the job's output goes to."""
        return self.folder / "log.txt"


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        state: "stopped" means that the job was stopped before it finished; calling `run_jobs` again continues it.
        exit_code: of the last attempt, 128 + number for a signal; None if there was no attempt.
        attempts: how often the command was started.
        log_tail: last lines of the last attempt's output; empty for a job that is done.
        reason: why the job failed; empty otherwise.
    """

    job: Job
    state: Literal["done", "failed", "stopped"]
    exit_code: int | None
    attempts: int
    log_tail: str = ""
    reason: str = ""

    @property
    def message(self) -> str:
        """The outcome as text; for a failed job with the path and the last lines of its log."""
        if self.state != "failed":
            return f"{self.job.name}: {self.state}"
        attempts = f"{self.attempts} attempt{'' if self.attempts == 1 else 's'}"
        ending = "".join(f"\n  | {line}" for line in self.log_tail.splitlines())
        return f"{self.job.name}: failed, {self.reason} ({attempts}); log: {self.job.log}{ending}"


class JobSource(Protocol):
    """Creates jobs one at a time: for a search whose next trial depends on the results of the trials before."""

    def next_job(self) -> Job | None:
        """Return the next job for a free slot, or None for no job now. Called again whenever a slot is free."""

    def should_end(self, job: Job) -> bool:
        """Return whether a running job is no longer needed and should be stopped; called about once a second."""

    def job_ended(self, outcome: Outcome) -> None:
        """Handle the end of a job of this source; a job that `should_end` ended counts as stopped."""


def describe_exit(code: int) -> str:
    """Return an exit status as text, such as "exit status 1" or "killed by SIGTERM"."""
    if code == 127:
        return "its command cannot be started"
    if code <= 128:
        return f"exit status {code}"
    try:
        name = signal.Signals(code - 128).name
    except ValueError:
        return f"exit status {code}"
    return f"killed by {name}{' (perhaps out of memory)' if name == 'SIGKILL' else ''}"
