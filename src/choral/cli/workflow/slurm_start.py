"""One start of a training job that a scheduler may start several times."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from choral.cli.workflow.training import train_one
from choral.config import Config
from choral.core.errors import ChoralError, Stopped
from choral.ensembles.missing_members import clear_failure
from choral.jobs.attempts import Attempts
from choral.jobs.launcher import Machines
from choral.runs.checkpoints import step_from_path
from choral.runs.run_dir import RunDir


@dataclass(frozen=True)
class RestartPolicy:
    """When a job that a scheduler restarts gives up.

    Attributes:
        retries: how many failures end with exit status 75 (restart) instead of 1.
        max_stalls: consecutive starts without a newer checkpoint before the job fails.
    """

    retries: int
    max_stalls: int


def train_scheduled_start(
    config: Config,
    run_dir: RunDir,
    arguments: Sequence[str],
    processes: int,
    machines: Machines,
    policy: RestartPolicy,
) -> int:
    """Call `train_one` for a scheduler that restarts a job after exit status 75, and count starts and failures.

    Only the first machine counts, in RUN/attempts.json, separately for each job of the scheduler (SLURM_JOB_ID). It
    also records there that the job has given up.

    Raises:
        ChoralError: `policy.max_stalls` starts made no progress.
    """
    if machines.rank or run_dir.result is not None:
        return train_one(config, run_dir, arguments, processes, machines)
    path = run_dir.path / "attempts.json"
    newest = max((step_from_path(checkpoint) for checkpoint in run_dir.checkpoints.glob("step-*")), default=-1)
    run_dir.path.mkdir(parents=True, exist_ok=True)
    job, start = os.environ.get("SLURM_JOB_ID", ""), os.environ.get("SLURM_RESTART_COUNT", "0")
    attempts = Attempts.read(path, job, start)
    try:
        attempts = attempts.record_start(path, newest, policy.max_stalls)
    except ChoralError as error:
        attempts.give_up(path)
        run_dir.write_status(**{**run_dir.status, "state": "failed", "reason": str(error)})
        raise
    clear_failure(run_dir)
    try:
        code = train_one(config, run_dir, arguments, processes, machines)
    except ChoralError:
        attempts.give_up(path)
        raise
    if code not in (0, Stopped.exit_code):
        attempts = attempts.record_failure(path)
        if attempts.failures <= policy.retries:
            print(
                f"{run_dir.path}: failed; attempt {attempts.failures + 1} of {policy.retries + 1} follows",
                file=sys.stderr,
            )
            return Stopped.exit_code
        attempts.give_up(path)
    return code
