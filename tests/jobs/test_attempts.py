"""A job that a scheduler restarts: counting of starts and failures, giving up, and the launch on several machines."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from choral.cli import main
from choral.cli.workflow import launch as launching
from choral.cli.workflow.slurm_start import RestartPolicy, train_scheduled_start
from choral.config.files import load_config
from choral.core.errors import ChoralError, ConfigError
from choral.jobs.attempts import Attempts
from choral.jobs.launcher import Machines, build_launch_command, run_in_foreground
from choral.runs.run_dir import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run")


@pytest.fixture
def start(run: RunDir, config_file: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that makes one start, in which training ends with `code` after `steps` more steps."""
    config = load_config(config_file)

    def start(code: int, steps: int = 0, job: str = "7", rank: int = 0) -> int:
        def train_one(*arguments: object) -> int:
            (run.checkpoints / f"step-{start.step + steps:08d}").mkdir(parents=True, exist_ok=True)
            start.step += steps
            return code

        monkeypatch.setattr("choral.cli.workflow.slurm_start.train_one", train_one)
        monkeypatch.setenv("SLURM_JOB_ID", job)
        machines = Machines(2, rank, "host", 1234)
        return train_scheduled_start(config, run, [], 1, machines, RestartPolicy(retries=1, max_stalls=3))

    start.step = 0
    return start


def test_starts_without_progress_end_the_job(start, run: RunDir) -> None:
    assert [start(75, steps=1) for _ in range(5)] == [75] * 5  # each gets further
    assert [start(75) for _ in range(3)] == [75] * 3
    assert '{"job": "7", "start": "0", "given_up": false' in (run.path / "attempts.json").read_text()
    with pytest.raises(ChoralError, match="started 3 times without progress beyond step 5, so it is not started"):
        start(75)
    assert '{"job": "7", "start": "0", "given_up": true' in (run.path / "attempts.json").read_text()
    assert run.status["state"] == "failed" and "started 3 times" in run.status["reason"]
    assert start(75, job="8") == 75  # submitted again: counted anew
    assert run.status["state"] == "waiting"


def test_a_start_that_is_killed_counts(start, run: RunDir) -> None:
    def killed(*arguments: object) -> int:
        raise KeyboardInterrupt

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_JOB_ID", "7")
            patch.setattr("choral.cli.workflow.slurm_start.train_one", killed)
            train_scheduled_start(None, run, [], 1, Machines(), RestartPolicy(0, 3))  # type: ignore[arg-type]
    with pytest.raises(ChoralError, match="started 3 times without progress beyond step 0"):
        start(0)


