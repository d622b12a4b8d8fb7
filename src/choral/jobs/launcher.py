"""Start ranks with Accelerate's launcher, wait for them, keep their exit status, and leave no process behind.

Accelerate 1.15 has three problems: it starts several CPU ranks only with `ACCELERATE_USE_CPU=true` and `--multi_gpu`; it
exits on the first signal without waiting for its ranks; it turns every failure into exit status 1. So the ranks run
under a guard in their own session, a stop request reaches them as the run's stop file, and the caller reads from the run
directory how they ended.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from choral.core.stop_signals import StopSignals
from choral.jobs import guard

_GRACE_S = 100.0  # less than that of `run_jobs`, so that the ranks of a stopped member end before the member is killed
_HANDLED_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"  # by default, SIGUSR1 kills torchrun and orphans its ranks


@dataclass(frozen=True)
class Machines:
    """The machines that share a job; the same command is started once on each of them.

    Attributes:
        count: number of machines.
        rank: of this machine, from 0.
        address, port: where the first machine waits for the others; with one machine, port 0 picks a free one.
    """

    count: int = 1
    rank: int = 0
    address: str = "127.0.0.1"
    port: int = 0


def build_launch_command(
    module: str, arguments: Sequence[str], processes: int, on_gpus: bool, machines: Machines | None = None
) -> tuple[list[str], dict[str, str]]:
    """Return the command that runs `python -m MODULE ARGUMENTS` as ranks, and the environment variables it needs.

    Args:
        module: a package with a `__main__`, such as "choral.training".
        arguments: of the module.
        processes: ranks on each machine.
        on_gpus: one GPU per rank. Otherwise the ranks share the cores equally, unless OMP_NUM_THREADS sets the threads
            per rank.
        machines: the machines that share the job; None for this one alone.
    """
    machines = machines or Machines()
    ranks = processes * machines.count
    env: dict[str, str] = {}
    if not on_gpus:
        cores = len(os.sched_getaffinity(0))
        threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores // processes)))
        env |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": threads}
        # Otherwise malloc maps and unmaps large activations at every use; this gives 1.1 to 1.25 times the images/s.
        env |= {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}
    if ranks == 1:  # Accelerate's launcher would start the same process, and hold 500 MB of torch while waiting for it
        return [sys.executable, "-m", module, *arguments], env
    env["TORCHELASTIC_SIGNALS_TO_HANDLE"] = _HANDLED_SIGNALS
    command = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--num_machines", str(machines.count)]
    command += ["--num_processes", str(ranks), "--mixed_precision", "no", "--dynamo_backend", "no"]
    if not on_gpus:
        command += ["--num_cpu_threads_per_process", env["OMP_NUM_THREADS"]]
    command += ["--multi_gpu", "--main_process_port", str(machines.port or _find_free_port())]
    if machines.count > 1:
        command += ["--main_process_ip", machines.address, "--machine_rank", str(machines.rank)]
        command += ["--rdzv_backend", "static", "--same_network"]
    return [*command, "-m", module, *arguments], env


def run_in_foreground(
    command: Sequence[str], env: Mapping[str, str], request_stop: Callable[[], None]
) -> tuple[int, bool]:
    """Run a command that shares this terminal; return its exit status (128 + number for a signal) and whether a stop was
    requested.

    The first SIGINT, SIGTERM, SIGHUP or SIGUSR1 calls `request_stop`. A second SIGINT, or 100 s, kills all processes of
    the command. If this process is killed, the command's processes end too.
    """
    read_end, write_end = os.pipe()
    signals = StopSignals()
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, write_end)
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", guard.__file__, str(read_end), str(_GRACE_S), "--", *command],
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C reaches only this process, which then stops the ranks in order
                pass_fds=(read_end,),
            )
        finally:
            os.close(read_end)
        stack.enter_context(signals)
        requested_at: float | None = None
        while True:
            try:
                code = process.wait(timeout=0.2)
                return (code if code >= 0 else 128 - code), requested_at is not None
            except subprocess.TimeoutExpired:
                pass
            if signals.stop and requested_at is None:
                requested_at = time.monotonic()
                request_stop()
            if requested_at is not None and (signals.kill or time.monotonic() - requested_at > _GRACE_S):
                with contextlib.suppress(BrokenPipeError):
                    os.write(write_end, b"k")


def _find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
