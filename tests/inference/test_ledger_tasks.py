"""Multilabel and regression ledgers, and old ledgers without a task."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from choral.core.errors import DataError
from choral.data.shards.epoch_plan import rank_slice
from choral.inference.ledger import Ledger, LedgerMeta, build_ledger_table, merge_parts, write_part

KEYS = ["c", "a", "e", "b", "d"]
LABELS = {
    "multilabel": np.array([[0, 1], [1, 1], [0, 0], [1, 0], [0, 1]], np.float32),
    "regression": np.array([[1.5, -2], [3, 1e6], [0, 0], [-7.25, 1], [0.1, 2]], np.float32),
}


def meta_of(task: str) -> LedgerMeta:
    return LedgerMeta(("x", "y"), ("one", "two"), ("identity",), "test", "d", "e", task=task)


def merged(folder: Path, task: str, world_size: int, values: np.ndarray, labels: np.ndarray | None = None) -> Ledger:
    meta = meta_of(task)
    labels = LABELS[task] if labels is None else labels
    for rank in range(world_size):
        rows = rank_slice(len(KEYS), rank, world_size)
        columns = {("one", "identity"): values[rows], ("two", "identity"): values[rows] / 2}
        write_part(folder / "parts", rank, rank + 1, build_ledger_table(meta, KEYS[rows], labels[rows], columns))
    merge_parts(folder / "parts", world_size, KEYS, folder / "test.parquet", meta)
    return Ledger.open(folder / "test.parquet")


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_round_trip_on_any_number_of_ranks(tmp_path: Path, task: str) -> None:
    values = LABELS[task] * (0.75 if task == "multilabel" else -3)
    files = set()
    for world_size in (1, 3):
        ledger = merged(tmp_path / str(world_size), task, world_size, values)
        files.add(ledger.path.read_bytes())
        order = np.argsort(KEYS)
        assert ledger.meta == meta_of(task)
        np.testing.assert_array_equal(ledger.labels, LABELS[task][order])
        np.testing.assert_array_equal(ledger.predictions("two"), (values / 2)[order])
        np.testing.assert_array_equal(np.concatenate(list(ledger.blocks()), axis=1)[0], values[order])
    assert len(files) == 1


@pytest.mark.parametrize(
    ("task", "bad", "message"),
    [
        ("multilabel", 1.5, r"one/identity is not probabilities \(smallest 0, largest 1\.5; 1 such"),
        ("multilabel", np.nan, "one/identity is not probabilities"),
        ("regression", np.inf, "one/identity is not finite numbers"),
    ],
)
def test_bad_predictions_name_their_sample(tmp_path: Path, task: str, bad: float, message: str) -> None:
    values = np.zeros((5, 2), np.float32)
    values[3, 1] = bad
    with pytest.raises(DataError, match=f"sample 'b': {message}"):
        merged(tmp_path, task, 1, values)


@pytest.mark.parametrize(("task", "bad"), [("multilabel", 0.5), ("regression", np.nan)])
def test_bad_labels_name_their_sample(tmp_path: Path, task: str, bad: float) -> None:
    labels = LABELS[task].copy()
    labels[2, 0] = bad
    with pytest.raises(DataError, match=r"sample 'e': label \[.*\], expected"):
        merged(tmp_path, task, 1, np.zeros((5, 2), np.float32), labels)


def test_old_ledgers_without_a_task_are_multiclass(tmp_path: Path) -> None:
    meta = meta_of("multiclass")
    columns = {(member, "identity"): np.full((5, 2), 0.5, np.float32) for member in meta.members}
    table = build_ledger_table(meta, sorted(KEYS), np.array([0, 1, 1, 0, 1]), columns)
    content = json.loads(meta.to_json())
    del content["task"]
    pq.write_table(table.replace_schema_metadata({"choral": json.dumps(content)}), tmp_path / "old.parquet")
    old = Ledger.open(tmp_path / "old.parquet")
    assert old.meta == meta and old.labels.tolist() == [0, 1, 1, 0, 1]
