"""The rounds of `choral improve`, of runs whose ledgers are made: what is tried, kept, asked about, and continued."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from choral.analysis.advice import Advice, AdviceLine
from choral.cli.workflow import improvement as improving
from choral.cli.workflow.improvement import Improvement, baseline_config, improve, read_improvement
from choral.cli.workflow.improvement_table import print_improvement
from choral.config import Config
from choral.config.files import load_config
from choral.core.errors import ChoralError, Stopped
from choral.ensembles.score_rows import IntervalDict
from choral.inference.evaluation_request import EvaluationRequest
from choral.runs.run_dir import RunDir, write_json
from made_runs import write_ledger

FIGURE = IntervalDict(value=0.1, low=0.05, high=0.15)
QUIET = Console(quiet=True)


def line(family: str, **settings: object) -> AdviceLine:
    key, value = next(iter(settings.items()))
    return AdviceLine(
        family, key, value, settings, 1.0, "", FIGURE, 0.01, "undone", FIGURE, 0.01, 0.5, 0.05, f"{family} pays"
    )


class Bench:
    """What is trained, asked and advised, in the order in which it happens; the share that is right is set by the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.right: dict[str, float] = {}
        self.advice: dict[str, tuple[AdviceLine, ...]] = {}
        self.done: list[str] = []
        self.codes: dict[str, int] = {}
        monkeypatch.setattr(improving, "train_all", self.train)
        monkeypatch.setattr(improving, "evaluate", self.evaluate)
        monkeypatch.setattr(improving, "advise", self.advise)
        monkeypatch.setattr(improving, "pack_if_missing", lambda config, console: None)

    def train(self, config: Config, folder: RunDir, console: Console) -> int:
        if code := self.codes.pop(f"train {folder.name}", 0):
            return code
        if folder.result is None:
            folder.store_config(config)
            write_json(folder.path / "result.json", {})
            self.done.append(f"train {folder.name}")
        return 0

    def evaluate(self, request: EvaluationRequest, processes: int) -> int:
        for split in request.split.split(","):
            path = request.run_dir.predictions / f"{split}.parquet"
            if not path.is_file():
                labels = np.arange(200) % 3
                right = np.arange(200) < 200 * self.right[request.run_dir.name]
                said = np.full((200, 3), 0.05, np.float32)
                said[np.arange(200), np.where(right, labels, (labels + 1) % 3)] = 0.9
                write_ledger(path, labels, {("model", "identity"): said})
                self.done.append(f"{split} {request.run_dir.name}")
        return 0

    def advise(self, folder: RunDir) -> Advice:
        lines = self.advice.get(folder.name, ())
        return Advice(folder.name, "val", "soft", "accuracy", 200, lines, (), 9, "as the test says", "d", "e")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bench:
    monkeypatch.chdir(tmp_path)
    return Bench(monkeypatch)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    path = tmp_path / "cells.yaml"
    path.write_text("data: {shards: s}\nensemble: {members: [{name: a, set: {train.lr: 3e-4}}, {name: b}]}\n")
    return load_config(path)


def test_two_rounds_are_kept_each_on_top_of_the_one_before(bench: Bench, config: Config, tmp_path: Path) -> None:
    bench.right = {"cells-baseline": 0.5, "cells-augment1": 0.7, "cells-augment2": 0.9}
    bench.advice = {
        "cells-baseline": (line("darker", brightness=0.4), line("rotation", rotate=20)),
        "cells-augment1": (line("rotation", rotate=45),),
    }
    found = improve(config, 1, 2, QUIET)
    assert (found.baseline, found.final) == ("cells-baseline", "cells-augment2")
    assert found.settings == {"brightness": 0.4, "rotate": 45}
    assert [one.kept for one in found.rounds] == [True, True]
    # The test split comes last, and of two runs only.
    assert bench.done == [
        *("train cells-baseline", "val cells-baseline", "train cells-augment1", "val cells-augment1"),
        *("train cells-augment2", "val cells-augment2", "test cells-baseline", "test cells-augment2"),
    ]
    difference = found.test["test"][0]["difference"]
    assert difference is not None and difference["value"] == pytest.approx(0.4)
    second = RunDir(Path("runs/cells-augment2")).config()
    assert (second.augment.brightness, second.augment.rotate, second.step) == (0.4, 45, "+augment 2")
    kept = load_config("runs/cells-baseline/improved.yaml")
    assert kept == config.replace(augment=second.augment)
    assert read_improvement(RunDir(Path("runs/cells-baseline"))) == found


