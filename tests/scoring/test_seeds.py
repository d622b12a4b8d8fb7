"""Comparing two training configurations with several seeds: what is averaged, and what is paired."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from choral.core.errors import DataError
from choral.metrics.intervals import bootstrap_means
from choral.metrics.per_sample import correct, top_class
from choral.scoring.seed_comparison import compare_seeds, is_better
from made_runs import numbers, predictions, write_ledger


def test_value_is_the_mean_of_the_models_and_the_interval_is_paired(tmp_path: Path) -> None:
    labels, one = predictions(80, ("s1", "s2"), views=("identity",))
    _, other = predictions(80, ("s1", "s2"), views=("identity",))
    for columns, worse in ((one, 30), (other, 12)):
        for seed, column in enumerate(columns.values()):
            column[:] = 0.05
            column[np.arange(80), labels] = 0.9
            column[seed : worse + seed] = np.roll(column[seed : worse + seed], 1, axis=1)
    a = write_ledger(tmp_path / "a" / "val.parquet", labels, one)
    b = write_ledger(tmp_path / "b" / "val.parquet", labels, other)
    accuracy, loss = compare_seeds(a, b)
    hits = [
        np.mean([correct(labels, top_class(column)) for column in columns.values()], axis=0) for columns in (one, other)
    ]
    drawn = bootstrap_means((hits[1] - hits[0])[:, None])[:, 0]
    difference = accuracy["difference"]
    assert difference is not None
    assert difference["value"] == pytest.approx(18 / 80)
    assert [difference["low"], difference["high"]] == pytest.approx(np.quantile(drawn, [0.025, 0.975]).tolist())
    assert accuracy["by_seed"] == pytest.approx([18 / 80, 18 / 80])
    assert is_better(accuracy) and is_better(loss)  # less loss is better
    back, _ = compare_seeds(b, a)
    assert not is_better(back)


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_other_tasks_have_their_own_metrics(tmp_path: Path, task: str) -> None:
    labels = (np.random.default_rng(0).random((60, 3)) < 0.4).astype(np.float32)
    a = write_ledger(tmp_path / "a" / "val.parquet", labels, numbers(labels, task, ("m",), 1), task=task)
    b = write_ledger(tmp_path / "b" / "val.parquet", labels, numbers(labels, task, ("m",), 2), task=task)
    pairs = compare_seeds(a, b)
    assert pairs[0]["metric"] == {"multilabel": "mean_ap", "regression": "rmse"}[task]
    assert not any(is_better(pair) for pair in compare_seeds(a, a))
    for pair in pairs:
        assert pair["difference"] is not None and pair["n"] == 60


def test_unpaired_models_and_different_samples_are_refused(tmp_path: Path) -> None:
    labels, three = predictions(20)
    a = write_ledger(tmp_path / "a" / "val.parquet", labels, three)
    _, two = predictions(20, ("s1", "s2"))
    with pytest.raises(DataError, match="3 and 2 models cannot be paired"):
        compare_seeds(a, write_ledger(tmp_path / "b" / "val.parquet", labels, two))
    with pytest.raises(DataError, match="cannot be compared"):
        compare_seeds(a, write_ledger(tmp_path / "c" / "val.parquet", labels, three, dataset="other"))
