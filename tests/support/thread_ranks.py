"""Several ranks in one process: threads that synchronise at every collective operation."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace

import torch

from choral.config import Config
from choral.core.errors import Stopped
from choral.core.process_group import Runtime
from choral.inference.evaluation_pass import evaluate
from choral.runs.run_dir import RunDir


def evaluate_on_ranks(
    config: Config, folder: RunDir, ranks: int, stop_requested: Callable[[int], bool] = lambda rank: False
) -> list[BaseException]:
    """Evaluate on ranks and return their `Stopped` exceptions; see `run_on_ranks`."""
    return run_on_ranks(lambda run: evaluate(config, folder, run, force=True), ranks, stop_requested)


def run_on_ranks(
    work: Callable[[Runtime], None], ranks: int, stop_requested: Callable[[int], bool] = lambda rank: False
) -> list[BaseException]:
    """Run `work` on every rank and return the `Stopped` exceptions; any other exception fails the test.

    Args:
        work: of each rank.
        ranks: number of ranks, each a thread.
        stop_requested: whether a rank is asked to stop; called once per chunk.
    """
    barrier = threading.Barrier(ranks)
    shared: list[torch.Tensor] = []
    raised: list[BaseException] = []

    class Run(SimpleNamespace):
        @property
        def stop_requested(self) -> bool:
            return stop_requested(self.rank)

        def stop_error(self, where: str) -> Stopped:
            return Stopped(where)

        def broadcast(self, values: torch.Tensor) -> torch.Tensor:
            if self.is_main:
                shared[:] = [values]
            barrier.wait()
            return shared[0]

    def rank(number: int) -> None:
        run = Run(rank=number, world_size=ranks, local_world_size=ranks, is_main=number == 0, barrier=barrier.wait)
        run.device, run.accelerator = torch.device("cpu:0"), SimpleNamespace(autocast=nullcontext)
        try:
            work(run)  # type: ignore[arg-type]
        except threading.BrokenBarrierError:
            return
        except BaseException as error:
            raised.append(error)
            barrier.abort()

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(isinstance(error, Stopped) for error in raised), raised
    return raised
