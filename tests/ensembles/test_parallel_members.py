"""Three members at once, one killed, then the whole command: weights equal sequential training, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from choral.config import Config
from choral.config.files import load_config
from choral.core.process_group import Runtime
from choral.ensembles.member_jobs import member_config
from choral.runs.run_dir import RunDir
from toy_data import Choral, make_run_dir

# a trains long enough to be killed in mid-training, and again when the command is.
OVERRIDES = [
    "ensemble.members=[{name: a, set: {train.steps: 100}}, {name: b, set: {seed: 5}}, {name: c, set: {train.lr: 1e-2}}]",
    "ensemble.max_parallel=3",
    "train.save_every_steps=10",
]


@pytest.fixture
def two_cores() -> Iterator[None]:
    """Two cores for this process and its children: a member's threads, and so its last bits, depend on their number."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(cores)[:2]))
    yield
    os.sched_setaffinity(0, cores)


def wait_for(condition: Callable[[], bool], call: subprocess.Popen[bytes], timeout_s: float = 240.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert call.poll() is None, "the command ended before it was killed"
        assert time.monotonic() < end, "timed out"
        time.sleep(0.01)


def weights(folder: RunDir) -> bytes:
    """Return the file of the last checkpoint's tensors."""
    return (max(folder.checkpoints.glob("step-*")) / "model.safetensors").read_bytes()


def train_sequentially(config: Config, folder: Path, run: Runtime) -> dict[str, bytes]:
    from choral.training.loop import train

    members = {name: RunDir(folder / name) for name in "abc"}
    for name, member in members.items():
        make_run_dir(member.path)
        train(member_config(config, name), member, run)
    return {name: weights(member) for name, member in members.items()}


@pytest.mark.usefixtures("two_cores")
def test_three_at_once_and_killed_equal_sequential_training(
    config_file: Path, tmp_path: Path, choral: Choral, run: Runtime
) -> None:
    config = load_config(config_file, OVERRIDES)
    folder = RunDir(tmp_path / "runs" / "toy")
    a = folder.member("a")

    def step() -> int:
        return int(a.status.get("step", 0)) if a.status.get("state") == "running" else 0

    command = [sys.executable, "-m", "choral", "ensemble", str(config_file), *OVERRIDES]
    call = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: step() >= 12, call)
        holder = a.lock_holder()  # the rank that trains, not its launcher
        assert holder is not None
        os.kill(holder[1], signal.SIGKILL)
        killed_at = max(a.checkpoints.glob("step-*"), default=Path("step-0"))
        log = a.path / "log.txt"
        wait_for(lambda: "attempt 2" in log.read_text() and step() > int(killed_at.name[5:]) + 10, call)
    finally:
        call.kill()
        call.wait()
    assert a.result is None, "a should be in mid-training when the command is killed"
    finished = [name for name in "bc" if folder.member(name).result]
    again = choral("ensemble", config_file, *OVERRIDES, timeout=500)
    assert again.returncode == 0, again.stderr
    assert "a: done" in again.stderr and not any(f"{name}: " in again.stderr for name in finished)
    expected = train_sequentially(config, tmp_path, run)
    assert {name: weights(folder.member(name)) == expected[name] for name in "abc"} == dict.fromkeys("abc", True)
    assert len(set(expected.values())) == 3
