"""Separate run directories for the runs of a W&B sweep, since the sweep agent starts all of them with one command."""

from __future__ import annotations

import os

from choral.config import Config


def sweep_run_id() -> str:
    """Return the id that the sweep agent gave this process's run; "" outside of a sweep."""
    return os.environ.get("WANDB_RUN_ID", "") if os.environ.get("WANDB_SWEEP_ID") else ""


def with_sweep_run_name(config: Config) -> Config:
    """Return the config with the sweep's run id appended to the run name; unchanged outside of a sweep.

    The agent passes the id in the environment of the process that it starts, so a command line cannot contain it.
    """
    run = sweep_run_id()
    return config.replace(run=f"{config.run[: 63 - len(run)]}-{run}") if run else config
