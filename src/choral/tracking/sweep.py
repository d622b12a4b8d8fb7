"""Runs that an agent of a W&B sweep starts: each in a folder of its own, for the agent gives them all the same command."""

from __future__ import annotations

import os
from dataclasses import replace

from choral.config import Config


def run_of_sweep() -> str:
    """Return the id that an agent gave the run of this process; "" outside of a sweep."""
    return os.environ.get("WANDB_RUN_ID", "") if os.environ.get("WANDB_SWEEP_ID") else ""


def named_by_sweep(config: Config) -> Config:
    """Return the config with the id of the sweep's run behind its name; outside of a sweep as it is.

    The agent tells both ids to the process that it starts, and to nobody before: no command line can contain them.
    """
    run = run_of_sweep()
    return replace(config, run=f"{config.run[: 63 - len(run)]}-{run}") if run else config
