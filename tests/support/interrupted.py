"""Evaluates a run with random weights in child processes, ends them by real signals, and writes outcomes.json.

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

from choral.config.files import load_config
from choral.inference import chunks, model_groups
from choral.inference.__main__ import main
from choral.inference.ledger_parts import open_part
from choral.runs.run_dir import RunDir
from made_members import made_members

_CHUNK_S = 0.15


def start(folder: RunDir, log: Path, slow: bool) -> int:
    """Start an evaluation in a fork, and return its pid; it appends a character to `log` for each predicted chunk."""
    pid = os.fork()
    if pid:
        return pid
    predict_chunk = model_groups.predict_chunk

    def logged(*arguments: object) -> None:
        with log.open("a") as file:
            file.write("x")
        time.sleep(_CHUNK_S if slow else 0)
        predict_chunk(*arguments)  # type: ignore[arg-type]

    model_groups.predict_chunk = logged
    chunks._MIN_WRITE_INTERVAL_S = 0.0
    os._exit(main([str(folder.path), "--force"]))


def count_finished_chunks(folder: RunDir) -> int:
    parts = [open_part(path) for path in folder.predictions.glob(".val.parts/*/part-*")]
    return sum(part.stop - part.first for part in parts)


def interrupt(folder: RunDir, log: Path, number: signal.Signals) -> int:
    """Evaluate, send a signal when another chunk is finished on disk, and return the exit status."""
    before = count_finished_chunks(folder)
    pid = start(folder, log, slow=True)
    deadline = time.monotonic() + 60
    while count_finished_chunks(folder) <= before and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(pid, number)
    return wait_for(pid)


def wait_for(pid: int) -> int:
    """Return the exit status of a child process, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run_all(config_file: str, place: Path) -> None:
    torch.set_num_threads(1)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    folder = made_members(load_config(config_file), place / "run")
    ledger, outcomes = folder.predictions / "val.parquet", {}
    outcomes["whole"] = wait_for(start(folder, place / "log0", slow=False))
    whole = ledger.read_bytes()
    ledger.unlink()
    for name, number, after in (
        ("killed", signal.SIGKILL, "after kill"),
        ("terminated", signal.SIGTERM, "after terminated"),
        ("usr1", signal.SIGUSR1, "after usr1"),
    ):
        outcomes[name] = interrupt(folder, place / "log1", number)
        outcomes[after] = count_finished_chunks(folder)
    outcomes["finished"] = wait_for(start(folder, place / "log2", slow=False))
    outcomes["predicted at last"] = len((place / "log2").read_text())
    outcomes["same bytes"] = ledger.read_bytes() == whole
    (place / "outcomes.json").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    run_all(sys.argv[1], Path(sys.argv[2]))
