"""Uses of a test split: what counts as one, what is not counted twice, and the note below a table."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from choral.cli.workflow.scores import combine, score
from choral.config import Config
from choral.ensembles.saved_combination import CombinationRequest
from choral.runs.run_dir import RunDir
from choral.scoring.predictor import list_predictors, load_predictor, open_evaluated_ledger
from choral.scoring.scoreboard.test_set_uses import TestSetUses as Uses  # pytest collects names in Test
from choral.scoring.scoreboard.test_set_uses import (
    build_test_set_uses_note,
    format_test_set_uses,
    is_test_split,
    read_test_set_uses,
    record_test_set_uses,
    resolve_scoreboard_root,
)
from made_runs import made_run, numbers, predictions, write_ledger


def uses(run: RunDir, split: str = "test", task: str = "multiclass", dataset: str = "d") -> int:
    return read_test_set_uses(resolve_scoreboard_root(run), dataset, split, task).predictors


@pytest.fixture
def made(tmp_path: Path) -> tuple[RunDir, Config]:
    return made_run(tmp_path / "runs" / "first", {"val": predictions(60, seed=1), "test": predictions(50, seed=2)})


def test_each_predictor_that_is_shown_is_one_use(made: tuple[RunDir, Config]) -> None:
    run, config = made
    rows = score(run, None)["rows"]
    assert uses(run) == len(rows) == len(list_predictors(run, config, "test"))
    line = build_test_set_uses_note(run, config, open_evaluated_ledger(run, config, "test").meta)
    assert line.startswith(
        f"{len(rows)}th use of this test split (test), by one run: metrics of {len(rows)} predictors"
    )
    score(run, "test")
    record_test_set_uses(
        run, config, [load_predictor(run, config, "test", name) for name in list_predictors(run, config, "test")]
    )
    assert uses(run) == len(rows)
    combine(run, "test", CombinationRequest(rule="soft", temperature="none"))
    assert uses(run) == len(rows), "the soft vote has been counted, whatever its name"
    combine(run, "test", CombinationRequest(rule="soft", temperature="2", name="cooler"))
    assert uses(run) == len(rows) + 1


def test_validation_is_not_a_test_split(made: tuple[RunDir, Config]) -> None:
    run, config = made
    score(run, "val")
    assert uses(run, "val") == 0
    assert build_test_set_uses_note(run, config, open_evaluated_ledger(run, config, "val").meta) == ""
    assert [is_test_split(config, split) for split in ("train", "val", "held-out", "test", "test@other")] == [
        0,
        0,
        0,
        1,
        1,
    ]


def test_uses_are_counted_over_runs_and_outlive_them(made: tuple[RunDir, Config], tmp_path: Path) -> None:
    run, _ = made
    score(run, None)
    count = uses(run)
    other, config = made_run(tmp_path / "runs" / "second", {"test": predictions(50, seed=3)})
    record_test_set_uses(other, config, [load_predictor(other, config, "test", "soft")])
    assert read_test_set_uses(resolve_scoreboard_root(other), "d", "test", "multiclass") == Uses(count + 1, 2)
    shutil.rmtree(run.path)
    assert uses(other) == count + 1
    third, config = made_run(tmp_path / "runs" / "third", {"test": predictions(50, seed=3)}, dataset="other")
    record_test_set_uses(third, config, [load_predictor(third, config, "test", "soft")])
    assert (uses(third), uses(third, dataset="other")) == (count + 1, 1)


def test_another_config_under_the_name_of_a_deleted_run_is_another_run(
    made: tuple[RunDir, Config], tmp_path: Path
) -> None:
    run, config = made
    record_test_set_uses(run, config, [load_predictor(run, config, "test", "soft")])
    for lr in ("lr=1e-4", "lr=2e-4", "lr=2e-4"):
        shutil.rmtree(run.path)
        run, config = made_run(run.path, {"test": predictions(50, seed=3)}, [f"train.{lr}"])
        record_test_set_uses(run, config, [load_predictor(run, config, "test", "soft")])
    assert read_test_set_uses(resolve_scoreboard_root(run), "d", "test", "multiclass") == Uses(2, 2), (
        "equal metrics count once"
    )


def test_counts_of_earlier_versions_are_continued(made: tuple[RunDir, Config]) -> None:
    run, config = made
    record_test_set_uses(run, config, [load_predictor(run, config, "test", "soft")])
    root = resolve_scoreboard_root(run)
    (root / "_test_set_uses").rename(root / "_looks")
    assert uses(run) == 1
    record_test_set_uses(run, config, [load_predictor(run, config, "test", name) for name in ("soft", "hard")])
    assert uses(run) == 2 and not (root / "_test_set_uses").exists()


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_rows_and_predictors_of_other_tasks_have_the_same_identifying_metrics(tmp_path: Path, task: str) -> None:
    run, config = made_run(tmp_path / "runs" / "first", {})
    labels = np.random.default_rng(0).integers(0, 2, (40, 2)).astype("f4")
    write_ledger(run.predictions / "test.parquet", labels, numbers(labels, task), ("u", "v"), task)
    score(run, "test")
    count = uses(run, task=task)
    names = list_predictors(run, config, "test")
    assert count == len(names) > 3
    record_test_set_uses(run, config, [load_predictor(run, config, "test", name) for name in names])
    assert uses(run, task=task) == count


def test_a_count_that_cannot_be_written_is_reported_and_does_not_fail(
    made: tuple[RunDir, Config], capsys: pytest.CaptureFixture[str]
) -> None:
    run, config = made
    resolve_scoreboard_root(run).write_text("a file where a folder should be")
    assert score(run, "test")["n"] == 50
    errors = capsys.readouterr().err
    assert "this use of split test is not counted: " in errors and "is not on the scoreboard: " in errors
    assert "is unknown" in build_test_set_uses_note(run, config, open_evaluated_ledger(run, config, "test").meta)


@pytest.mark.parametrize(
    ("count", "opening"),
    [
        (1, "1st use of this test split (test)"),
        (2, "2nd use"),
        (3, "3rd use"),
        (4, "4th"),
        (11, "11th"),
        (112, "112th"),
    ],
)
def test_the_line(count: int, opening: str) -> None:
    line = format_test_set_uses(Uses(count, 1), "test")
    assert line.startswith(opening) and ("by one run: metrics of" in line) == ("biases" in line) == (count > 1)
    assert "by 3 runs: metrics of 5 predictors" in format_test_set_uses(Uses(5, 3), "test")
