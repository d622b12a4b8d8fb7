"""Answers as CSV, JSON lines and Parquet: the same rows in each, and text that does no harm."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from choral.core.errors import ConfigError
from choral.deploy.bundle.prediction_files import check_output_path, prediction_format
from choral.inference.prediction_types import Prediction, unreadable_prediction
from choral.scoring.apply_policy import apply_policy, build_default_policy
from choral.scoring.policy import Conformal, PredictionPolicy

NASTY = ["=cmd()", "a|b", '"q", \n<b>']
IMAGES = ["=SUM(A1).png", "tab\tand, comma.jpg", "/abs/é\n.png"]


def policy(task: str, classes: list[str], sets: bool = True) -> PredictionPolicy:
    plain = build_default_policy(task, classes, ["m0", "m1"], ["identity"])
    if not sets:
        return plain
    if task == "regression":
        quantiles = (0.5, *[float("inf")] * (len(classes) - 1))
        return replace(plain, conformal=Conformal("residual", 0.9, quantiles, (9,) * len(classes)))
    quantiles = (0.75,) * (len(classes) if task == "multilabel" else 1)
    conformal = Conformal("label" if task == "multilabel" else "lac", 0.9, quantiles, (9,))
    return replace(plain, conformal=conformal, unsure_below=0.6 if task == "multiclass" else None)


def answers(how: PredictionPolicy, count: int = 3) -> list[Prediction]:
    """Answers of random members; the second image could not be read."""
    own = np.random.default_rng(0).dirichlet(np.ones(len(how.classes)), (2, count)).astype(np.float32)
    given = apply_policy(how, IMAGES[:count], own, how.combine(own))
    return [given[0], unreadable_prediction(IMAGES[1], how.task, "not an image"), *given[2:]]


def written(path: Path, how: PredictionPolicy, batches: list[list[Prediction]]) -> Path:
    form = prediction_format(path, how)
    with path.open("wb") as file:
        form.write(file, (form.encode(batch) for batch in batches))
    return path


@pytest.mark.parametrize("sets", [True, False])
@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression"])
def test_all_formats_hold_the_same(tmp_path: Path, task: str, sets: bool) -> None:
    how = policy(task, ["x", "y", "z"], sets)
    given = answers(how)
    lines = written(tmp_path / "a.jsonl", how, [given[:1], given[1:]]).read_text().splitlines()
    assert [json.loads(line) for line in lines] == json.loads(json.dumps([answer.content() for answer in given]))
    table = pa.parquet.read_table(written(tmp_path / "a.parquet", how, [given[:1], given[1:]]))
    assert table.equals(pa.parquet.read_table(written(tmp_path / "b.PARQUET", how, [given])))
    names = ["image", *columns(task, sets), "error"]
    assert table.column_names == names and table["image"].to_pylist() == IMAGES
    assert table["error"].to_pylist() == [None, "not an image", None]
    assert [name for name in names[1:-1] if table[name][1].as_py() is not None] == []
    for row, answer in zip(table.to_pylist(), given, strict=True):
        check_row(row, answer)
    plain = pa.csv.ParseOptions(newlines_in_values=True)
    read = pa.csv.read_csv(written(tmp_path / "a.csv", how, [given[:1], given[1:]]), parse_options=plain)
    assert read.column_names == names
    for name in names:
        if pa.types.is_float32(table[name].type):
            # float32 printed with the digits that it needs comes back as itself
            numbers = read[name].cast(pa.float64()).cast(pa.float32())
            assert numbers.to_pylist() == table[name].to_pylist()
    assert read["error"].to_pylist() == ["", "not an image", ""]


def columns(task: str, sets: bool) -> list[str]:
    if task == "regression":
        kinds = ("value", "spread", "low", "high") if sets else ("value", "spread")
        return [f"{kind}_{name}" for name in "xyz" for kind in kinds]
    own = ["labels"] if task == "multilabel" else ["class", "probability"]
    unsure = ["unsure"] if sets and task == "multiclass" else []
    return [*own, "p_x", "p_y", "p_z", *unsure, *(["set"] if sets else [])]


def check_row(row: dict[str, Any], answer: Any) -> None:
    if answer.error:
        return
    if "value_x" in row:
        for name in "xyz":
            assert row[f"value_{name}"] == answer.values[name]
            assert row[f"spread_{name}"] == np.float32(answer.spreads[name])
        if answer.intervals is not None:
            assert (row["low_x"], row["high_x"]) == tuple(np.float32(answer.intervals["x"]))
            assert row["low_y"] is None and row["high_y"] is None
        return
    shares = list(answer.probabilities.values() if "labels" in row else answer.probabilities)
    assert [row[f"p_{name}"] for name in "xyz"] == shares
    if "labels" in row:
        assert row["labels"] == list(answer.labels)
    else:
        assert (row["class"], row["probability"]) == (answer.label, answer.probability)
        assert row.get("unsure") == answer.unsure
    assert row.get("set") == (None if answer.possible is None else list(answer.possible))


def test_no_cell_of_a_csv_is_a_formula(tmp_path: Path) -> None:
    how = policy("multiclass", NASTY)
    text = written(tmp_path / "a.csv", how, [answers(how)]).read_text()
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["image"] for row in rows] == ["./=SUM(A1).png", *IMAGES[1:]]  # the first names the same file
    labels = {answer.label for answer in answers(how) if not answer.error}  # type: ignore[union-attr]
    assert {row["class"] for row in rows if not row["error"]} == {
        f"'{name}" if name[0] == "=" else name for name in labels
    }
    assert all(set(json.loads(row["set"])) <= set(NASTY) for row in rows if row["set"])  # lists, since a name holds a |
    for row in rows:
        assert not any(cell[:1] in ("=", "+", "-", "@", "\t") for cell in row.values())
    numbers = policy("multiclass", ["-1", "+1"])
    rows = list(csv.DictReader(io.StringIO(written(tmp_path / "b.csv", numbers, [answers(numbers)]).read_text())))
    assert {row["class"] for row in rows} <= {"-1", "+1", ""}  # numbers are no formulas


def test_only_kinds_of_files_that_are_known(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    for name, told in (
        ("a.xlsx", r"ends with \.csv, \.jsonl, \.parquet"),
        ("folder.csv", "is a folder"),
        ("x/a.csv", "no folder"),
    ):
        with pytest.raises(ConfigError, match=told):
            check_output_path(tmp_path / name)
