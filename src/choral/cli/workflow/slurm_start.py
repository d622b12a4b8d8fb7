"""One start out of several that a scheduler makes of a training."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from choral.cli import workflow
from choral.config import Config
from choral.core.errors import ChoralError, Stopped
from choral.ensembles.missing_members import forget_failure
from choral.jobs.attempts import Attempts
from choral.jobs.launcher import Machines
from choral.runs.checkpoints import step_of
from choral.runs.run_dir import RunDir


def train_start(
    config: Config,
    folder: RunDir,
    arguments: Sequence[str],
    processes: int,
    machines: Machines,
    retries: int,
    max_stalls: int,
) -> int:
    """Like `workflow.train_one`, for a scheduler that starts a job again after exit status 75: counts starts, and ends them.

    The first machine counts, in RUN/attempts.json, for each job of the scheduler (SLURM_JOB_ID) anew, and says there when
    it gives up.

    Args:
        retries: a failure returns 75 so many times, before it returns 1.
        max_stalls: starts without a newer checkpoint in between.

    Raises:
        ChoralError: so many starts found the run where it is.
    """
    if machines.rank or folder.result is not None:
        return workflow.train_one(config, folder, arguments, processes, machines)
    path = folder.path / "attempts.json"
    newest = max((step_of(found) for found in folder.checkpoints.glob("step-*")), default=-1)
    folder.path.mkdir(parents=True, exist_ok=True)
    job, start = os.environ.get("SLURM_JOB_ID", ""), os.environ.get("SLURM_RESTART_COUNT", "0")
    attempts = Attempts.read(path, job, start)
    try:
        attempts = attempts.started(path, newest, max_stalls)
    except ChoralError as error:
        attempts.give_up(path)
        folder.report(**{**folder.status, "state": "failed", "reason": str(error)})
        raise
    forget_failure(folder)
    try:
        code = workflow.train_one(config, folder, arguments, processes, machines)
    except ChoralError:
        attempts.give_up(path)
        raise
    if code not in (0, Stopped.exit_code):
        attempts = attempts.failed(path)
        if attempts.failures <= retries:
            print(f"{folder.path}: failed; attempt {attempts.failures + 1} of {retries + 1} follows", file=sys.stderr)
            return Stopped.exit_code
        attempts.give_up(path)
    return code
