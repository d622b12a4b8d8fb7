"""SLURM's commands: submit a script, read the queue, cancel jobs. Only exit statuses and plain columns are parsed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from choral.core.errors import ChoralError, ConfigError

# All other states are live: pending, running, completing, requeued and so on.
_ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"),
    *("REVOKED", "TIMEOUT"),
}
_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class QueueEntry:
    """A job in the queue; `reason` is why it waits or ended, `nodes` where it runs."""

    state: str
    reason: str
    nodes: str

    @property
    def is_live(self) -> bool:
        """Whether the job waits, runs, or will run again."""
        return self.state not in _ENDED


def is_available() -> bool:
    """Return whether this machine has SLURM's commands."""
    return shutil.which("squeue") is not None


def read_queue() -> dict[str, QueueEntry]:
    """Return this user's jobs by id, including recently ended ones; each task of an array has its own id, such as "12_3".

    Raises:
        ChoralError: the cluster does not respond.
    """
    command = ["squeue", "--noheader", "--array", "--states=all", f"--user={os.getuid()}", "--format=%i|%T|%r|%N"]
    entries = {}
    for line in _call(command).splitlines():
        if line.count("|") < 3:  # "CLUSTER: name", where SLURM_CLUSTERS names one
            continue
        job, state, reason, nodes = line.split("|", 3)
        entries[job.strip()] = QueueEntry(
            state.strip(), "" if reason.strip() == "None" else reason.strip(), nodes.strip()
        )
    return entries


def submit(command: Sequence[str]) -> str:
    """Run an `sbatch --parsable` command and return the job's id.

    Raises:
        ConfigError: SLURM rejects the job; its message is included.
        ChoralError: sbatch does not print a job id.
    """
    # Inside an allocation, the SLURM_* variables that describe it would become options of the new job.
    keep = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")
    env = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_") or key in keep}
    try:
        output = _call(command, env)
    except ChoralError as error:
        raise ConfigError(str(error)) from None
    job = output.strip().partition(";")[0]
    if re.fullmatch(r"\d+", job) is None:
        raise ChoralError(f"sbatch: expected a job id, got '{output.strip()}'")
    return job


def cancel(jobs: Iterable[str]) -> None:
    """Cancel jobs; jobs that have ended are ignored.

    Raises:
        ChoralError: the cluster does not respond.
    """
    _call(["scancel", *jobs])


def _call(command: Sequence[str], env: Mapping[str, str] | None = None) -> str:
    try:
        result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except FileNotFoundError:
        raise ChoralError(
            f"{command[0]}: no such command: this machine is not part of a SLURM cluster; `choral run` trains on it directly"
        ) from None
    except subprocess.TimeoutExpired:
        raise ChoralError(f"{command[0]}: no response from the cluster within {_TIMEOUT_S:.0f} s") from None
    if result.returncode:
        lines = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
        raise ChoralError(f"{command[0]}: {'; '.join(line.removeprefix(f'{command[0]}: ') for line in lines)}")
    return result.stdout
