"""Counts the starts and failures of a job that a scheduler restarts, in `attempts.json` in the job's directory.

SLURM_RESTART_COUNT does not show whether a start made progress or who requested it. This file does, and it is written
before a start, so that starts that die without a message count too.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from choral.core import files
from choral.core.errors import ChoralError


@dataclass(frozen=True)
class Attempts:
    """The counters of one job, as of its last start.

    slurm/train.sbatch reads the first three fields by their position in the file. An exit status alone does not
    show which process failed first, nor whether choral was started at all.

    Attributes:
        job: the scheduler's id of the job; the counters start at zero for another job.
        start: the scheduler's number of this start of the job.
        given_up: whether the job has failed for good.
        progress: step of the newest checkpoint at the last start; -1 for none.
        stalls: consecutive starts, including the last one, that found the job at `progress`.
        failures: starts that ended with an error.
    """

    job: str = ""
    start: str = ""
    given_up: bool = False
    progress: int = -1
    stalls: int = 0
    failures: int = 0

    @classmethod
    def read(cls, path: Path, job: str, start: str = "") -> Attempts:
        """Return the counters of `job`; all zero if the file is missing, damaged or belongs to another job."""
        try:
            stored = cls(**json.loads(path.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            stored = cls()
        return replace(stored if stored.job == job else cls(job=job), start=start)

    def record_start(self, path: Path, progress: int, max_stalls: int) -> Attempts:
        """Count a start that is about to happen; write and return the new state.

        Raises:
            ChoralError: `max_stalls` consecutive starts made no progress.
        """
        stalls = self.stalls + 1 if progress == self.progress else 1
        if stalls > max_stalls:
            raise ChoralError(
                f"started {max_stalls} times without progress beyond step {max(progress, 0)}, so it is not started "
                "again: look in the log for what ends it; if it is the time limit, give the job more time or save more "
                "often (train.save_every_steps)"
            )
        return replace(self, given_up=False, progress=progress, stalls=stalls)._write(path)

    def record_failure(self, path: Path) -> Attempts:
        """Count a failure; write and return the new state."""
        return replace(self, failures=self.failures + 1)._write(path)

    def give_up(self, path: Path) -> Attempts:
        """Mark the job as failed for good; write and return the new state."""
        return replace(self, given_up=True)._write(path)

    def _write(self, path: Path) -> Attempts:
        files.write_atomic(path, (json.dumps(asdict(self)) + "\n").encode())
        return self
