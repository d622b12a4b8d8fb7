"""`choral tune` from end to end, with simulated training and evaluation."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from choral.cli import main
from choral.cli.workflow.tuning import prepare_search
from choral.config import Config
from choral.config.files import load_config
from choral.inference.evaluation_request import EvaluationRequest
from choral.runs.run_dir import RunDir
from choral.scoring.scoreboard.recording import record_steps
from choral.tuning import trials as trials_module
from made_runs import predictions, write_ledger

FAKE = Path(__file__).with_name("fake_training.py")
SPACE = "tune.space={train.lr: {low: 1e-4, high: 1e-1, log: true}, train.optimizer: [sgd, adamw]}"


@pytest.fixture
def evaluated(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """A folder with toy.yaml; returns the (folder, split) pairs that are evaluated."""
    found: list[tuple[str, str]] = []

    def command(folder: RunDir, config: Config) -> tuple[str, ...]:
        return (sys.executable, "-I", "-S", str(FAKE), str(folder.path / "requested.yaml"), str(folder.path), "0")

    def evaluate(request: EvaluationRequest, processes: int) -> int:
        folder = request.run_dir
        found.append((str(folder.path), request.split))
        labels, probabilities = predictions(80, ("model",), seed=len(found), views=("identity",))
        labels = predictions(80, ("model",), seed=9)[0]
        write_ledger(
            folder.predictions / f"{request.split}.parquet", labels, probabilities, evaluation=str(folder.path)
        )
        record_steps(folder, folder.config(), request.split)
        return 0

    monkeypatch.chdir(config_file.parent)
    monkeypatch.setattr(trials_module, "train_command", command)
    monkeypatch.setattr("choral.cli.workflow.tuning.evaluate", evaluate)
    return found


def test_a_search_from_end_to_end(
    evaluated: list[tuple[str, str]], config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["tune", "toy.yaml", SPACE, "ensemble.seeds=3", "tune.pruner=none", "--jobs", "2"]
    assert main(["tune", "toy.yaml", SPACE, "ensemble.seeds=3", "--show"]) == 2
    assert "no trial has been started yet" in capsys.readouterr().err
    assert main([*command, "--trials", "5"]) == 0
    output = capsys.readouterr().out
    assert "5 trials, log loss on val" in output
    assert "The best of 5 trials was selected on these samples" in output
    root = config_file.parent / "runs" / "toy" / "tune"
    best = load_config(root / "best.yaml")
    assert best.run == "toy-tuned"
    assert best.ensemble.seeds == 3, "of the config as it is"
    report: dict[str, Any] = json.loads((root / "tune.json").read_text(encoding="utf-8"))
    assert best.train.lr == report["best"]["config"]["train.lr"] != 3e-2
    assert {split for _, split in evaluated} == {"val"}, "the test split is not used"
    folders = [path for path, _ in evaluated]
    assert folders == ["runs/toy/tune/trials/000", f"runs/toy/tune/trials/{report['best']['number']:03d}"]
    assert main(["scores", "--split", "val", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["tables"][0]["rows"]
    assert [(row["step"], row["run"].partition("/")[0]) for row in rows] == [("baseline", "toy"), ("+tune", "toy")]
    derived = config_file.parent / "derived.yaml"
    derived.write_text("base: runs/toy/tune/best.yaml\nensemble: {seeds: 5}\n", encoding="utf-8")
    assert load_config(derived).train.lr == best.train.lr
    assert main([*command, "--trials", "7", "--json"]) == 0, "more trials continue"
    again = json.loads(capsys.readouterr().out)
    assert [trial["number"] for trial in again["trials"]] == list(range(7))
    assert again["trials"][:5] == report["trials"]
    assert again["gain"]
    study = prepare_search(load_config(config_file, command[2:5])).study()
    better = study.ask()
    study.tell(better.number, "done", 1e-6)  # as another process leaves it, before it is compared
    assert main([*command[:-2], "--show", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["best"]["number"], shown["gain"]) == (7, []), "what was compared is another one"
    assert main(["tune", "toy.yaml", "tune.space={train.lr: auto}", "--show"]) == 2
    assert "holds a search of another config (tune.space.train.lr; tune.space.train.optimizer)" in " ".join(
        capsys.readouterr().err.split()
    )


def test_without_a_finished_trial_the_error_has_the_reason(
    evaluated: list[tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", "toy.yaml", "train.lr=0.9", "tune.space={train.lr: [0.8, 0.9]}", "tune.trials=2"]) == 1
    assert "runs/toy/tune: none of 2 trials finished" in " ".join(capsys.readouterr().err.split())
    assert not evaluated
