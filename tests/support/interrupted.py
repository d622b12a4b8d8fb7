"""Evaluate a run of random weights in processes of their own, end them by real signals, and say what came of it.

python interrupted.py CONFIG FOLDER
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch

import choral.inference.model_groups as module
from choral.config.files import load_config
from choral.inference import chunks
from choral.inference.__main__ import main
from choral.inference.ledger_parts import open_part
from choral.runs.run_dir import RunDir
from made_members import made_members

_CHUNK_S = 0.15


def start(folder: RunDir, log: Path, slow: bool) -> int:
    """Evaluate in a fork, slowly, and return its pid; a line goes to `log` for each chunk that is asked about."""
    pid = os.fork()
    if pid:
        return pid
    ask = module.ask

    def noted(*arguments: object) -> None:
        with log.open("a") as file:
            file.write("x")
        time.sleep(_CHUNK_S if slow else 0)
        ask(*arguments)  # type: ignore[arg-type]

    module.ask = noted
    chunks._WRITE_AT_LEAST_EVERY_S = 0.0
    os._exit(main([str(folder.path), "--force"]))


def chunks_in(folder: RunDir) -> int:
    parts = [open_part(path) for path in folder.predictions.glob(".val.parts/*/part-*")]
    return sum(part.stop - part.first for part in parts)


def interrupted(folder: RunDir, log: Path, number: signal.Signals) -> int:
    """Evaluate, send a signal once there are more finished chunks on disk, and return the exit status."""
    before = chunks_in(folder)
    pid = start(folder, log, slow=True)
    deadline = time.monotonic() + 60
    while chunks_in(folder) <= before and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(pid, number)
    return ended(pid)


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def tell(config_file: str, place: Path) -> None:
    torch.set_num_threads(1)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    folder = made_members(load_config(config_file), place / "run")
    ledger, said = folder.predictions / "val.parquet", {}
    said["whole"] = ended(start(folder, place / "log0", slow=False))
    whole = ledger.read_bytes()
    ledger.unlink()
    for name, number, after in (
        ("killed", signal.SIGKILL, "after kill"),
        ("terminated", signal.SIGTERM, "after terminated"),
        ("usr1", signal.SIGUSR1, "after usr1"),
    ):
        said[name] = interrupted(folder, place / "log1", number)
        said[after] = chunks_in(folder)
    said["finished"] = ended(start(folder, place / "log2", slow=False))
    said["asked at last"] = len((place / "log2").read_text())
    said["same bytes"] = ledger.read_bytes() == whole
    (place / "said.json").write_text(json.dumps(said))


if __name__ == "__main__":
    tell(sys.argv[1], Path(sys.argv[2]))
