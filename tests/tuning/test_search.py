"""Searches with simulated training: which trials are created, ended early, continued and kept."""

from __future__ import annotations

import io
import json
import pickle
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from choral.config import Config
from choral.config.files import load_config
from choral.jobs import Outcome, run_jobs
from choral.runs.run_dir import RunDir
from choral.tuning import trials as trials_module
from choral.tuning.space import Space, build_search_space
from choral.tuning.study import Study
from choral.tuning.trials import TrialSource

FAKE = Path(__file__).with_name("fake_training.py")


class SimulatedSearch:
    """A search in a folder with simulated training."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        (folder / "cells.yaml").write_text("data: {shards: shards}\ntracking: {wandb: 'off'}\n", encoding="utf-8")
        space_text = "tune.space={train.lr: {low: 1e-5, high: 1e-1, log: true}}"
        self.config: Config = load_config(folder / "cells.yaml", [space_text, "tune.min_epochs=2", *overrides])
        self.space: Space = build_search_space(self.config, ())
        self.root = folder / "runs" / "cells" / "tune"

    def study(self) -> Study:
        return Study(self.root / "study.log", self.config, self.space, False, 1.0)

    def source(self) -> TrialSource:
        return TrialSource(self.root, self.study(), self.config, self.space, "log_loss")

    def run(self, source: TrialSource, slots: int = 2) -> list[Outcome]:
        output = Console(file=io.StringIO())
        return run_jobs([], slots=[{}] * slots, source=source, retries=0, console=output, grace_s=5)


@pytest.fixture
def pace(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds per epoch of the simulated training; change the first item."""
    seconds = [0.0]

    def command(folder: RunDir, config: Config) -> tuple[str, ...]:
        return (
            sys.executable,
            "-I",
            "-S",
            str(FAKE),
            str(folder.path / "requested.yaml"),
            str(folder.path),
            str(seconds[0]),
        )

    monkeypatch.setattr(trials_module, "train_command", command)
    return seconds


