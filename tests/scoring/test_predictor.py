"""Predictors by name: the names are the rows of the score table, and the predictions give the scores of the rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from choral.config import Config
from choral.core.errors import ConfigError, DataError
from choral.ensembles.fitting_data import load_fitting_data
from choral.ensembles.rules import soft_vote
from choral.ensembles.saved_combination import CombinationRequest, combine_run
from choral.ensembles.score_run import score_run
from choral.metrics.per_sample import correct, log_losses, top_class
from choral.runs.run_dir import RunDir
from choral.scoring.predictor import list_predictors, load_predictor
from made_runs import FOLDED, FOLDS, MEMBERS, made_rounds, made_run, numbers, predictions, write_ledger

VAL, TEST = predictions(150, seed=1), predictions(200, seed=2)


@pytest.fixture
def run(tmp_path: Path) -> tuple[RunDir, Config]:
    return made_run(tmp_path / "run", {"val": VAL, "test": TEST})


def test_predictors_are_the_rows_of_the_table_and_score_the_same(tmp_path: Path) -> None:
    ledgers = {"val": predictions(120, FOLDED, seed=1), "test": predictions(130, FOLDED, seed=2)}
    folder, config = made_run(tmp_path / "folded", ledgers, FOLDS)
    write_ledger(folder.predictions / "held-out.parquet", *predictions(300, ("net", "other"), seed=3))
    made_rounds(folder, dict.fromkeys(FOLDED, 1.0))
    ledger = load_predictor(folder, config, "test", "soft").ledger
    known = load_fitting_data(folder, config, ledger)
    rows = score_run(ledger, fitting_data=known)["rows"]
    assert list_predictors(folder, config, "test") == [row["name"] for row in rows]
    assert {"weighted+tta", "greedy", "stack"} < {row["name"] for row in rows}
    for row in rows:
        found = load_predictor(folder, config, "test", row["name"])
        assert found.name == row["name"]
        right = correct(ledger.labels, top_class(found.predictions)).mean()
        assert right == pytest.approx(row["value"], abs=1e-12), row["name"]
        assert found.gives_probabilities == ("hard" not in row["name"])
        if found.gives_probabilities:
            loss = log_losses(ledger.labels, found.predictions).mean()
            assert loss == pytest.approx(row["log_loss"]["value"], abs=1e-9), row["name"]  # type: ignore[typeddict-item]


def test_default_is_the_vote_of_several_members_or_the_only_member(tmp_path: Path, run: tuple[RunDir, Config]) -> None:
    found = load_predictor(*run, "test")
    assert found.name == "soft+tta"
    np.testing.assert_array_equal(found.predictions, soft_vote(np.stack([TEST[1][name, "tta"] for name in MEMBERS])))
    single = predictions(20, ("a",), views=("identity",))
    assert load_predictor(*made_run(tmp_path / "single", {"test": single}), "test").name == "member/a"
    truth = np.random.default_rng(0).normal(size=(30, 1)).astype(np.float32)
    regression = made_run(
        tmp_path / "numbers", {"test": (truth, numbers(truth, "regression"))}, classes=("w",), task="regression"
    )
    found = load_predictor(*regression, "test")
    assert found.name == "mean" and not found.gives_probabilities


def test_combinations_are_predictors_until_the_predictions_change(run: tuple[RunDir, Config]) -> None:
    combine_run(*run, "test", CombinationRequest(rule="hard", name="mine"))
    assert list_predictors(*run, "test")[-1] == "combined/mine"
    found = load_predictor(*run, "test", "combined/mine")
    assert not found.gives_probabilities and found.ledger.members == MEMBERS
    hard = load_predictor(*run, "test", "hard+tta")
    np.testing.assert_array_equal(found.predictions, hard.predictions)
    write_ledger(run[0].predictions / "test.parquet", *TEST, evaluation="other weights")
    with pytest.raises(DataError, match="made of other predictions"):
        load_predictor(*run, "test", "combined/mine")


def test_unknown_predictors_are_refused_by_name(run: tuple[RunDir, Config]) -> None:
    with pytest.raises(ConfigError, match=r"no predictor 'sofft\+tta'.*soft\+tta"):
        load_predictor(*run, "test", "sofft+tta")
    with pytest.raises(DataError, match=r"split 'train' has not been evaluated \(evaluated: test, val\)"):
        load_predictor(*run, "train")
    assert "weighted" not in list_predictors(*run, "val")  # they are fitted on it
    with pytest.raises(ConfigError, match="no predictor 'weighted'"):
        load_predictor(*run, "val", "weighted")
