"""Start ranks through Accelerate's launcher, and wait for them without losing how they ended or leaving any behind.

Accelerate 1.15 starts several CPU ranks only with `ACCELERATE_USE_CPU=true` and `--multi_gpu`, dies of the first signal
without waiting for its ranks, and turns every failure into exit status 1. So the ranks run under a guard in a session of
their own, a wish to stop reaches them as the run's stop file, and how they ended is read from the run folder by the caller.
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

_GRACE_S = 100.0  # below that of `run_jobs`, so that ranks of a stopped member end before the member is killed
_HANDLED = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"  # without SIGUSR1, that one kills torchrun and orphans its ranks


@dataclass(frozen=True)
class Machines:
    """The machines that share a job; the same command is started once on each.

    Attributes:
        count: of machines.
        rank: of this one, from 0.
        address, port: where the first of them waits for the others; for one machine, any free port of its own.
    """

    count: int = 1
    rank: int = 0
    address: str = "127.0.0.1"
    port: int = 0


def launch_command(
    module: str, arguments: Sequence[str], processes: int, on_gpus: bool, machines: Machines | None = None
) -> tuple[list[str], dict[str, str]]:
    """Return the command that runs `python -m MODULE ARGUMENTS` on so many ranks, and the variables it needs.

    Args:
        module: with a `__main__`, such as "choral.training".
        arguments: of the module.
        processes: ranks of this machine; each machine has as many.
        on_gpus: one GPU a rank; else the cores are shared out, unless OMP_NUM_THREADS says how many threads a rank has.
        machines: that share the job; None: this one alone.
    """
    machines = machines or Machines()
    ranks = processes * machines.count
    command = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--num_machines", str(machines.count)]
    command += ["--num_processes", str(ranks), "--mixed_precision", "no", "--dynamo_backend", "no"]
    env = {"TORCHELASTIC_SIGNALS_TO_HANDLE": _HANDLED}
    if not on_gpus:
        cores = len(os.sched_getaffinity(0))
        threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores // processes)))
        env |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": threads}
        # Large activations would otherwise be mapped and unmapped at every use: 1.1 to 1.25 times the images a second.
        env |= {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}
        command += ["--num_cpu_threads_per_process", threads]
    if ranks > 1:
        command += ["--multi_gpu", "--main_process_port", str(machines.port or _free_port())]
        if machines.count > 1:
            command += ["--main_process_ip", machines.address, "--machine_rank", str(machines.rank)]
            command += ["--rdzv_backend", "static", "--same_network"]
    elif not on_gpus:
        command += ["--cpu"]
    return [*command, "-m", module, *arguments], env


def run_in_foreground(
    command: Sequence[str], env: Mapping[str, str], request_stop: Callable[[], None]
) -> tuple[int, bool]:
    """Run a command that shares this terminal; return its exit status (128 + the number of a signal), and whether it was
    asked to stop.

    The first SIGINT, SIGTERM or SIGHUP calls `request_stop`; a second SIGINT, or 100 s, kill all processes of the command. If
    this process is killed, the command's processes end too.
    """
    read_end, write_end = os.pipe()
    wishes = StopSignals()
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, write_end)
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", guard.__file__, str(read_end), str(_GRACE_S), "--", *command],
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C reaches this process alone, which passes it on in order
                pass_fds=(read_end,),
            )
        finally:
            os.close(read_end)
        stack.enter_context(wishes)
        asked_at: float | None = None
        while True:
            try:
                code = process.wait(timeout=0.2)
                return (code if code >= 0 else 128 - code), asked_at is not None
            except subprocess.TimeoutExpired:
                pass
            if wishes.stop and asked_at is None:
                asked_at = time.monotonic()
                request_stop()
            if asked_at is not None and (wishes.kill or time.monotonic() - asked_at > _GRACE_S):
                with contextlib.suppress(BrokenPipeError):
                    os.write(write_end, b"k")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