def test_what_does_not_pay_is_not_kept_and_ends_it(bench: Bench, config: Config) -> None:
    bench.right = {"cells-baseline": 0.7, "cells-augment1": 0.7}
    bench.advice = {"cells-baseline": (line("darker", brightness=0.4),)}
    found = improve(config, 1, 2, QUIET)
    assert found.final == found.baseline and found.settings == {} and found.test == {}
    assert [(one.run, one.kept) for one in found.rounds] == [("cells-augment1", False)]
    assert "does not lie entirely on the better side" in found.rounds[0].reason
    assert bench.done[-1] == "test cells-baseline"
    assert load_config("runs/cells-baseline/improved.yaml") == config


def test_without_advice_nothing_is_trained(bench: Bench, config: Config) -> None:
    bench.right = {"cells-baseline": 0.7}
    found = improve(config, 1, 2, QUIET, test=False)
    assert bench.done == ["train cells-baseline", "val cells-baseline"]
    assert [(one.run, one.reason) for one in found.rounds] == [("", "as the test says")]


def test_it_continues_where_it_was_stopped(bench: Bench, config: Config) -> None:
    bench.right = {"cells-baseline": 0.5, "cells-augment1": 0.7}
    bench.advice = {"cells-baseline": (line("darker", brightness=0.4),)}
    bench.codes = {"train cells-augment1": 75}
    with pytest.raises(Stopped, match="cells-augment1: stopped"):
        improve(config, 1, 1, QUIET)
    assert read_improvement(RunDir(Path("runs/cells-baseline"))) is None
    before = list(bench.done)
    found = improve(config, 1, 1, QUIET)
    assert bench.done[len(before) :][0] == "train cells-augment1" and found.final == "cells-augment1"
    finished = list(bench.done)
    assert improve(config, 1, 1, QUIET) == found and bench.done == finished


def test_a_round_goes_on_with_the_advice_that_it_was_begun_with(bench: Bench, config: Config) -> None:
    bench.right = {"cells-baseline": 0.5, "cells-augment1": 0.7}
    bench.advice = {"cells-baseline": (line("darker", brightness=0.4),)}
    found = improve(config, 1, 1, QUIET)
    (RunDir(Path("runs/cells-augment1")).checkpoints / "step-9").mkdir(parents=True)  # as a training leaves it
    finished = list(bench.done)
    for later in ((line("darker", brightness=0.6),), ()):
        bench.advice = {"cells-baseline": later}  # as a later version of the code may find
        assert improve(config, 1, 1, QUIET) == found and bench.done == finished
    labels, said = np.zeros(9, np.int64), np.full((9, 3), 1 / 3, np.float32)
    path = Path("runs/cells-baseline/predictions/val.parquet")
    write_ledger(path, labels, {("model", "identity"): said}, evaluation="another")
    assert improve(config, 1, 1, QUIET).rounds[0].reason == "as the test says", "it was of other weights"


def test_a_training_that_fails_is_named(bench: Bench, config: Config) -> None:
    bench.codes = {"train cells-baseline": 1}
    with pytest.raises(ChoralError, match="cells-baseline: could not be trained"):
        improve(config, 1, 1, QUIET)


def test_the_baseline_is_one_network_of_the_config_asked_about_validation_alone(config: Config) -> None:
    base = baseline_config(config)
    assert (base.run, base.step, base.train.lr, base.ensemble.members) == ("cells-baseline", "baseline", 3e-4, ())
    assert (base.evaluate.splits, base.evaluate.views) == (("val",), ("identity",))
    several = baseline_config(config, 3)
    assert (several.run, several.ensemble.seeds) == ("cells-baseline-3-seeds", 3)


def test_the_table_says_what_was_tried_and_kept(bench: Bench, config: Config) -> None:
    bench.right = {"cells-baseline": 0.5, "cells-augment1": 0.7}
    bench.advice = {"cells-baseline": (line("darker", brightness=0.4),)}
    found = improve(config, 1, 1, QUIET)
    console = Console(record=True, width=120, file=io.StringIO())
    print_improvement(found, console)
    text = console.export_text()
    assert "+20.00 [" in text
    assert "Kept: augment.brightness: 0.4" in text and "round 1: darker: kept" in text
    assert Improvement.from_json(json.loads(json.dumps(found.to_json()))) == found
