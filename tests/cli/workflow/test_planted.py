"""A planted weakness, end to end: found, mended, the test data asked about once. More: tests/bench/bench_planted.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from choral.analysis.advice import read_advice
from choral.cli.workflow.improvement import improve
from choral.config.files import load_config
from choral.data.packing.options import PackOptions
from choral.data.packing.pack import pack
from choral.runs.run_dir import RunDir
from in_process import launch_in_process
from planted import planted

COUNTS = {"train": 240, "val": 160, "test": 80}


def test_letters_that_training_never_saw_turned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pack(
        str(planted(Path("photos"), "rotation", COUNTS, letters="AFKS", side=32)),
        Path("shards"),
        PackOptions(processes=1),
    )
    Path("letters.yaml").write_text(
        "data: {shards: shards, image_size: 32, eval_crop: resized}\n"
        "model: {name: test_resnet, weights: none}\n"
        "augment: {preset: none}\n"
        "train: {epochs: 10, batch_size: 24, lr: 1e-2, eval_every_epochs: 4}\n"
        "tracking: {wandb: 'off', worst_images: 0}\n"
        "analyze: {probe_samples: 120}\n"
        "project: letters\n"
    )
    started = launch_in_process(monkeypatch)
    found = improve(load_config("letters.yaml"), 1, 1, Console(quiet=True))
    baseline = RunDir(Path("runs") / found.baseline)
    advice = read_advice(baseline, baseline.config(), "val")
    assert advice is not None and advice.lines[0].family == "rotation"
    assert {one.family for one in advice.rejected} >= {"darker", "vflip", "blur"}
    assert found.settings["rotate"] >= 30 and found.rounds[0].kept
    assert found.final == "letters-augment1"
    assert [one for one in started if one.startswith("choral.inference ")][-2:] == [
        "choral.inference letters-baseline",
        "choral.inference letters-augment1",
    ]
    assert found.test["test"][0]["n"] == COUNTS["test"]
    steps = Path("runs/scoreboard/letters/entries.jsonl").read_text()
    assert '"baseline"' in steps and '"+augment"' in steps
