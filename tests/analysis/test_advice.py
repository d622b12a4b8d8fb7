"""Advice is written, read and rejected when stale."""

from __future__ import annotations

from pathlib import Path

import pytest

from choral.analysis.advice import Advice, AdviceLine, RejectedFamily, read_advice, write_advice
from choral.config.files import load_config
from choral.core.errors import DataError
from choral.ensembles.score_rows import IntervalDict
from choral.runs.run_dir import RunDir
from made_runs import made_run, predictions


def numbers(value: float) -> IntervalDict:
    return IntervalDict(value=value, low=value - 0.02, high=value + 0.02)


def made(run: RunDir, *lines: AdviceLine, evaluation: str = "e") -> Advice:
    return Advice(
        run=run.name,
        split="val",
        predictor="soft",
        metric="accuracy",
        n=40,
        lines=lines,
        rejected=(RejectedFamily("vflip", "costs 40 points, and undoing it corrects nothing"),),
        comparisons=9,
        note="One family is advised.",
        dataset="d",
        evaluation=evaluation,
    )


DARK = AdviceLine(
    family="darker",
    key="brightness",
    value=0.5,
    settings={"brightness": 0.5, "zoom": [0.5, 1.25]},
    strength=0.5,
    unit="of a factor of 1",
    drop=numbers(0.2),
    p_drop=0.001,
    evidence="undone",
    gain=numbers(0.1),
    p_gain=0.002,
    plausibility=0.4,
    score=0.08,
    reason="darker: costs 20 points, and brightening images gains 10 points.",
)


def test_advice_is_read_as_it_was_written_and_is_a_config(tmp_path: Path) -> None:
    run, config = made_run(tmp_path / "runs" / "made", {"val": predictions(40)})
    advice = made(run, DARK)
    path = write_advice(run, advice)
    assert read_advice(run, config, "val") == advice
    read = load_config(path)
    assert (read.augment.brightness, read.augment.zoom) == (0.5, (0.5, 1.25))
    assert (read.run, read.step, read.augment.hflip) == ("made-advised", "+augment", config.augment.hflip)
    assert DARK.reason.split(",")[0] in path.read_text() and "vflip: costs 40 points" in path.read_text()


def test_no_advice_is_a_config_that_changes_nothing(tmp_path: Path) -> None:
    run, config = made_run(tmp_path / "runs" / "made", {"val": predictions(40)})
    assert load_config(write_advice(run, made(run))).augment == config.augment


def test_advice_of_other_weights_or_another_split_is_none(tmp_path: Path) -> None:
    run, config = made_run(tmp_path / "runs" / "made", {"val": predictions(40), "test": predictions(30)})
    assert read_advice(run, config, "val") is None
    write_advice(run, made(run, DARK, evaluation="other weights"))
    assert read_advice(run, config, "val") is None
    write_advice(run, made(run, DARK))
    assert read_advice(run, config, "test") is None


def test_damaged_advice_is_named(tmp_path: Path) -> None:
    run, config = made_run(tmp_path / "runs" / "made", {"val": predictions(40)})
    (run.path / "advice.json").write_text('{"format": "choral-advice-1"}')
    with pytest.raises(DataError, match="advice.json: damaged"):
        read_advice(run, config, "val")
