"""Several ranks in one process: threads that meet at every collective operation."""

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
    config: Config, folder: RunDir, ranks: int, told_to_stop: Callable[[int], bool] = lambda rank: False
) -> list[BaseException]:
    """Evaluate, and return what was raised, by rank; anything but `Stopped` fails; see `on_ranks`."""
    return on_ranks(lambda run: evaluate(config, folder, run, force=True), ranks, told_to_stop)


def on_ranks(
    work: Callable[[Runtime], None], ranks: int, told_to_stop: Callable[[int], bool] = lambda rank: False
) -> list[BaseException]:
    """Do some work on ranks, and return what was raised, by rank; anything but `Stopped` fails.

    Args:
        work: of each rank.
        ranks: threads.
        told_to_stop: whether a rank is, asked once a chunk.
    """
    barrier = threading.Barrier(ranks)
    shared: list[torch.Tensor] = []
    raised: list[BaseException] = []

    class Run(SimpleNamespace):
        @property
        def told_to_stop(self) -> bool:
            return told_to_stop(self.rank)

        def stopped(self, where: str) -> Stopped:
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
