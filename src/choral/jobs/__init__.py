"""Run commands in parallel and know how they ended; what the commands do is not known here."""

from choral.jobs.local import Job, Outcome, run_jobs

__all__ = ["Job", "Outcome", "run_jobs"]
