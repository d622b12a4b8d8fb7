"""How a step that computes is started: ranks through the launcher, in this terminal."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

from choral.core.errors import ConfigError, Stopped
from choral.jobs.launcher import Machines, launch_command, run_in_foreground
from choral.runs.run_dir import RunDir

_EARLIER_START_S = 120.0  # that what a failed node was doing, or the lock of it, may outlive the node


def launch(
    module: str, arguments: Sequence[str], processes: int, folder: RunDir, machines: Machines | None = None
) -> int:
    """Run a module of ranks, sharing this terminal.

    Args:
        module: such as "choral.training".
        arguments: for it.
        processes: ranks of this machine; 0: all GPUs, or one.
        folder: of the run, whose stop file and status are read.
        machines: that work together; None: this one alone.

    Returns:
        0 done, 1 failed (the reason has been printed), 75 stopped.

    Raises:
        ChoralError: another process works in the folder.
        ConfigError: a job that was given GPUs sees none.
    """
    found = len(gpus())
    _check_gpus(found)
    if machines is None or machines.rank == 0:
        if os.environ.get("SLURM_RESTART_COUNT"):
            folder.wait_for_lock(_EARLIER_START_S)  # a node that failed may not know yet
        with folder.lock():  # nobody else is at work here: what an earlier start left is out of date
            if not _stop_is_meant_for_this_start(folder):
                folder.stop_file.unlink(missing_ok=True)
            if folder.status:
                folder.report(**{**folder.status, "state": "starting"})
    command, env = launch_command(module, arguments, processes or max(1, found), found > 0, machines)
    code, asked_to_stop = run_in_foreground(command, env, request_stop=folder.stop_file.touch)
    if code == 0:
        return 0
    # The launcher turns every exit status into 1; the folder tells whether the ranks were stopped.
    return Stopped.exit_code if asked_to_stop or folder.status.get("state") == "stopped" else 1


def gpus() -> list[str]:
    """Return the ids of this machine's GPUs, as CUDA_VISIBLE_DEVICES takes them."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return []  # torch, which takes seconds to import, would find none either
    import torch

    count = torch.cuda.device_count()
    visible = [part for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part]
    return visible[:count] if visible else [str(number) for number in range(count)]


def _check_gpus(found: int) -> None:
    """Check that a job that was given GPUs sees them: hours on a GPU node's cores would look as if all were well.

    Raises:
        ConfigError: it sees none, and was not told to use none.
    """
    given = os.environ.get("SLURM_GPUS_ON_NODE", "0")
    on_purpose = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1", "yes")
    if not found and given != "0" and not on_purpose and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
        raise ConfigError(
            f"SLURM gave this job {given} GPUs of {socket.gethostname()}, but torch sees none: look for its driver "
            "(nvidia-smi), and for a torch without CUDA (python -c 'import torch; print(torch.version.cuda)')"
        )


def _stop_is_meant_for_this_start(folder: RunDir) -> bool:
    """Whether the stop file names this start of this SLURM job: its script may be told to stop before we are at work."""
    job, restarts = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_RESTART_COUNT", "0")
    try:
        return job is not None and folder.stop_file.read_text().strip() == f"{job}.{restarts}"
    except FileNotFoundError:
        return False
