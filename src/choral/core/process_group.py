"""`Runtime`: the only place that builds an `Accelerator`. Rank, device, sums over ranks, stop requests.

Ranks exchange small tensors, never Python objects.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DDPCommunicationHookType, DistributedDataParallelKwargs, InitProcessGroupKwargs

from choral.core.errors import ConfigError, Stopped


class Runtime:
    """One rank of a job, and its communication with the others.

    Args:
        precision: "no", "bf16" or "fp16".
        accumulate_steps: micro-batches per optimizer step.
        timeout_s: seconds that a collective operation waits for the other ranks before it fails.
        stop_file: all ranks stop when this file appears.
        bucket_mib: size of the gradient buckets of DistributedDataParallel.
        static_graph: whether every step uses the same parameters, which DistributedDataParallel can exploit.
        compression: of gradients in the all-reduce: "bf16" halves the traffic; "none".

    Raises:
        ConfigError: fp16 without a GPU.
    """

    def __init__(
        self,
        precision: str,
        accumulate_steps: int,
        timeout_s: float,
        stop_file: Path,
        *,
        bucket_mib: float = 25.0,
        static_graph: bool = False,
        compression: str = "none",
    ) -> None:
        cpu = not torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1", "yes")
        if precision == "fp16" and cpu:
            raise ConfigError("train.precision: fp16 needs a GPU; on a CPU use no or bf16")
        self.accelerator = Accelerator(
            mixed_precision=precision,
            gradient_accumulation_steps=accumulate_steps,
            cpu=cpu,
            # BatchNorm statistics are synchronised by SyncBatchNorm, or broadcast before use, not at every forward pass.
            kwargs_handlers=[
                DistributedDataParallelKwargs(
                    broadcast_buffers=False,
                    gradient_as_bucket_view=True,
                    bucket_cap_mb=bucket_mib,
                    static_graph=static_graph,
                    comm_hook=DDPCommunicationHookType(compression.replace("none", "no")),
                ),
                InitProcessGroupKwargs(timeout=timedelta(seconds=timeout_s)),
            ],
        )
        self.device: torch.device = self.accelerator.device
        self.rank: int = self.accelerator.process_index
        self.world_size: int = self.accelerator.num_processes
        self.local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by torchrun, which accelerate uses
        self._stop_file = stop_file
        self._signal_name = ""
        self._install_handlers()

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes the run directory."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum of `values` over ranks; every rank must call it, with the same shape."""
        if self.world_size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def broadcast(self, values: torch.Tensor) -> torch.Tensor:
        """Return the main rank's `values` on every rank, in place."""
        if self.world_size > 1:
            dist.broadcast(values, src=0)
        return values

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.accelerator.wait_for_everyone()

    @property
    def stop_requested(self) -> bool:
        """Whether this rank should stop: it got a signal, or the stop file exists (all ranks of a machine see it)."""
        return bool(self._signal_name) or self._stop_file.exists()

    def should_stop(self) -> bool:
        """Return whether a stop was requested on any rank: the same value on all ranks. Every rank must call it."""
        return bool(self.sum(torch.tensor([float(self.stop_requested)], device=self.device)).item() > 0)

    def stop_error(self, where: str) -> Stopped:
        """Remove the stop file and return the exception to raise once everything is saved."""
        if self.is_main:
            self._stop_file.unlink(missing_ok=True)
        reason = self._signal_name or "request"
        return Stopped(f"stopped by {reason} {where}; run the same command again to continue")

    def end(self) -> None:
        """Destroy the process group; otherwise some runs abort at exit."""
        self.accelerator.end_training()

    def _install_handlers(self) -> None:
        def handle(number: int, frame: FrameType | None) -> None:
            if self._signal_name and number == signal.SIGINT:
                raise KeyboardInterrupt  # a second Ctrl-C stops at once
            self._signal_name = signal.Signals(number).name

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, handle)


def set_up_logging(rank: int) -> None:
    """Log to stderr: INFO of choral on the main rank, warnings on every rank."""
    prefix = "" if rank == 0 else f"rank {rank}: "
    level = logging.INFO if rank == 0 else logging.WARNING
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format=f"{prefix}%(message)s", force=True)
    logging.getLogger("choral").setLevel(level)
