"""How often a job was started without getting further, and how often it failed: the memory of a job that a scheduler
starts again and again.

A scheduler's own counter (SLURM_RESTART_COUNT) knows neither whether a start got further nor who asked for it. This one
stands in the job's folder and is written before a start, so that starts that end without a word count, too.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from choral.core import files
from choral.core.errors import ChoralError


@dataclass(frozen=True)
class Attempts:
    """What the last start of a job found.

    Attributes:
        job: what the scheduler calls the job; another job begins anew.
        start: what the scheduler calls this start of the job.
        given_up: whether the job failed for good. Its script reads these three, the first words of the file: an exit
            status alone does not tell who failed and who was killed because of it, nor whether we were started at all.
        progress: how far the job was, such as the step of its newest checkpoint.
        stalls: starts in a row, the last one included, that found it there.
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
        """Return what is known of a job, at a start; nothing where the file is missing, damaged or of another job."""
        try:
            known = cls(**json.loads(path.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            known = cls()
        return replace(known if known.job == job else cls(job=job), start=start)

    def started(self, path: Path, progress: int, max_stalls: int) -> Attempts:
        """Count a start, before it, and return the new state.

        Raises:
            ChoralError: `max_stalls` starts found the job where it is; another one would find it there as well.
        """
        stalls = self.stalls + 1 if progress == self.progress else 1
        if stalls > max_stalls:
            raise ChoralError(
                f"started {max_stalls} times without getting further than step {max(progress, 0)}, so it is not started "
                "again: look into the log for what ends it; if it is the time limit, give the job more time, or save more "
                "often (train.save_every_steps)"
            )
        return replace(self, given_up=False, progress=progress, stalls=stalls)._written(path)

    def failed(self, path: Path) -> Attempts:
        """Count a failure and return the new state."""
        return replace(self, failures=self.failures + 1)._written(path)

    def give_up(self, path: Path) -> Attempts:
        """Note that the job shall not be started again, and return the new state."""
        return replace(self, given_up=True)._written(path)

    def _written(self, path: Path) -> Attempts:
        files.write_atomic(path, (json.dumps(asdict(self)) + "\n").encode())
        return self
