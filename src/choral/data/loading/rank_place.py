"""The place of a process among the ranks of a job, and the CPU cores it may use."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from choral.core.process_group import Runtime


@dataclass(frozen=True)
class RankPlace:
    """Which share of the work this process does, and on which device."""

    rank: int
    world_size: int
    device: torch.device
    local_world_size: int = 1
    """Ranks on this machine, which share its cores."""

    @classmethod
    def from_runtime(cls, run: Runtime) -> RankPlace:
        """Return the place of a process of a running job."""
        return cls(run.rank, run.world_size, run.device, run.local_world_size)

    @property
    def cores(self) -> int:
        """This rank's share of the cores that the process may use, or of `CHORAL_CORES`, the share of its job."""
        available = int(os.environ.get("CHORAL_CORES", "0")) or len(os.sched_getaffinity(0))
        return max(1, available // self.local_world_size)