def test_a_failure_is_retried_up_to_the_limit(start, run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(1, steps=1) == 75
    assert "attempt 2 of 2 follows" in capsys.readouterr().err
    assert start(75, steps=1) == 75  # a stop is no failure
    assert not Attempts.read(run.path / "attempts.json", "7").given_up
    assert start(1, steps=1) == 1
    assert Attempts.read(run.path / "attempts.json", "7").given_up
    assert start(0) == 0
    assert not Attempts.read(run.path / "attempts.json", "7").given_up


def test_an_error_before_the_launch_gives_up(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> int:
        raise ChoralError("the data are not there")

    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr("choral.cli.workflow.slurm_start.train_one", refuse)
    with pytest.raises(ChoralError, match="the data are not there"):
        train_scheduled_start(None, run, [], 1, Machines(), RestartPolicy(1, 3))  # type: ignore[arg-type]
    assert Attempts.read(run.path / "attempts.json", "7").given_up


def test_only_the_first_machine_counts(start, run: RunDir) -> None:
    assert [start(1, rank=1) for _ in range(5)] == [1] * 5
    assert not (run.path / "attempts.json").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"job": "7", "nonsense": 1}', '{"job": "other", "stalls": 9}'])
def test_damaged_counters_and_those_of_another_job_are_ignored(tmp_path: Path, content: str) -> None:
    path = tmp_path / "attempts.json"
    path.write_text(content)
    assert Attempts.read(path, "7") == Attempts(job="7")


def test_several_machines_share_ranks_and_a_rendezvous() -> None:
    command, env = build_launch_command("choral.training", ["x"], 2, False, Machines(3, 1, "first", 29123))
    text = " ".join(command)
    for part in (
        "--num_machines 3 --num_processes 6 ",
        "--multi_gpu --main_process_port 29123 --main_process_ip first --machine_rank 1 --rdzv_backend static",
    ):
        assert part in text
    assert "SIGUSR1" in env["TORCHELASTIC_SIGNALS_TO_HANDLE"]
    command, _ = build_launch_command("choral.training", ["x"], 1, False, Machines(2, 0, "first", 29123))
    assert "--num_processes 2 " in " ".join(command) and "--multi_gpu" in command


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--machines", "2"], "--rendezvous: with several machines, expected HOST:PORT, got ''"),
        (["--machines", "2", "--rendezvous", "host:0"], "expected HOST:PORT, got 'host:0'"),
        (["--machines", "2", "--machine-rank", "2", "--rendezvous", "h:1"], "expected ranks from 0 to machines - 1"),
        (["--machines", "0"], "expected ranks from 0 to machines - 1"),
    ],
)
def test_inconsistent_machine_options_are_rejected(
    options: list[str], message: str, config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(config_file), *options]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_stop_file_that_names_this_start_is_kept(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "build_launch_command", lambda *arguments: ([sys.executable, "-S", "-c", ""], {}))
    monkeypatch.setattr(launching, "gpus", list)
    run.path.mkdir()
    for job, restarts, kept in (("7", "2", True), ("7", "3", False), (None, "2", False)):
        run.stop_file.write_text("7.2\n")
        monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
        if job:
            monkeypatch.setenv("SLURM_JOB_ID", job)
        else:
            monkeypatch.delenv("SLURM_JOB_ID")
        assert launching.launch("choral.training", [], 1, run) == 0
        assert run.stop_file.exists() == kept


def test_a_restart_waits_for_the_lock_of_a_failed_node(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock may outlive a failed node. On a first start, a held lock is an error at once."""
    monkeypatch.setattr(launching, "build_launch_command", lambda *arguments: ([sys.executable, "-S", "-c", ""], {}))
    monkeypatch.setattr(launching, "gpus", list)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with contextlib.ExitStack() as stack:
        stack.enter_context(run.lock())
        monkeypatch.setattr(time, "sleep", lambda seconds: stack.close() if seconds == 1 else None)
        with pytest.raises(ChoralError, match="in use by another process"):
            launching.launch("choral.training", [], 1, run)
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        assert launching.launch("choral.training", [], 1, run) == 0


def test_gpus_that_torch_does_not_see_are_an_error(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "build_launch_command", lambda *arguments: ([sys.executable, "-S", "-c", ""], {}))
    monkeypatch.setattr(launching, "gpus", list)
    for name in ("ACCELERATE_USE_CPU", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "4")
    with pytest.raises(ConfigError, match="SLURM gave this job 4 GPUs of .*, but torch sees none"):
        launching.launch("choral.training", [], 4, run)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert launching.launch("choral.training", [], 4, run) == 0


def test_sigusr1_requests_a_stop(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, time\n"
        "os.kill(int(sys.argv[1]), signal.SIGUSR1)\n"
        "while not os.path.exists(sys.argv[2]): time.sleep(0.05)"
    )
    command = [sys.executable, "-S", "-c", code, str(os.getpid()), str(tmp_path / "stop")]
    assert run_in_foreground(command, {}, (tmp_path / "stop").touch) == (0, True)
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_lock_holder_reports_the_process_and_does_not_block_others(run: RunDir) -> None:
    assert run.lock_holder() is None
    with run.lock():
        assert run.lock_holder() == (os.uname().nodename, os.getpid())
    assert run.lock_holder() is None
