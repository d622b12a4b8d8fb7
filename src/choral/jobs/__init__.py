"""Run commands in parallel and know how they ended; what the commands do is not known here."""

from choral.jobs.job import Feed
from choral.jobs.local import Job, Outcome, run_jobs

__all__ = ["Feed", "Job", "Outcome", "run_jobs"]
