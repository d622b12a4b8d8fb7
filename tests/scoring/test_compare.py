"""Comparing two runs: numbers against a table computed by hand, outcomes, slices, and refused comparisons."""

from __future__ import annotations

import dataclasses
import io
import json
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from choral.cli import main
from choral.cli.workflow.comparison import compare_runs, print_comparison
from choral.core.errors import ConfigError, DataError
from choral.metrics.intervals import paired_bootstrap
from choral.runs.run_dir import RunDir
from choral.scoring.compare import Comparison, compare_predictors
from choral.scoring.predictor import load_predictor
from choral.scoring.scoreboard.test_set_uses import read_test_set_uses, record_test_set_uses, resolve_scoreboard_root
from choral.scoring.stored_predictor import StoredPredictions
from made_runs import CLASSES, Columns, made_run, numbers, predictions, write_ledger

ALONE = ["ensemble.members=[]"]


def said(classes: list[int], sure: float = 0.8) -> Columns:
    values = np.full((len(classes), 3), (1 - sure) / 2, dtype=np.float32)
    values[np.arange(len(classes)), classes] = sure
    return {("model", "identity"): values}


def two_runs(
    tmp_path: Path, labels: NDArray[Any], one: Columns, other: Columns, **options: Any
) -> tuple[RunDir, RunDir]:
    first, _ = made_run(tmp_path / "runs" / "first", {"test": (labels, one)}, ALONE, **options)
    second, _ = made_run(tmp_path / "runs" / "second", {"test": (labels, other)}, ALONE, **options)
    return first, second


def metric(found: Comparison, name: str) -> Any:
    return next(pair for pair in found["metrics"] if pair["metric"] == name)


def test_comparison_equals_a_table_computed_by_hand(tmp_path: Path) -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
    one, other = [0, 0, 0, 1, 1, 0, 0, 2, 2, 0], [0, 0, 1, 1, 1, 1, 1, 2, 2, 2]
    runs = two_runs(tmp_path, labels, said(one), said(other, 0.6))
    found, uses = compare_runs(runs)
    assert (found["n"], found["a"], found["b"]) == (10, "first member/model", "second member/model")
    # right are 0 1 2 4 7 8 of the first, and 0 1 4 5 6 7 8 9 of the second
    sides = found["sides"]
    assert (sides["both"], sides["only_a"], sides["only_b"], sides["neither"]) == (5, 1, 3, 1)
    assert sides["p_value"] == pytest.approx(2 * (comb(4, 0) + comb(4, 1)) / 2**4)
    accuracy = metric(found, "accuracy")
    hits = [(np.array(classes) == labels).astype(np.float64) for classes in (one, other)]
    expected = paired_bootstrap(hits[1], hits[0])
    assert (accuracy["a"]["value"], accuracy["b"]["value"]) == (0.6, 0.8)
    gain = accuracy["difference"]
    assert (gain["value"], gain["low"], gain["high"]) == pytest.approx((0.2, expected.low, expected.high))
    assert [(change["key"], change["better"]) for change in found["changed"]] == [
        ("test00002", "a"), ("test00005", "b"), ("test00006", "b"), ("test00009", "b")
    ]  # fmt: skip
    assert found["changed"][0] == {
        "key": "test00002", "label": "x", "a": "x", "b": "y", "better": "a", "shift": pytest.approx(0.2 - 0.8),
    }  # fmt: skip
    classes = {part["name"]: (part["n"], part["lost"], part["gained"]) for part in found["classes"]}
    assert classes == {"x": (4, 1, 0), "y": (3, 0, 2), "z": (3, 0, 1)}
    recall = {part["name"]: part["b"]["value"] for part in found["classes"] if part["b"]}
    assert recall == pytest.approx({"x": 0.5, "y": 1.0, "z": 1.0})
    assert uses.startswith("2nd use of this test split")


