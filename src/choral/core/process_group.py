"""The one place that builds an `Accelerator`: ranks, the device, sums over ranks, the wish to stop.

Data are never gathered as objects; what ranks tell each other are small tensors.
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
    """One rank of a job, and what it shares with the others.

    Args:
        precision: "no", "bf16" or "fp16".
        accumulate_steps: micro-batches an optimizer step.
        timeout_s: seconds after which a silent rank fails the others.
        stop_file: a file whose appearance asks all ranks to stop.
        bucket_mib: of gradients that ranks exchange at once.
        static_graph: every step uses the same parameters, which DistributedDataParallel may rely on.
        compression: "bf16" halves what the exchange of gradients sends; "none".

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
            # Statistics are synchronised by SyncBatchNorm or broadcast before they are used, not at every forward pass.
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
        self._signalled = ""
        self._install_handlers()

    @property
    def is_main(self) -> bool:
        """Whether this rank writes the run folder."""
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
    def told_to_stop(self) -> bool:
        """Whether this rank was asked to stop: by a signal, or by the stop file (all ranks of a machine see it)."""
        return bool(self._signalled) or self._stop_file.exists()

    def should_stop(self) -> bool:
        """Return whether any rank was asked to stop, the same on all of them. Every rank must call it."""
        return bool(self.sum(torch.tensor([float(self.told_to_stop)], device=self.device)).item() > 0)

    def stopped(self, where: str) -> Stopped:
        """Return the exception to raise once everything is saved; the stop file has been obeyed and is removed."""
        if self.is_main:
            self._stop_file.unlink(missing_ok=True)
        reason = self._signalled or "request"
        return Stopped(f"stopped by {reason} {where}; run the same command again to continue")

    def end(self) -> None:
        """Leave the process group; without it, some runs abort at exit."""
        self.accelerator.end_training()

    def _install_handlers(self) -> None:
        def note(number: int, frame: FrameType | None) -> None:
            if self._signalled and number == signal.SIGINT:
                raise KeyboardInterrupt  # asked twice at the keyboard: now
            self._signalled = signal.Signals(number).name

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, note)


def set_up_logging(rank: int) -> None:
    """Send the main rank's log, and every rank's warnings, to stderr as plain lines."""
    prefix = "" if rank == 0 else f"rank {rank}: "
    level = logging.INFO if rank == 0 else logging.WARNING
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format=f"{prefix}%(message)s", force=True)
    logging.getLogger("choral").setLevel(level)
