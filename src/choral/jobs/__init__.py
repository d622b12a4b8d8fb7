"""Run commands in parallel on this machine (`run_jobs`) or on a SLURM cluster (`jobs.slurm`).

In: `Job` objects, each a command with a directory for its log. Out: an `Outcome` for each. Nothing here knows what the
commands do. Open `job` first, then `local`.
"""

from choral.jobs.job import JobSource
from choral.jobs.local import Job, Outcome, run_jobs

__all__ = ["Job", "JobSource", "Outcome", "run_jobs"]
