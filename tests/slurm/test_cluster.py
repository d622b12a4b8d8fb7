"""Runs on a real SLURM cluster of two nodes: the same digits as on this machine, despite requeues, failures and cancels."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster import Cluster

from choral.cli import main
from choral.cli.workflow.slurm_submit import SubmittedJobs
from choral.jobs.slurm.queue import QueueEntry, read_queue
from choral.runs.run_dir import RunDir
from toy_data import Choral

CONFIG = """\
data: {{shards: '{shards}', image_size: 32, eval_crop: resized}}
model: {{name: test_resnet, weights: none}}
augment: {{crop_scale: [0.5, 1], vflip: 0.5, brightness: 0.2}}
train: {{steps: 40, batch_size: 12, lr: 3e-2, optimizer: sgd, log_every_steps: 1, save_every_steps: 4, timeout_s: 120}}
evaluate: {{splits: [test], views: [hflip], batch_size: 4}}
tracking: {{wandb: 'off'}}
"""
ENSEMBLE = "ensemble={seeds: 3}"


class Place:
    """A folder with toy.yaml from which runs are submitted; its name has characters that are special in a shell."""

    def __init__(self, folder: Path, shards: Path) -> None:
        self.folder = folder / 'it\'s a "folder" $(touch x); #'
        self.folder.mkdir()
        (self.folder / "toy.yaml").write_text(CONFIG.format(shards=shards))

    def choral(self, *arguments: str) -> int:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            return main(list(arguments))

    def run(self, name: str) -> RunDir:
        return RunDir(self.folder / "runs" / name)

    def entry(self, run: str, name: str) -> QueueEntry:
        jobs = SubmittedJobs.read(self.run(run))
        job = jobs.members[name] if name != "evaluation" else jobs.evaluation
        return read_queue()[job]

    def wait(self, condition: Callable[[], bool], timeout_s: float = 600) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, self.report()
            time.sleep(0.3)

    def wait_for_end(self, run: str) -> QueueEntry:
        """Wait until the evaluation has ended, and return its queue entry."""
        self.wait(lambda: not self.entry(run, "evaluation").is_live)
        return self.entry(run, "evaluation")

    def wait_for_step(self, member: RunDir, step: int) -> None:
        self.wait(lambda: member.status.get("state") == "running" and member.status.get("step", 0) >= step)

    def report(self) -> str:
        logs = [*self.folder.glob("runs/*/slurm/*.log"), *self.folder.glob("runs/**/log.txt")]
        return "\n".join([str(read_queue()), *(f"== {log}\n{log.read_text()[-3000:]}" for log in logs)])


@pytest.fixture(scope="module")
def place(cluster: Cluster, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("slurm"), shards)
    yield place
    assert not list(place.folder.rglob("x")), "a name was executed"


@pytest.fixture(scope="module")
def interrupted(place: Place) -> Place:
    """Three members. The last one, whose job has the array's id, is stopped, and the second is requeued."""
    assert place.choral("submit", "toy.yaml", ENSEMBLE, "run=far", "--cpus", "1") == 0
    last, second = (place.run("far").member(name) for name in ("seed3", "seed2"))
    jobs = SubmittedJobs.read(place.run("far")).members
    place.wait_for_step(last, 3)
    subprocess.run(["scancel", "--batch", "--signal=USR1", jobs["seed3"]], check=True)
    place.wait_for_step(second, 3)
    subprocess.run(["scontrol", "requeue", jobs["seed2"]], check=True)
    return place


def read_weights(member: RunDir) -> bytes:
    return (member.checkpoints / "step-00000040" / "model.safetensors").read_bytes()


def test_interrupted_members_end_with_the_same_weights_as_on_this_machine(
    interrupted: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place, far, local = interrupted, interrupted.run("far"), interrupted.run("local")
    assert place.choral("submit", "toy.yaml", ENSEMBLE, "run=far", "--cpus", "1") == 0  # submitted again: no new jobs
    printed = capsys.readouterr().out
    assert printed.count("already in the queue as job") + ("already trained" in printed) >= 2
    assert place.choral("run", "toy.yaml", ENSEMBLE, "run=local") == 0
    assert place.wait_for_end("far").state == "COMPLETED"
    for name in ("seed1", "seed2", "seed3"):
        assert read_weights(far.member(name)) == read_weights(local.member(name)), name
    assert "stopped by request at step" in (far.member("seed3").path / "log.txt").read_text()
    for name in ("seed3", "seed2"):
        log = (far.member(name).path / "log.txt").read_text()
        assert "start 2," in log and "continuing at step" in log
    scores = [(run.path / "scores-test.json").read_text() for run in (far, local)]
    assert scores[0].replace("choral evaluate far", "choral evaluate local") == scores[1]  # digit for digit
    (log,) = far.path.glob("slurm/evaluate-*.log")
    assert "member/seed1" in log.read_text() and "soft" in log.read_text()
    capsys.readouterr()
    assert place.choral("status", "far", "--json") == 0
    status = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["state"]) for row in status["rows"]] == [
        *((name, "done") for name in ("seed1", "seed2", "seed3", "evaluation")),
    ]
    assert place.choral("submit", "toy.yaml", ENSEMBLE, "run=far") == 0
    assert "3 of 3 already trained\neverything is done: choral score far" in capsys.readouterr().out


