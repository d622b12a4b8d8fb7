"""Who is missing in a result, and why: in one line, from the folders alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from choral.config import Config
from choral.config.files import load_config
from choral.ensembles.missing_members import absent_from, absent_members, forget_failure, how_many, note_failures
from choral.jobs import Job, Outcome
from choral.runs.run_dir import RunDir


@pytest.fixture
def config(config_file: Path) -> Config:
    return load_config(config_file, ["ensemble.members=[{name: a}, {name: b}, {name: c}]"])


@pytest.fixture
def folder(config: Config, tmp_path: Path) -> RunDir:
    """A run of which a is trained, with a ledger's worth of nothing else."""
    folder = RunDir(tmp_path / "toy")
    for name in "abc":
        folder.member(name).path.mkdir(parents=True)
    (folder.member("a").path / "result.json").write_text("{}")
    return folder


def test_each_state_has_its_words(config: Config, folder: RunDir) -> None:
    b = folder.member("b")
    log = b.path / "log.txt"
    assert absent_members(folder, config) == {"b": "not started", "c": "not started"}
    log.write_text("===== attempt 1, 2026-11-22: choral train\nloading\nerror: train.lr: too high\nbye\n")
    assert absent_members(folder, config)["b"] == f"not finished; its log ends: error: train.lr: too high (log: {log})"
    log.write_text(
        f"{log.read_text()}===== job 7 on node1, start 2, 2026-11-22 20:00:00\n"
    )  # nothing is known of this one
    assert absent_members(folder, config)["b"] == "not started"
    log.write_text(f"{log.read_text()}srun: error: node1: task 0: Killed\n")
    assert "its log ends: srun: error: node1: task 0: Killed (log:" in absent_members(folder, config)["b"]
    at = {"step": 40, "steps": 120, "loss": 0.5}
    for status, words in (
        ({"state": "running", **at}, f"not finished; last heard of at step 40 of 120 (log: {log})"),
        ({"state": "stopped", "reason": "stopped by request"}, "stopped"),
        ({"state": "stopped", "reason": "stopped by request", **at}, "stopped at step 40 of 120"),
        ({"state": "failed", "reason": "OSError: disk\n  full"}, f"failed: OSError: disk full (log: {log})"),
        ({"state": "failed", "reason": "x" * 999, **at}, f"failed at step 40 of 120: {'x' * 239}… (log: {log})"),
    ):
        b.report(**status)
        assert absent_members(folder, config)["b"] == words
    b.report(state="running", **at)
    with b.lock():
        assert absent_members(folder, config)["b"] == f"still in training at step 40 of 120 (log: {log})"


def test_a_failure_is_noted_where_the_member_could_not(folder: RunDir, config: Config) -> None:
    b, c = folder.member("b"), folder.member("c")
    b.report(state="running", step=40, steps=120, loss=0.5)
    c.report(state="failed", reason="ChoralError: lr: auto: no rate")
    killed = Outcome(Job("b", ("x",), b.path), "failed", 137, 2, "step 39\nstep 40", "killed by SIGKILL")
    told = Outcome(Job("c", ("x",), c.path), "failed", 1, 2, "Traceback", "exit status 1")
    done = Outcome(Job("a", ("x",), folder.member("a").path), "done", 0, 1)
    note_failures([done, killed, told])
    reasons = {
        "b": "failed at step 40 of 120: killed by SIGKILL: step 40",
        "c": "failed: ChoralError: lr: auto: no rate",
    }
    assert absent_members(folder, config) == reasons
    assert how_many(3, reasons) == f"1 of 3 members; without b: {reasons['b']}; c: {reasons['c']}"
    forget_failure(c)  # tried again, it dies before it can say why
    note_failures([replace(told, log_tail="")])
    assert absent_members(folder, config)["c"] == "failed: exit status 1"
    assert not folder.member("a").status


def test_a_ledger_knows_whom_it_is_without(folder: RunDir, config: Config) -> None:
    (folder.member("b").path / "result.json").write_text("{}")
    assert absent_from(["a"], folder, config) == {
        "b": "trained, but not asked yet: run `choral evaluate toy`",
        "c": "not started",
    }
    assert absent_from(["a", "b", "c"], folder, config) == {}  # c is being trained again
    assert absent_from(["a.1", "a.2", "b.1", "b.2"], folder, config) == {"c": "not started"}  # snapshots
    assert how_many(3, {}) == ""


def test_groups_of_held_out_predictions_are_no_members(config_file: Path, tmp_path: Path) -> None:
    config, folder = load_config(config_file, ["ensemble.folds=3"]), RunDir(tmp_path / "toy")
    folder.member("fold1").path.mkdir(parents=True)
    (folder.member("fold1").path / "result.json").write_text("{}")
    assert absent_from(["folds"], folder, config) == {"fold2": "not started", "fold3": "not started"}
