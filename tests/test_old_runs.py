"""Runs, ledgers, score tables and bundles that choral 0.1.0 wrote are still read, and give the same numbers.

`tests/fixtures/run_before_rooms` was written by choral 0.1.0 at commit c6dc9c6, with these commands, in /tmp/oldrun:
`choral run pair.yaml`, `score pair`, `calibrate pair`, `combine pair --rule weighted`, `export pair`, `evaluate
runs/pair/members/fold1 runs/pair/members/fold2 --name both`, `score both`, `scores colours`. `expected/` holds what they
printed with `--json`. Pictures, logs and an older checkpoint were left out.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toy_data import REPOSITORY, Choral

FIXTURE = REPOSITORY / "tests" / "fixtures" / "run_before_rooms"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy of the fixture in the directory in which `choral` runs; absolute paths in it follow."""
    shutil.copytree(FIXTURE, tmp_path, dirs_exist_ok=True)
    models = tmp_path / "runs" / "both" / "voices.json"
    models.write_text(models.read_text().replace("/tmp/oldrun", str(tmp_path)))
    return tmp_path


def expected(name: str) -> Any:
    return json.loads((FIXTURE / "expected" / name).read_text(encoding="utf-8"))


def printed(choral: Choral, *arguments: object) -> Any:
    result = choral(*arguments, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def weights(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}


def test_a_finished_run_is_not_trained_or_evaluated_again(old: Path, choral: Choral) -> None:
    before = weights(old), {path: path.stat().st_mtime_ns for path in old.glob("runs/pair/predictions/*.parquet")}
    result = choral("run", "pair.yaml", "stages=ensemble,evaluate")
    assert result.returncode == 0, result.stderr
    after = weights(old), {path: path.stat().st_mtime_ns for path in old.glob("runs/pair/predictions/*.parquet")}
    assert before == after and len(after[1]) == 3


def test_score_tables_are_the_same(old: Path, choral: Choral) -> None:
    rows, before = printed(choral, "score", "pair")["rows"], expected("score-pair.json")["rows"]
    assert [row["name"] for row in rows] == [row["name"] for row in before]
    for row, other in zip(rows, before, strict=True):
        assert {key: row[key] for key in other} == other


def test_the_report_of_one_predictor_is_the_same(old: Path, choral: Choral) -> None:
    found, before = printed(choral, "score", "pair", "--of", "soft+tta"), expected("score-soft-tta.json")
    for key in ("metrics", "classes", "samples"):
        assert found.get(key) == before.get(key)
    assert before["metrics"]


def test_the_scoreboard_and_its_uses_of_the_test_split_are_read(old: Path, choral: Choral) -> None:
    (table,), (before,) = printed(choral, "scores", "colours")["tables"], expected("scores-colours.json")["tables"]
    assert [row["name"] for row in table["rows"]] == [row["name"] for row in before["rows"]]
    assert [row["metrics"] for row in table["rows"]] == [row["metrics"] for row in before["rows"]]
    (uses,) = printed(choral, "scores", "colours")["test_set_uses"]
    assert [uses] == expected("scores-colours.json")["looks"]


def test_predictions_of_old_checkpoints_are_the_same(old: Path, choral: Choral) -> None:
    from choral.inference.ledger import Ledger

    path = old / "runs" / "pair" / "predictions" / "test.parquet"
    before = Ledger.open(path)
    path.rename(old / "before.parquet")
    result = choral("evaluate", "pair")
    assert result.returncode == 0, result.stderr
    again = Ledger.open(path)
    assert again.meta == before.meta
    for view in before.meta.views:
        for member in before.meta.members:
            old_values = Ledger.open(old / "before.parquet").predictions(member, view)
            np.testing.assert_allclose(again.predictions(member, view), old_values, atol=1e-6)


def test_an_ensemble_assembled_of_old_runs_is_scored(old: Path, choral: Choral) -> None:
    names = [row["name"] for row in printed(choral, "score", "both")["rows"]]
    assert names[:3] == ["member/pair-fold1", "member/pair-fold2", "soft"]
    compared = choral("compare", "pair", "both")
    assert compared.returncode == 0 and "accuracy" in compared.stdout, compared.stderr
    (old / "runs" / "both" / "predictions" / "test.parquet").unlink()
    again = choral("evaluate", "both")
    assert again.returncode == 0, again.stderr


def test_a_calibrated_run_keeps_its_policy(old: Path, choral: Choral) -> None:
    result = choral("predict", "pair", "images/test-0.png")
    assert result.returncode == 0 and "soft+tta" in result.stderr and "red" in result.stdout, result.stderr


def test_a_bundle_is_verified_and_predicts_the_same(old: Path, choral: Choral) -> None:
    verified = choral("verify", "runs/pair/bundle")
    assert verified.returncode == 0, verified.stderr
    result = choral("predict", "runs/pair/bundle", "images/test-0.png", "images/test-2.png", "--json")
    found = [json.loads(line) for line in result.stdout.splitlines()]
    before = [json.loads(line) for line in (FIXTURE / "expected" / "predict.json").read_text().splitlines()]
    for one, other in zip(found, before, strict=True):
        assert one["label"] == other["label"]
        np.testing.assert_allclose(one["probabilities"], other["probabilities"], atol=1e-5)


def test_the_fixture_is_read_as_it_was_written() -> None:
    """No file of it may be written by newer code by mistake."""
    assert '"format": "choral-voices-1"' in (FIXTURE / "runs" / "both" / "voices.json").read_text()
