"""Fits linear heads on several numbers of ranks. Imports everything once, then forks the ranks as a launcher would.

Usage: fit_head.py FOLDER... The name of a folder is the number of ranks. It contains toy.yaml; the script writes the run
and the rows whose features each rank computed into it. Two ranks fit twice: the second time another process holds the
lock and provides the features while both ranks wait.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

from choral.config import Config
from choral.config.files import load_config
from choral.core.process_group import Runtime
from choral.models.features import extract
from choral.models.features.cache import FeatureCache
from choral.runs.run_dir import RunDir
from choral.training.loop import train


def fit(folder: Path) -> None:
    torch.set_num_threads(1)
    config = load_config(folder / "toy.yaml")
    run = Runtime("no", 1, 120, folder / "stop")
    written: list[list[int]] = []
    write_part = FeatureCache.write_part

    def record_part(self, part, values, valid):
        written.append(self.rows_in_part(part).tolist())
        write_part(self, part, values, valid)

    FeatureCache.write_part = record_part
    train(config, RunDir(folder), run)
    (folder / f"rows-{run.rank}.json").write_text(json.dumps(written))
    if run.world_size == 2:
        fit_while_another_process_computes(config, folder / "waiting", run)
    run.end()


def fit_while_another_process_computes(config: Config, folder: Path, run: Runtime) -> None:
    folder.mkdir(exist_ok=True)
    features, moved = sorted((Path(config.data.shards) / ".features").glob("*/meta.json"))[0].parent, folder / "moved"
    run.barrier()
    lock = None
    if run.is_main:
        lock = features.with_suffix(".lock").open("a")
        fcntl.flock(lock, fcntl.LOCK_EX)
        features.rename(moved)
    waits = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3 and lock is not None:  # the other process has finished
            moved.rename(features)
            lock.close()

    extract.time = SimpleNamespace(sleep=wait)
    train(config, RunDir(folder), run)
    (folder / f"waits-{run.rank}.json").write_text(json.dumps(waits))


def run_ranks(folder: Path) -> bool:
    """Return whether all ranks succeeded."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = int(folder.name)
    children = []
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            os.environ |= {name: str(value) for name, value in place.items()}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
            fit(folder)
            os._exit(0)
        children.append(child)
    return all(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 for child in children)


if __name__ == "__main__":
    sys.exit(not all(run_ranks(Path(folder)) for folder in sys.argv[1:]))
