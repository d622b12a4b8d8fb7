"""The status table of a run from the queue, which is a stand-in here, and the run directory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from choral.cli import main
from choral.config.files import load_config, to_yaml
from choral.runs.run_dir import RunDir, write_json

MEMBERS = ("done", "runs", "waits", "broke", "late", "gone", "off", "new")
PROGRESS = {"step": 4, "steps": 10, "loss": 0.5, "images_per_s": 20.0, "eta_s": 61, "val_accuracy": 0.75}


@pytest.fixture
def run(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A run whose eight members were submitted as job 7, each in another state."""
    monkeypatch.chdir(config_file.parent)
    names = ", ".join(f"{{name: {name}, set: {{seed: {seed}}}}}" for seed, name in enumerate(MEMBERS))
    run = RunDir(config_file.parent / "runs" / "toy")
    (run.path / "members").mkdir(parents=True)
    (run.path / "config.yaml").write_text(to_yaml(load_config(config_file, [f"ensemble.members=[{names}]"])))
    ids = {name: f"7_{number}" for number, name in enumerate(MEMBERS, 1) if name != "new"}
    write_json(run.path / "slurm" / "jobs.json", {"members": ids, "evaluation": "8"})
    write_json(run.member("done").path / "result.json", {"steps": 10})
    run.member("done").write_status(state="done", **{**PROGRESS, "step": 10})
    run.member("runs").write_status(state="running", **PROGRESS)
    run.member("broke").write_status(state="failed", reason="NotFinite: step 4: the loss is not finite", **PROGRESS)
    run.member("late").write_status(state="running", **PROGRESS)
    run.member("gone").write_status(state="running", **PROGRESS)
    return run


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that puts a `squeue` with the given shell lines on the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def install(lines: str) -> None:
        (folder / "squeue").write_text(f"#!/bin/sh\n{lines}\n")
        (folder / "squeue").chmod(0o755)

    return install


QUEUE = """cat <<'END'
7_2|RUNNING|None|node17
7_3|PENDING|Priority|
7_4|FAILED|NonZeroExitCode|node17
7_5|TIMEOUT|TimeLimit|node18
7_7|CANCELLED|None|
8|PENDING|Dependency|
9|RUNNING|None|node19
END"""


def states(capsys: pytest.CaptureFixture[str]) -> dict[str, tuple[str, str]]:
    rows = json.loads(capsys.readouterr().out)["rows"]
    return {row["name"]: (row["state"], row["note"]) for row in rows}


def test_the_table_combines_queue_and_run_directory(
    run: RunDir, squeue: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    squeue(QUEUE)
    assert main(["status", "toy", "--json"]) == 1
    found = states(capsys)
    assert found.pop("broke") == ("failed", "failed at step 4 of 10: NotFinite: step 4: the loss is not finite")
    assert found.pop("late") == ("failed", "SLURM: timeout (TimeLimit); not finished; last report at step 4 of 10")
    assert found.pop("gone") == ("interrupted", "not finished; last report at step 4 of 10")
    assert found == {
        "done": ("done", ""),
        "runs": ("running", "node17"),
        "waits": ("pending", "Priority"),
        "off": ("cancelled", ""),
        "new": ("not started", ""),
        "evaluation": ("pending", "Dependency"),
    }
    assert main(["status", "toy"]) == 1
    printed = capsys.readouterr().out
    assert "7_2" in printed and "4/10" in printed and "75.0% accuracy" in printed and "1:01" in printed
    assert "broke: failed at step 4 of 10: NotFinite" in printed
    assert all(len(line) <= 80 for line in printed.split("broke:")[0].splitlines())


def test_without_a_response_of_the_queue_the_run_directory_is_used(
    run: RunDir, squeue: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    squeue("echo 'squeue: error: Unable to contact slurm controller' >&2; exit 1")
    assert main(["status", "toy"]) == 1
    assert "queue: squeue: error: Unable to contact slurm controller" in capsys.readouterr().out


def test_without_slurm_the_table_has_the_processes_that_hold_the_locks(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    here = f"host {os.uname().nodename}, pid {os.getpid()}"
    with run.lock(), run.member("runs").lock():
        assert main(["status", "toy", "--json"]) == 1
    found = states(capsys)
    assert found["runs"] == ("running", here)
    assert found["waits"] == found["new"] == ("waiting", here)
    assert found["late"][0] == found["gone"][0] == "interrupted"
    assert main(["status", "toy"]) == 1
    assert "queue: squeue: no such command" in capsys.readouterr().out
    assert main(["cancel", "toy"]) == 1
    assert "was submitted to a SLURM cluster that this machine cannot reach" in " ".join(
        capsys.readouterr().err.split()
    )


def test_a_process_that_cannot_be_stopped_is_reported(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(pid: int, number: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(os, "kill", refuse)
    with run.lock():
        assert main(["cancel", "toy"]) == 1
    assert f"pid {os.getpid()}, which uses it, cannot be stopped: Operation not" in " ".join(
        capsys.readouterr().err.split()
    )


def test_a_queued_evaluation_without_members_is_listed_and_cancelled(
    run: RunDir, squeue: Callable[[str], None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """All members were trained on this machine. squeue may print a cluster's name above its jobs."""
    write_json(run.path / "slurm" / "jobs.json", {"members": {}, "evaluation": "8"})
    squeue("echo 'CLUSTER: far'; echo '8|PENDING|Priority|'")
    main(["status", "toy", "--json"])
    assert states(capsys)["evaluation"] == ("pending", "Priority")
    (tmp_path / "bin" / "scancel").write_text('#!/bin/sh\necho "$@" > "$0.log"\n')
    (tmp_path / "bin" / "scancel").chmod(0o755)
    assert main(["cancel", "toy"]) == 0
    assert capsys.readouterr().out == "evaluation: job 8 cancelled\n"
    assert (tmp_path / "bin" / "scancel.log").read_text() == "8\n"


def test_exit_status_0_1_and_75(run: RunDir, squeue: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    squeue("echo '8|RUNNING|None|node1'")
    assert main(["status", "toy"]) == 1
    run.member("broke").write_status(state="stopped", **PROGRESS)
    assert main(["status", "toy"]) == 75
    for name in MEMBERS:
        write_json(run.member(name).path / "result.json", {"steps": 10})
    assert main(["status", "toy"]) == 75  # the evaluation is at work
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert main(["status", "toy"]) == 0  # and asks itself
