"""Looks at test data: what counts as one, what is seen again, and what stands under a table."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from choral.cli import workflow
from choral.config import Config
from choral.ensembles.saved_combination import Asked
from choral.runs.run_dir import RunDir
from choral.scoring.predictor import evaluated, predictor_names, predictor_of
from choral.scoring.scoreboard.test_set_uses import (
    TestSetUses,
    is_test,
    look_at,
    looks_line,
    looks_so_far,
    looks_text,
    scoreboard_of,
)
from made_runs import made_run, numbers, predictions, write_ledger


def uses(run: RunDir, split: str = "test", task: str = "multiclass", dataset: str = "d") -> int:
    return looks_so_far(scoreboard_of(run), dataset, split, task).predictors


@pytest.fixture
def made(tmp_path: Path) -> tuple[RunDir, Config]:
    return made_run(tmp_path / "runs" / "first", {"val": predictions(60, seed=1), "test": predictions(50, seed=2)})


def test_every_predictor_that_is_shown_is_a_look_and_only_once(made: tuple[RunDir, Config]) -> None:
    run, config = made
    rows = workflow.score(run, None)["rows"]
    assert uses(run) == len(rows) == len(predictor_names(run, config, "test"))
    line = looks_line(run, config, evaluated(run, config, "test").meta)
    assert line.startswith(
        f"{len(rows)}th look at this test split (test), by one run: figures of {len(rows)} predictors"
    )
    workflow.score(run, "test")
    look_at(run, config, [predictor_of(run, config, "test", name) for name in predictor_names(run, config, "test")])
    assert uses(run) == len(rows)
    workflow.combine(run, "test", Asked(rule="soft", temperature="none"))
    assert uses(run) == len(rows), "the plain vote has been seen, by whatever name"
    workflow.combine(run, "test", Asked(rule="soft", temperature="2", name="cooler"))
    assert uses(run) == len(rows) + 1


def test_validation_is_no_test_split(made: tuple[RunDir, Config]) -> None:
    run, config = made
    workflow.score(run, "val")
    assert uses(run, "val") == 0
    assert looks_line(run, config, evaluated(run, config, "val").meta) == ""
    assert [is_test(config, split) for split in ("train", "val", "held-out", "test", "test@other")] == [0, 0, 0, 1, 1]


def test_looks_are_counted_over_runs_and_outlive_them(made: tuple[RunDir, Config], tmp_path: Path) -> None:
    run, _ = made
    workflow.score(run, None)
    count = uses(run)
    other, config = made_run(tmp_path / "runs" / "second", {"test": predictions(50, seed=3)})
    look_at(other, config, [predictor_of(other, config, "test", "soft")])
    assert looks_so_far(scoreboard_of(other), "d", "test", "multiclass") == TestSetUses(count + 1, 2)
    shutil.rmtree(run.path)
    assert uses(other) == count + 1
    elsewhere, config = made_run(tmp_path / "runs" / "third", {"test": predictions(50, seed=3)}, dataset="other")
    look_at(elsewhere, config, [predictor_of(elsewhere, config, "test", "soft")])
    assert (uses(elsewhere), uses(elsewhere, dataset="other")) == (count + 1, 1)


def test_another_config_under_the_name_of_a_deleted_run_is_another_run(
    made: tuple[RunDir, Config], tmp_path: Path
) -> None:
    run, config = made
    look_at(run, config, [predictor_of(run, config, "test", "soft")])
    for lr in ("lr=1e-4", "lr=2e-4", "lr=2e-4"):
        shutil.rmtree(run.path)
        run, config = made_run(run.path, {"test": predictions(50, seed=3)}, [f"train.{lr}"])
        look_at(run, config, [predictor_of(run, config, "test", "soft")])
    assert looks_so_far(scoreboard_of(run), "d", "test", "multiclass") == TestSetUses(2, 2), "the same figures once"


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_rows_and_predictors_of_other_tasks_are_known_by_the_same_figures(tmp_path: Path, task: str) -> None:
    run, config = made_run(tmp_path / "runs" / "first", {})
    labels = np.random.default_rng(0).integers(0, 2, (40, 2)).astype("f4")
    write_ledger(run.predictions / "test.parquet", labels, numbers(labels, task), ("u", "v"), task)
    workflow.score(run, "test")
    count = uses(run, task=task)
    names = predictor_names(run, config, "test")
    assert count == len(names) > 3
    look_at(run, config, [predictor_of(run, config, "test", name) for name in names])
    assert uses(run, task=task) == count


def test_a_count_that_cannot_be_written_is_said_and_costs_nothing(
    made: tuple[RunDir, Config], capsys: pytest.CaptureFixture[str]
) -> None:
    run, config = made
    scoreboard_of(run).write_text("a file where a folder should be")
    assert workflow.score(run, "test")["n"] == 50
    errors = capsys.readouterr().err
    assert "this look at split test is not counted: " in errors and "the scoreboard is without split test" in errors
    assert "is not known" in looks_line(run, config, evaluated(run, config, "test").meta)


@pytest.mark.parametrize(
    ("count", "opening"),
    [
        (1, "1st look at this test split (test)"),
        (2, "2nd look"),
        (3, "3rd look"),
        (4, "4th"),
        (11, "11th"),
        (112, "112th"),
    ],
)
def test_the_line(count: int, opening: str) -> None:
    line = looks_text(TestSetUses(count, 1), "test")
    assert line.startswith(opening) and ("by one run: figures of" in line) == ("flatters" in line) == (count > 1)
    assert "by 3 runs: figures of 5 predictors" in looks_text(TestSetUses(5, 3), "test")
