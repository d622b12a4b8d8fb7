"""What a job is and how it ended: the words that this machine and a cluster share."""

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
        command: program and arguments; no shell looks at them.
        folder: stdout and stderr are appended to its `log.txt`. Made where it does not exist, not entered.
        env: variables added to this process's environment; the slot's variables win over them.
    """

    name: str
    command: tuple[str, ...]
    folder: Path
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        """File of the job's output."""
        return self.folder / "log.txt"


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        state: "stopped" means that it did not get the chance to finish; the same call continues it.
        exit_code: of the last attempt, 128 + number for a signal; None if there was no attempt.
        attempts: starts of the command.
        log_tail: the last lines of the last attempt; empty for a job that is done.
        reason: why it failed, in words; else empty.
    """

    job: Job
    state: Literal["done", "failed", "stopped"]
    exit_code: int | None
    attempts: int
    log_tail: str = ""
    reason: str = ""

    @property
    def message(self) -> str:
        """The outcome in words; of a failed job with where its log is and how it ends."""
        if self.state != "failed":
            return f"{self.job.name}: {self.state}"
        attempts = f"{self.attempts} attempt{'' if self.attempts == 1 else 's'}"
        ending = "".join(f"\n  | {line}" for line in self.log_tail.splitlines())
        return f"{self.job.name}: failed, {self.reason} ({attempts}); log: {self.job.log}{ending}"


class Feed(Protocol):
    """Jobs that become known only as others end: a search, whose next step depends on what the steps before have shown."""

    def next(self) -> Job | None:
        """Return the next job, for a free slot; None: none as yet. Asked again whenever a slot is free."""

    def enough(self, job: Job) -> bool:
        """Return whether a running job is to be ended, since nobody needs the rest; called about once a second."""

    def ended(self, outcome: Outcome) -> None:
        """Take note of how a job of this feed has ended; one that was ended by `enough` counts as stopped."""


def describe_exit(code: int) -> str:
    """Return an exit status in words."""
    if code == 127:
        return "its command cannot be started"
    if code <= 128:
        return f"exit status {code}"
    try:
        name = signal.Signals(code - 128).name
    except ValueError:
        return f"exit status {code}"
    return f"killed by {name}{' (perhaps out of memory)' if name == 'SIGKILL' else ''}"