def test_a_search_finds_the_rate_keeps_the_best_and_unpickles_nothing(
    tmp_path: Path, pace: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> Any:
        raise AssertionError("unpickled")

    monkeypatch.setattr(pickle, "loads", refuse)
    monkeypatch.setattr(pickle, "load", refuse)
    search = SimulatedSearch(tmp_path, "tune.trials=8")
    source = search.source()
    outcomes = search.run(source)
    trials = search.study().trials()
    assert [trial.number for trial in trials] == list(range(8))
    assert {outcome.state for outcome in outcomes} <= {"done", "stopped"}
    assert trials[0].point == {"train.lr": 1e-3}
    assert source.trial_config(trials[0]).train.lr == 1e-3
    best = search.study().best()
    assert best is not None
    assert best.value == pytest.approx(min(trial.value for trial in trials if trial.state == "done" and trial.value))
    assert 10**-4 < best.point["train.lr"] < 10**-1.5, "the optimum is at 10^-2.5"
    left = sorted(path.parent.name for path in search.root.glob("trials/*/checkpoints"))
    assert left == sorted({"000", best.name})
    assert search.study().importance() == {"train.lr": pytest.approx(1.0)}
    assert search.run(search.source()) == [], "finished trials are not repeated"


def test_equal_searches_create_equal_trials(tmp_path: Path) -> None:
    points = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        search = SimulatedSearch(tmp_path / name, "tune.trials=12")
        for number in range(9):
            study = search.study()  # as if each trial were another start
            trial = study.ask()
            study.tell(trial.number, "done", float(number * number % 7))
        points.append([dict(trial.point) for trial in search.study().trials()])
    assert points[0] == points[1]


@pytest.mark.parametrize("pruner", ["median", "asha", "hyperband"])
def test_trials_that_validate_badly_are_ended_early(tmp_path: Path, pace: list[float], pruner: str) -> None:
    search = SimulatedSearch(tmp_path, f"tune.pruner={pruner}", "tune.trials=8")
    study = search.study()
    ended = set()
    for number in range(8):
        trial = study.ask()
        offset = 0.0 if number < 4 else float(number)
        for epoch in range(1, 11):
            if study.should_prune(trial.number, [offset + 1 / n for n in range(1, epoch + 1)]):
                assert epoch >= 2, "not before tune.min_epochs"
                study.tell(trial.number, "ended early")
                ended.add(number)
                break
        else:
            study.tell(trial.number, "done", offset + 0.1)
    assert ended
    assert 0 not in ended
    assert ended <= {4, 5, 6, 7}
    best = study.best()
    assert best is not None
    assert best.number < 4


def test_a_running_trial_is_stopped_and_counts_as_ended_early(tmp_path: Path, pace: list[float]) -> None:
    search = SimulatedSearch(tmp_path, "tune.trials=5")
    study = search.study()
    for _ in range(4):
        trial = study.ask()
        study.should_prune(trial.number, [0.01 / n for n in range(1, 11)])
        study.tell(trial.number, "done", 0.001)
    pace[0] = 0.3
    started = time.monotonic()
    (outcome,) = search.run(search.source())
    assert (outcome.state, outcome.exit_code) == ("stopped", 75)
    assert time.monotonic() - started < 3.5
    last = search.study().trials()[-1]
    assert last.state == "ended early"
    assert 2 <= last.validations < 10


def test_a_loss_that_is_not_finite_counts_as_pruned_and_an_error_as_failed(tmp_path: Path, pace: list[float]) -> None:
    search = SimulatedSearch(tmp_path, "tune.trials=3")
    study = search.study()
    for number, reason in enumerate(("NotFinite: the loss of step 3 is nan", "OutOfMemory: batch of 64")):
        trial = study.ask()
        source = search.source()
        source._claim(trial)
        source.run_dir(trial).write_status(state="failed", reason=reason)
        source.job_ended(Outcome(source._job(trial), "failed", 1, 1))
        assert search.study().trials()[number].state == ("ended early", "failed")[number]


def test_two_processes_share_a_search_and_continue_abandoned_trials(tmp_path: Path, pace: list[float]) -> None:
    search = SimulatedSearch(tmp_path, "tune.trials=6", "tune.pruner=none")
    first = search.source()
    left = first.next_job()
    assert left is not None
    assert left.name == "000"
    second = search.source()
    started = second.next_job()
    assert started is not None
    assert started.name == "001", "the first process has 000"
    for stream in (*first._claims.values(), *second._claims.values()):
        stream.close()  # as if both had been killed
    feeds = [search.source(), search.source()]
    workers = [threading.Thread(target=search.run, args=(source, 1)) for source in feeds]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    trials = search.study().trials()
    assert [trial.state for trial in trials] == ["done"] * 6
    starts = [(search.root / "trials" / trial.name / "log.txt").read_text().count("=====") for trial in trials]
    assert starts == [1] * 6, "each by one process"


def test_a_kill_before_the_first_trial_is_created_is_harmless(
    tmp_path: Path, pace: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    search = SimulatedSearch(tmp_path, "tune.trials=2")
    study = search.study()
    with monkeypatch.context() as context:
        context.setattr(study._study, "ask", lambda: sys.exit("killed"))
        with pytest.raises(SystemExit):
            study.ask()
    assert search.study().trials() == []
    search.run(search.source())
    trials = search.study().trials()
    assert [trial.state for trial in trials] == ["done"] * 2
    assert trials[0].point == {"train.lr": 1e-3}


def test_an_incomplete_last_line_of_the_journal_is_truncated(tmp_path: Path, pace: list[float]) -> None:
    search = SimulatedSearch(tmp_path, "tune.trials=3")
    search.run(search.source())
    journal = search.root / "study.log"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 4, "wor')
    assert len(search.study().trials()) == 3
    assert journal.read_bytes().startswith(whole)
    search.study().ask()
    lines = journal.read_text().splitlines()
    assert all(json.loads(line) for line in lines)
