"""SLURM's commands: submit a script, look into the queue, cancel jobs. Only exit statuses and plain columns are read."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from choral.core.errors import ChoralError, ConfigError

# The others are on their way: pending, running, completing, requeued and so on.
_ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"),
    *("REVOKED", "TIMEOUT"),
}
_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Entry:
    """A job as the queue shows it; `reason` says why it waits, `nodes` where it runs."""

    state: str
    reason: str
    nodes: str

    @property
    def is_live(self) -> bool:
        """Whether it waits, runs, or will run again."""
        return self.state not in _ENDED


def is_here() -> bool:
    """Whether this machine can talk to a SLURM cluster."""
    return shutil.which("squeue") is not None


def read_queue() -> dict[str, Entry]:
    """Return this user's jobs by id, tasks of arrays one by one as "12_3"; those that ended lately are among them.

    Raises:
        ChoralError: the cluster does not answer.
    """
    words = ["squeue", "--noheader", "--array", "--states=all", f"--user={os.getuid()}", "--format=%i|%T|%r|%N"]
    entries = {}
    for line in _call(words).splitlines():
        if line.count("|") < 3:  # "CLUSTER: name", where SLURM_CLUSTERS names one
            continue
        job, state, reason, nodes = line.split("|", 3)
        entries[job.strip()] = Entry(state.strip(), "" if reason.strip() == "None" else reason.strip(), nodes.strip())
    return entries


def submit(words: Sequence[str]) -> str:
    """Run an `sbatch --parsable` command and return the job's id.

    Raises:
        ConfigError: SLURM refuses the job; its own words are passed on.
    """
    # What an allocation says of itself, where this is called within one, would become part of the new job.
    keep = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")
    env = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_") or key in keep}
    try:
        output = _call(words, env)
    except ChoralError as error:
        raise ConfigError(str(error)) from None
    job = output.strip().partition(";")[0]
    if re.fullmatch(r"\d+", job) is None:
        raise ChoralError(f"sbatch: expected the id of a job, got '{output.strip()}'")
    return job


def cancel(jobs: Iterable[str]) -> None:
    """Cancel jobs; those that have ended are left.

    Raises:
        ChoralError: the cluster does not answer.
    """
    _call(["scancel", *jobs])


def _call(words: Sequence[str], env: Mapping[str, str] | None = None) -> str:
    try:
        result = subprocess.run(words, env=env, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except FileNotFoundError:
        raise ChoralError(
            f"{words[0]}: no such command: this machine is no part of a SLURM cluster; `choral run` trains on it directly"
        ) from None
    except subprocess.TimeoutExpired:
        raise ChoralError(f"{words[0]}: no answer from the cluster within {_TIMEOUT_S:.0f} s") from None
    if result.returncode:
        lines = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
        raise ChoralError(f"{words[0]}: {'; '.join(line.removeprefix(f'{words[0]}: ') for line in lines)}")
    return result.stdout