def test_one_member_fails_for_good_and_the_others_are_evaluated(
    interrupted: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """Continues a copy of the first run without its third member, which cannot save."""
    place = interrupted
    place.wait_for_end("far")
    run = place.run("sick")
    shutil.copytree(place.run("far").path, run.path, ignore=shutil.ignore_patterns("seed3", "predictions", "slurm"))
    (run.path / "members" / "seed3").mkdir()
    run.member("seed3").checkpoints.touch()  # a file where a folder has to be
    capsys.readouterr()
    assert place.choral("submit", "toy.yaml", ENSEMBLE, "run=sick") == 0
    assert "2 of 3 already trained\nseed3: job" in capsys.readouterr().out
    assert place.wait_for_end("sick").state == "FAILED"
    assert place.entry("sick", "seed3").state == "FAILED"
    log = (run.member("seed3").path / "log.txt").read_text()
    assert "attempt 2 of 2 follows" in log and "start 2," in log and "start 3," not in log
    (log,) = run.path.glob("slurm/evaluate-*.log")
    text = log.read_text()
    assert "2 of 3 members; without seed3: failed" in text and "the checkpoint cannot be written" in text
    assert "member/seed2" in text and "soft" in text
    assert place.choral("status", "sick") == 1
    printed = capsys.readouterr().out
    assert "seed3: failed" in printed and "the checkpoint cannot be written" in printed


def test_a_member_on_two_nodes_is_cancelled_and_continued(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    member = ["ensemble.members=[{name: wide}]"]
    assert place.choral("submit", "toy.yaml", *member, "run=wide", "--nodes", "2", "--cpus", "1") == 0
    wide = place.run("wide").member("wide")
    place.wait_for_step(wide, 3)
    capsys.readouterr()
    assert place.choral("status", "wide") == 75
    printed = capsys.readouterr().out
    assert "running" in printed and "choral[1-2]" in printed and "pending" in printed and "Dependency" in printed
    assert place.choral("cancel", "wide") == 0
    printed = capsys.readouterr().out
    assert printed.count("cancelled") == 2
    place.wait(lambda: place.entry("wide", "wide").state == "CANCELLED")
    time.sleep(2)  # that a requeue would take
    assert place.entry("wide", "wide").state == "CANCELLED"
    assert place.choral("status", "wide") == 75
    assert place.choral("cancel", "wide") == 0
    assert "nothing is running or queued" in capsys.readouterr().out
    assert place.choral("submit", "toy.yaml", *member, "run=wide", "--nodes", "2", "--cpus", "1") == 0
    place.wait(lambda: wide.result is not None)
    same = ["train", "toy.yaml", "run=same", "--processes", "2"]
    assert place.choral(*same) == 0
    assert read_weights(wide) == read_weights(place.run("same"))
    assert place.choral("cancel", "wide") == 0  # an evaluation of one member says nothing more


def test_rounds_of_boosting_are_a_chain(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    chain = ["submit", "toy.yaml", "run=chain", "ensemble.boosting=2", "train.steps=6"]
    assert place.choral(*chain) == 0
    capsys.readouterr()
    assert place.choral("status", "chain") == 75
    second = next(line for line in capsys.readouterr().out.splitlines() if "round2" in line)
    assert "pending" in second and "Dependency" in second
    assert place.wait_for_end("chain").state == "COMPLETED", place.report()
    run = place.run("chain")
    first, second = (run.member(name).path / "log.txt" for name in ("round1", "round2"))
    starts = [re.findall(r"start 1, (.*)", log.read_text()) for log in (first, second)]
    assert starts[0] < starts[1]
    assert [one["member"] for one in json.loads((run.path / "boosting" / "rounds.json").read_text())["rounds"]] == [
        "round1",
        "round2",
    ]
    (log,) = run.path.glob("slurm/evaluate-*.log")
    assert "boosting" in log.read_text() and "member/round2" in log.read_text()


def test_status_and_cancel_of_a_run_of_this_machine(
    config_file: Path, choral: Choral, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without SLURM: which process works on a run, and how it is stopped."""
    arguments = ["train", str(config_file), "train.steps=100000"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "choral", *arguments], cwd=tmp_path, env=env)
    run = RunDir(tmp_path / "runs" / "toy")
    try:
        deadline = time.monotonic() + 120
        while run.status.get("state") != "running" and time.monotonic() < deadline:
            time.sleep(0.2)
        status = choral("status", "toy")
        assert status.returncode == 75
        assert "running" in status.stdout and f"host {os.uname().nodename}, pid" in status.stdout
        cancelled = choral("cancel", "toy")
        assert "to save and stop" in cancelled.stdout
        assert process.wait(timeout=120) == 75
    finally:
        process.kill()
    status = choral("status", "toy", "--json")
    assert json.loads(status.stdout)["rows"][0]["state"] == "stopped"
    assert choral("cancel", "toy").stdout == "nothing is running or queued\n"
    run.write_status(**{**run.status, "state": "running"})  # as a kill -9 leaves it
    assert "interrupted" in choral("status", "toy").stdout
