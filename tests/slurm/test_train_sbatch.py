"""slurm/train.sbatch as a shell script, beside stand-ins for `choral` and `scontrol`: what it passes on, when it requeues."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from toys import REPOSITORY

SCRIPT = REPOSITORY / "slurm" / "train.sbatch"


@pytest.fixture
def start(tmp_path: Path):
    """Return a function that starts the script beside a `choral` of the given shell lines."""
    processes = []

    def start(lines: str, *arguments: str, **env: str) -> subprocess.Popen[str]:
        for name, body in (("choral", lines), ("scontrol", f'echo "$@" >> {tmp_path}/scontrol.log')):
            path = tmp_path / name
            path.write_text(f"#!/usr/bin/env bash\n{body}\n")
            path.chmod(0o755)
        variables = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "42", **env}
        process = subprocess.Popen(["bash", str(SCRIPT), *arguments], env=variables, stderr=subprocess.PIPE, text=True)
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def requeued(tmp_path: Path) -> str:
    log = tmp_path / "scontrol.log"
    return log.read_text() if log.exists() else ""


@pytest.mark.parametrize(("lines", "code"), [("exit 0", 0), ("exit 1", 1), ("exit 2", 2), ("kill -9 $$", 137)])
def test_the_exit_status_is_the_training_s(start, tmp_path: Path, lines: str, code: int) -> None:
    process = start(lines, "c.yaml")
    assert process.wait(timeout=20) == code
    assert requeued(tmp_path) == ""


def test_a_stopped_training_is_requeued_ten_times(start, tmp_path: Path) -> None:
    assert start("exit 75", "c.yaml").wait(timeout=20) == 0
    assert requeued(tmp_path) == "requeue 42\n"
    assert start("exit 75", "c.yaml", SLURM_RESTART_COUNT="10").wait(timeout=20) == 75
    assert requeued(tmp_path) == "requeue 42\n"


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_signals_reach_the_training_and_its_saving_is_waited_for(start, tmp_path: Path, number: signal.Signals) -> None:
    lines = (
        f"trap 'sleep 1; touch {tmp_path}/saved; exit 75' TERM; touch {tmp_path}/ready; while :; do sleep 0.05; done"
    )
    process = start(lines, "c.yaml")
    while not (tmp_path / "ready").exists():
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(timeout=20) == 0
    assert (tmp_path / "saved").exists()
    assert requeued(tmp_path) == "requeue 42\n"


def test_words_arrive_whole_and_each_gpu_gets_a_rank(start, tmp_path: Path) -> None:
    lines = f'printf "%s\\n" "$@" > {tmp_path}/words'
    assert start(lines, "my config.yaml", "run=a b", SLURM_GPUS_ON_NODE="4").wait(timeout=20) == 0
    assert (tmp_path / "words").read_text().splitlines() == ["train", "my config.yaml", "run=a b", "--processes", "4"]


def test_without_a_config_it_says_how_it_is_used(start) -> None:
    process = start("exit 0")
    assert process.wait(timeout=20) == 2
    assert process.stderr is not None and "usage: sbatch" in process.stderr.read()
