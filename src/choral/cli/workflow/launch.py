"""Starting the ranks of a stage that computes, in this terminal."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from choral.core.errors import ChoralError, ConfigError, Stopped
from choral.jobs.launcher import Machines, build_launch_command, run_in_foreground
from choral.runs.run_dir import RunDir

_DRIVERS = ("/dev/nvidiactl", "/dev/nvhost-gpu", "/dev/dxg", "/dev/kfd")  # NVIDIA, Jetson, Windows, AMD
_COUNT = "import torch; print(torch.cuda.device_count())"
_EARLIER_START_S = 120.0  # how long the lock of a failed node may outlive it


def launch(
    module: str, arguments: Sequence[str], processes: int, folder: RunDir, machines: Machines | None = None
) -> int:
    """Run a module on several ranks in the foreground.

    Args:
        module: a module with a `__main__`, such as "choral.training".
        arguments: its command line.
        processes: ranks of this machine; 0: one per GPU, or one.
        folder: the run directory, whose stop file and status are read.
        machines: the machines of the job; None: only this one.

    Returns:
        The exit status: 0 done, 1 failed (the reason has been printed), 75 stopped.

    Raises:
        ChoralError: another process works in the run directory.
        ConfigError: SLURM gave the job GPUs, but torch sees none.
    """
    found = len(gpus())
    _check_gpus(found)
    if machines is None or machines.rank == 0:
        if os.environ.get("SLURM_RESTART_COUNT"):
            folder.wait_for_lock(_EARLIER_START_S)  # the failed node of an earlier start may still hold it
        with folder.lock():  # no other process works here, so the stop file and status of an earlier start are stale
            if not _is_stop_for_this_start(folder):
                folder.stop_file.unlink(missing_ok=True)
            if folder.status:
                folder.write_status(**{**folder.status, "state": "starting"})
    command, env = build_launch_command(module, arguments, processes or max(1, found), found > 0, machines)
    code, asked_to_stop = run_in_foreground(command, env, request_stop=folder.stop_file.touch)
    if code == 0:
        return 0
    # Accelerate's launcher turns every exit status into 1; the run directory knows whether the ranks were stopped.
    return Stopped.exit_code if asked_to_stop or folder.status.get("state") == "stopped" else 1


def gpus() -> list[str]:
    """Return the ids of this machine's GPUs, in the form that CUDA_VISIBLE_DEVICES takes.

    This process only waits for ranks, so it does not load torch (600 MB): if there is a GPU driver, a child process
    counts the GPUs.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "" or not any(Path(path).exists() for path in _DRIVERS):
        return []
    child = subprocess.run([sys.executable, "-c", _COUNT], capture_output=True, text=True, check=False)
    if child.returncode != 0:
        raise ChoralError(f"torch cannot count this machine's GPUs:\n{child.stderr.strip()}")
    count = int(child.stdout.split()[-1])
    visible = [part for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part]
    return visible[:count] if visible else [str(number) for number in range(count)]


def _check_gpus(found: int) -> None:
    """Raise ConfigError if SLURM gave this job GPUs but torch sees none; it would train on CPUs for hours unnoticed."""
    given = os.environ.get("SLURM_GPUS_ON_NODE", "0")
    cpu_requested = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1", "yes")
    if not found and given != "0" and not cpu_requested and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
        raise ConfigError(
            f"SLURM gave this job {given} GPUs of {socket.gethostname()}, but torch sees none: check the driver "
            "(nvidia-smi), and that torch has CUDA (python -c 'import torch; print(torch.version.cuda)')"
        )


def _is_stop_for_this_start(folder: RunDir) -> bool:
    """Return whether the stop file names this start of this SLURM job; its script may be stopped before this point."""
    job, restarts = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_RESTART_COUNT", "0")
    try:
        return job is not None and folder.stop_file.read_text().strip() == f"{job}.{restarts}"
    except FileNotFoundError:
        return False