def test_comparison_in_reverse_order_and_with_itself(tmp_path: Path) -> None:
    labels, columns = predictions(60, ("model", "x"), views=("identity",))
    one, other = ({("model", "identity"): columns[name, "identity"]} for name in ("model", "x"))
    runs = two_runs(tmp_path, labels, one, other)
    there, back = compare_runs(runs)[0], compare_runs(runs[::-1])[0]
    for pair, reverse in zip(there["metrics"], back["metrics"], strict=True):
        if pair["metric"] != "ece":  # whose interval is made from ends
            mirrored = [-reverse["difference"][key] for key in ("value", "high", "low")]
            assert [pair["difference"][key] for key in ("value", "low", "high")] == pytest.approx(mirrored, abs=1e-9)
    assert there["sides"]["p_value"] == back["sides"]["p_value"]
    assert {change["key"] for change in there["changed"]} == {change["key"] for change in back["changed"]}
    same = compare_runs((runs[0], runs[0]))[0]
    assert same["sides"]["p_value"] == 1 and not same["changed"]
    assert metric(same, "log_loss")["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_two_predictors_of_one_run(tmp_path: Path) -> None:
    run, _ = made_run(tmp_path / "runs" / "trio", {"test": predictions(50)})
    found, _ = compare_runs((run, run), of=["member/a", "soft+tta"])
    assert (found["a"], found["b"]) == ("trio member/a", "trio soft+tta")
    hard, _ = compare_runs((run, run), of=["hard", "soft"])
    assert "accuracy" in [pair["metric"] for pair in hard["metrics"]]
    assert "log_loss" not in [pair["metric"] for pair in hard["metrics"]], "a hard vote has none"
    with pytest.raises(ConfigError, match=r"--of: trio: no predictor 'sofd'.*soft"):
        compare_runs((run, run), of=["sofd"])
    with pytest.raises(ConfigError, match="--of: expected one predictor for both runs, or one for each, got a, b, c"):
        compare_runs((run, run), of=["a", "b", "c"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "another"}, r"the fingerprints of their data differ \(d and another\)"),
        (
            {"classes": ("x", "y", "other")},
            r"their tasks or classes differ \(multiclass: x, y, z; multiclass: x, y, other\)",
        ),
        (
            {"keys": [f"k{number}" for number in range(10, 60)]},
            "evaluated on 50 and 50 samples, of which 0 are the same",
        ),
        ({"labels": True}, "evaluated on 50 and 50 samples, of which 50 are the same"),
    ],
)
def test_other_samples_are_refused_with_the_reason(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    labels, columns = predictions(50, ("model",))
    runs = two_runs(tmp_path, labels, columns, columns)
    if change.pop("labels", False):
        labels = (labels + 1) % 3
    write_ledger(runs[1].predictions / "test.parquet", labels, columns, **change)
    with pytest.raises(DataError, match=rf"first member/model\+tta and second .* cannot be compared: .*{message}"):
        compare_runs(runs)


def test_slices_by_metadata(shards: Path, tmp_path: Path) -> None:
    from choral.data.shards.index import Dataset, Index

    dataset = Dataset.open(shards)
    index = Index.open(dataset, "test")
    keys = sorted(index.table["key"].to_pylist())
    labels = np.arange(len(keys)) % 3
    one, other = said([0] * len(keys)), said(list(labels))
    overrides = [*ALONE, f"data.shards={shards}"]
    for name, columns in (("first", one), ("second", other)):
        options = {"keys": keys, "dataset": dataset.fingerprint}
        made_run(tmp_path / "runs" / name, {"test": (labels, columns)}, overrides, **options)
    runs = (RunDir(tmp_path / "runs" / "first"), RunDir(tmp_path / "runs" / "second"))
    found, _ = compare_runs(runs, column="label")
    assert found["column"] == "label" and sum(part["n"] for part in found["slices"]) == len(keys)
    assert all(part["b"] and part["b"]["value"] == 1 for part in found["slices"])
    assert sum(part["gained"] for part in found["slices"]) == int((labels != 0).sum()) == found["sides"]["only_b"]
    for part in found["slices"]:
        assert part["difference"] is not None
        assert part["difference"]["value"] == pytest.approx(part["gained"] / part["n"])
    with pytest.raises(ConfigError, match="--by: no column 'labell'.*Did you mean label"):
        compare_runs(runs, column="labell")
    write_ledger(runs[0].predictions / "test.parquet", labels, one, keys=keys)
    write_ledger(runs[1].predictions / "test.parquet", labels, other, keys=keys)
    with pytest.raises(DataError, match="was made of other data than those in"):
        compare_runs(runs, column="label")


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_other_tasks(tmp_path: Path, task: str) -> None:
    labels = np.random.default_rng(0).integers(0, 2, (40, 2)).astype("f4")
    runs = []
    for name, seed in (("first", 1), ("second", 2)):
        run, _ = made_run(tmp_path / "runs" / name, {}, ALONE)
        write_ledger(
            run.predictions / "test.parquet", labels, numbers(labels, task, ("model",), seed), ("u", "v"), task
        )
        runs.append(run)
    found, _ = compare_runs((runs[0], runs[1]))
    values = [numbers(labels, task, ("model",), seed)["model", "identity"] for seed in (1, 2)]
    sides = found["sides"]
    assert [part["name"] for part in found["classes"]] == ["u", "v"]
    if task == "multilabel":
        right = [((said > 0.5) == (labels > 0)).all(axis=1) for said in values]
        assert sides["only_b"] == int((right[1] & ~right[0]).sum()) and sides["both"] == int(
            (right[0] & right[1]).sum()
        )
        assert all(set(change["label"]) <= {"u", "v"} for change in found["changed"])
    else:
        closer = abs(values[1][:, 0] - labels[:, 0]) < abs(values[0][:, 0] - labels[:, 0])
        assert found["classes"][0]["gained"] == int(closer.sum())
        assert sides["test"].startswith("sign test") and sides["only_a"] + sides["only_b"] + sides["both"] == 40
        assert len(found["changed"]) == 40 and set(found["changed"][0]["label"]) == {"u", "v"}
    shown = io.StringIO()
    print_comparison(found, "", Console(file=shown, width=80))
    assert max(map(len, shown.getvalue().splitlines())) <= 80


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    labels, columns = predictions(50, ("model", "x"), classes=len(CLASSES))
    one, other = ({("model", view): columns[name, view] for view in ("identity", "tta")} for name in ("model", "x"))
    two_runs(tmp_path, labels, one, other)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["compare", "first", "second", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (
        found["test_set_uses"].startswith("2nd use")
        and len(found["changed"]) == found["sides"]["only_a"] + found["sides"]["only_b"]
    )
    assert main(["compare", "first", "second"]) == 0
    shown = capsys.readouterr().out
    for words in (
        "A: first member/model+tta",
        "balanced accuracy %",
        "McNemar, exact: p = ",
        "only A right",
        "2nd use",
    ):
        assert words in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert main(["compare", "first", "second", "--data", "x"]) == 2
    assert "--data: needs --by" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_decisions_with_costs_or_thresholds_are_compared_and_counted(tmp_path: Path, task: str) -> None:
    run, config = made_run(tmp_path / "runs" / "first", {}, ALONE)
    labels: NDArray[Any] = np.array([0, 1, 0, 1]) if task == "multiclass" else np.array([[0], [1], [0], [1]], "f4")
    said = np.array([[0.9, 0.1], [0.6, 0.4], [0.6, 0.4], [0.7, 0.3]], "f4")
    columns = {("model", "identity"): said if task == "multiclass" else said[:, 1:]}
    write_ledger(
        run.predictions / "test.parquet", labels, columns, ("x", "y")[-columns["model", "identity"].shape[1] :], task
    )
    plain = load_predictor(run, config, "test")
    decided = np.array([0, 1, 1, 1])
    strict = dataclasses.replace(plain, name="answer", decided=decided if task == "multiclass" else decided[:, None])
    found = compare_predictors(plain, strict, ("plain", "strict"))
    sides = found["sides"]
    assert (sides["both"], sides["only_a"], sides["only_b"], sides["neither"]) == (1, 1, 2, 0)
    changed = {change["key"]: (change["a"], change["b"], change["better"]) for change in found["changed"]}
    x, y = ("x", "y") if task == "multiclass" else ([], ["y"])
    assert changed == {"test00001": (x, y, "b"), "test00002": (x, y, "a"), "test00003": (x, y, "b")}
    expected = metric(found, "accuracy" if task == "multiclass" else "exact_match")
    assert (expected["a"]["value"], expected["b"]["value"]) == (0.5, 0.75)
    if task == "multiclass":
        assert StoredPredictions.of(strict).predictions.tolist() == decided.tolist()
    for count, predictor in ((1, plain), (2, strict), (2, plain)):
        record_test_set_uses(run, config, [predictor])
        assert read_test_set_uses(resolve_scoreboard_root(run), "d", "test", task).predictors == count
