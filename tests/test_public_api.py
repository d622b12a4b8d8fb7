"""The public Python API on a finished run: `choral.load` and `choral.predictions`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import choral
from choral.core.errors import ChoralError, ConfigError
from choral.inference.ledger import Ledger, LedgerMeta, build_ledger_table
from choral.inference.prediction_table import prediction_table
from toy_data import REPOSITORY

RUN = REPOSITORY / "tests" / "fixtures" / "run_before_rooms" / "runs" / "pair"
IMAGES = RUN.parents[1] / "images"


def test_predictions_are_an_arrow_table_with_labels_by_name() -> None:
    table = choral.predictions(RUN)
    ledger = Ledger.open(RUN / "predictions" / "test.parquet")
    assert table.num_rows == 11 and table.column("key").to_pylist() == ledger.keys
    assert set(table.column("label").to_pylist()) == {"red", "green", "blue"}
    assert table.schema.metadata[b"classes"].decode().split("\n") == list(ledger.classes)
    probabilities = np.stack(table["fold1/tta"].to_numpy())
    np.testing.assert_array_equal(probabilities, ledger.predictions("fold1", "tta"))
    assert list(choral.predictions(RUN, split="val").column_names) == list(table.column_names)


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_labels_of_other_tasks(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    meta = LedgerMeta(("sun", "beach"), ("model",), ("identity",), "test", "data", task=task)
    labels = np.array([[1, 0], [1, 1], [0, 0]], np.float32)
    values = {("model", "identity"): labels * 0.5}
    arrow = build_ledger_table(meta, ["a", "b", "c"], labels, values)
    assert arrow.num_rows == 3

    class Opened:
        """What `prediction_table` reads of a ledger."""

        keys, classes, members, views = ["a", "b", "c"], meta.classes, meta.members, meta.views

        def __init__(self) -> None:
            self.meta, self.labels = meta, labels

        def predictions(self, member: str, view: str) -> np.ndarray:
            return values[member, view]

    table = prediction_table(Opened())  # type: ignore[arg-type]
    expected = [["sun"], ["sun", "beach"], []] if task == "multilabel" else labels.tolist()
    assert table.column("label").to_pylist() == expected
    assert table.column("model/identity").to_pylist() == (labels * 0.5).tolist()


def test_what_is_not_there_is_an_error_of_one_line() -> None:
    with pytest.raises(ConfigError, match="no such run"):
        choral.predictions("nowhere")
    with pytest.raises(ChoralError, match="choral evaluate"):
        choral.predictions(RUN, split="holdout")


def test_a_bundle_is_loaded_and_predicts() -> None:
    predictor = choral.load(RUN / "bundle", device="cpu")
    prediction = predictor.predict(IMAGES / "test-0.png")
    assert prediction.label == "red" and 0.8 < prediction.probability < 0.9


def test_the_api_is_what_the_readme_shows() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    for name in set(choral.__all__) - {"__version__"}:
        assert f"choral.{name}(" in readme and (getattr(choral, name).__doc__ or "").count("\n") > 5
    assert Path(choral.__file__).name == "__init__.py"
