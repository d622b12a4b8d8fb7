"""Which members are missing from a result, and why, read from the run directories alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from choral.config import Config
from choral.config.files import load_config
from choral.ensembles.missing_members import (
    clear_failure,
    describe_missing_members,
    find_missing_columns,
    find_missing_members,
    record_failures,
)
from choral.jobs import Job, Outcome
from choral.runs.run_dir import RunDir


@pytest.fixture
def config(config_file: Path) -> Config:
    return load_config(config_file, ["ensemble.members=[{name: a}, {name: b}, {name: c}]"])


@pytest.fixture
def run_dir(config: Config, tmp_path: Path) -> RunDir:
    """A run of which only a is trained."""
    run_dir = RunDir(tmp_path / "toy")
    for name in "abc":
        run_dir.member(name).path.mkdir(parents=True)
    (run_dir.member("a").path / "result.json").write_text("{}")
    return run_dir


def test_each_state_has_a_reason(config: Config, run_dir: RunDir) -> None:
    b = run_dir.member("b")
    log = b.path / "log.txt"
    assert find_missing_members(run_dir, config) == {"b": "not started", "c": "not started"}
    log.write_text("===== attempt 1, 2026-11-22: choral train\nloading\nerror: train.lr: too high\nbye\n")
    assert (
        find_missing_members(run_dir, config)["b"]
        == f"not finished; its log ends: error: train.lr: too high (log: {log})"
    )
    log.write_text(f"{log.read_text()}===== job 7 on node1, start 2, 2026-11-22 20:00:00\n")  # a start without output
    assert find_missing_members(run_dir, config)["b"] == "not started"
    log.write_text(f"{log.read_text()}srun: error: node1: task 0: Killed\n")
    assert "its log ends: srun: error: node1: task 0: Killed (log:" in find_missing_members(run_dir, config)["b"]
    at = {"step": 40, "steps": 120, "loss": 0.5}
    for status, reason in (
        ({"state": "running", **at}, f"not finished; last report at step 40 of 120 (log: {log})"),
        ({"state": "stopped", "reason": "stopped by request"}, "stopped"),
        ({"state": "stopped", "reason": "stopped by request", **at}, "stopped at step 40 of 120"),
        ({"state": "failed", "reason": "OSError: disk\n  full"}, f"failed: OSError: disk full (log: {log})"),
        ({"state": "failed", "reason": "x" * 999, **at}, f"failed at step 40 of 120: {'x' * 239}… (log: {log})"),
    ):
        b.write_status(**status)
        assert find_missing_members(run_dir, config)["b"] == reason
    b.write_status(state="running", **at)
    with b.lock():
        assert find_missing_members(run_dir, config)["b"] == f"still in training at step 40 of 120 (log: {log})"


def test_failures_are_recorded_if_the_member_could_not(run_dir: RunDir, config: Config) -> None:
    b, c = run_dir.member("b"), run_dir.member("c")
    b.write_status(state="running", step=40, steps=120, loss=0.5)
    c.write_status(state="failed", reason="ChoralError: lr: auto: no rate")
    killed = Outcome(Job("b", ("x",), b.path), "failed", 137, 2, "step 39\nstep 40", "killed by SIGKILL")
    reported = Outcome(Job("c", ("x",), c.path), "failed", 1, 2, "Traceback", "exit status 1")
    done = Outcome(Job("a", ("x",), run_dir.member("a").path), "done", 0, 1)
    record_failures([done, killed, reported])
    reasons = {
        "b": "failed at step 40 of 120: killed by SIGKILL: step 40",
        "c": "failed: ChoralError: lr: auto: no rate",
    }
    assert find_missing_members(run_dir, config) == reasons
    assert describe_missing_members(3, reasons) == f"1 of 3 members; without b: {reasons['b']}; c: {reasons['c']}"
    clear_failure(c)  # tried again, it dies before it can report the reason
    record_failures([replace(reported, log_tail="")])
    assert find_missing_members(run_dir, config)["c"] == "failed: exit status 1"
    assert not run_dir.member("a").status


def test_members_without_a_column_are_missing(run_dir: RunDir, config: Config) -> None:
    (run_dir.member("b").path / "result.json").write_text("{}")
    assert find_missing_columns(["a"], run_dir, config) == {
        "b": "trained, but not evaluated yet: run `choral evaluate toy`",
        "c": "not started",
    }
    assert find_missing_columns(["a", "b", "c"], run_dir, config) == {}  # c is being trained again
    assert find_missing_columns(["a.1", "a.2", "b.1", "b.2"], run_dir, config) == {"c": "not started"}  # snapshots
    assert describe_missing_members(3, {}) == ""


def test_groups_of_held_out_predictions_are_not_members(config_file: Path, tmp_path: Path) -> None:
    config, run_dir = load_config(config_file, ["ensemble.folds=3"]), RunDir(tmp_path / "toy")
    run_dir.member("fold1").path.mkdir(parents=True)
    (run_dir.member("fold1").path / "result.json").write_text("{}")
    assert find_missing_columns(["folds"], run_dir, config) == {"fold2": "not started", "fold3": "not started"}
