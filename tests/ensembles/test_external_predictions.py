"""Predictions of other tools: those that fit join, all others are refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from choral.core.errors import ChoralError, DataError
from choral.ensembles.external_predictions import read_external_predictions
from choral.inference.ledger import Ledger
from made_runs import numbers, predictions, write_ledger

KEYS = ("b", 'a "quoted", with comma', "c")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    labels, columns = predictions(3)
    return write_ledger(tmp_path / "own" / "test.parquet", labels, columns, keys=KEYS)


def table(**columns: object) -> dict[str, object]:
    return {"key": list(KEYS), "x": [0.5, 0.2, 1.0], "y": [0.25, 0.3, 0.0], "z": [0.25, 0.5, 0.0], **columns}


def csv_text(columns: dict[str, object]) -> str:
    def quoted(value: object) -> str:
        return '"' + str(value).replace('"', '""') + '"' if isinstance(value, str) else str(value)

    rows = zip(*columns.values(), strict=True)  # type: ignore[call-overload]
    return "\n".join([",".join(columns), *(",".join(map(quoted, row)) for row in rows)]) + "\n"


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_file_in_another_order_with_further_columns(ledger: Ledger, tmp_path: Path, kind: str) -> None:
    columns = table(remark=["", "what, now", "-"])
    columns = {name: columns[name] for name in ("z", "remark", "key", "x", "y")}
    path = tmp_path / f"their model.{kind}"
    if kind == "csv":
        path.write_text("\ufeff" + csv_text(columns), encoding="utf-8")  # as spreadsheets write it
    else:
        pq.write_table(pa.table(columns), path)
    (joined,) = read_external_predictions(f"theirs={path}", ledger, ("tta",))
    assert joined.name == "theirs" and joined.predictions.dtype == np.float32
    rows = [KEYS.index(key) for key in ledger.keys]
    np.testing.assert_allclose(joined.predictions, np.array([[0.5, 0.25, 0.25], [0.2, 0.3, 0.5], [1, 0, 0]])[rows])
    with pytest.raises(ChoralError, match="'their model' is not a valid member name.*NAME="):
        read_external_predictions(str(path), ledger, ("tta",))


def test_a_ledger_of_another_run(ledger: Ledger, tmp_path: Path) -> None:
    _, columns = predictions(3, ("p", "q"), seed=5)
    order = [2, 0, 1]  # z, x, y
    own = dict(zip(KEYS, predictions(3)[0], strict=True))
    relabelled = np.array([order.index(own[key]) for key in KEYS])
    theirs = {name: values[:, order] for name, values in columns.items()}
    path = write_ledger(tmp_path / "other.parquet", relabelled, theirs, ("z", "x", "y"), keys=KEYS).path
    joined = read_external_predictions(str(path), ledger, ("identity", "tta"))
    assert [member.name for member in joined] == ["other.p", "other.q"]
    rows = [KEYS.index(key) for key in ledger.keys]
    expected = (columns["q", "identity"].astype(float) + columns["q", "tta"]) / 2
    np.testing.assert_allclose(joined[1].predictions, expected[rows], rtol=1e-6)
    with pytest.raises(DataError, match="no view 'hflip', it has identity, tta"):
        read_external_predictions(str(path), ledger, ("hflip",))
    wrong = (relabelled + 1) % 3
    write_ledger(tmp_path / "wrong.parquet", wrong, theirs, ("z", "x", "y"), keys=KEYS)
    with pytest.raises(DataError, match="3 samples have another label than in .*test.parquet, first "):
        read_external_predictions(str(tmp_path / "wrong.parquet"), ledger, ("tta",))
    scores = numbers(np.zeros((3, 3), np.float32), "multilabel")
    write_ledger(tmp_path / "labels.parquet", np.zeros((3, 3)), scores, task="multilabel", keys=KEYS)
    with pytest.raises(DataError, match="other classes, or of another task"):
        read_external_predictions(str(tmp_path / "labels.parquet"), ledger, ("identity",))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (table(key=["b", "b", "c"]), "key 'b' occurs more than once"),
        (table(key=["b", "B", "c"]), "1 of 3 samples are missing: 'a \"quoted\", with comma'"),
        (
            {name: [*values, values[0]] for name, values in table().items()} | {"key": [*KEYS, "d"]},
            "1 keys are not in this",
        ),
        ({name: values for name, values in table().items() if name != "y"}, "no column 'y' for class 'y'"),
        (
            {name.replace("key", "keys"): values for name, values in table().items()},
            "no column 'key'.* Did you mean keys",
        ),
        (table(x=[0.5, "much", 1.0]), "column 'x': Row #3: .*invalid value 'much'"),
        (table(x=[0.5, "", 1.0]), "column 'x' has no value for sample 'a \"quoted\", with comma'"),
        (table(x=[0.5, "nan", 1.0]), r"has no value for sample|no probability distribution"),
        (table(x=[0.5, 0.9, 1.0]), r"sample 'a \"quoted\", with comma': the prediction is not a probability .*sum 1.7"),
        (table(x=[0.5, -0.2, 1.0], y=[0.25, 0.7, 0]), "smallest -0.2.*; expected .*summing to 1 .*not logits"),
        ({";".join(table()): table()["key"]}, "no column 'key' with the samples' keys. It has: key;x;y;z"),
    ],
)
def test_invalid_files_are_rejected(ledger: Ledger, tmp_path: Path, columns: dict[str, object], message: str) -> None:
    path = tmp_path / "theirs.csv"
    path.write_text(csv_text(columns))
    with pytest.raises(DataError, match=f"theirs.csv: .*{message}"):
        read_external_predictions(str(path), ledger, ("tta",))


def test_unreadable_files_are_rejected(ledger: Ledger, tmp_path: Path) -> None:
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 and nothing else")
    doubled = tmp_path / "doubled.csv"
    doubled.write_text("key,x,y,z,x\nb,1,0,0,1\n")
    ragged = tmp_path / "ragged.csv"
    ragged.write_text("key,x,y,z\nb,1,0\n")
    texts = tmp_path / "texts.parquet"
    pq.write_table(pa.table(table(x=["a", "b", "c"])), texts)
    for argument, message in {
        str(broken): "cannot be read as Parquet",
        str(doubled): "column 'x' occurs twice",
        str(ragged): "Expected 4 columns, got 3",
        str(texts): "column 'x' is string, expected numbers",
        str(tmp_path / "none.csv"): "no such file",
        str(tmp_path / "scores.npy"): "expected a .csv or .parquet file",
        "pipe:cat.csv": "expected a local path",
    }.items():
        with pytest.raises(ChoralError, match=message):
            read_external_predictions(argument, ledger, ("tta",))
