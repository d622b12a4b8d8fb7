"""Scores of multilabel and regression against scikit-learn, with paired differences, in 80 columns."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from sklearn import metrics

from choral.ensembles.score_run import Scores, score_run, to_json
from choral.ensembles.score_table import render_scores
from choral.inference.ledger import Ledger, LedgerMeta, build_ledger_table, merge_parts, write_part
from choral.metrics.intervals import bootstrap_counts

MEMBERS = ("first", "second", "third")
COUNT = 240
SUFFIXES = ("", "+tta")
Predictions = dict[tuple[str, str], np.ndarray]


def ledger(folder: Path, task: str, names: tuple[str, ...], labels: np.ndarray, columns: Predictions) -> Ledger:
    meta = LedgerMeta(names, MEMBERS, ("identity", "tta"), "test", "d", "e", ("identity", "hflip"), task)
    keys = [f"k{number:05d}" for number in range(len(labels))]
    write_part(folder / "parts", 0, 1, build_ledger_table(meta, keys, labels, columns))
    merge_parts(folder / "parts", 1, keys, folder / "test.parquet", meta)
    return Ledger.open(folder / "test.parquet")


def noisy(labels: np.ndarray, scales: tuple[float, ...], squash: bool) -> Predictions:
    rng = np.random.default_rng(1)
    found = {}
    for member, scale in zip(MEMBERS, scales, strict=True):
        for view, factor in (("identity", 1.0), ("tta", 0.8)):
            values = labels + rng.normal(0, scale * factor, labels.shape)
            found[member, view] = (1 / (1 + np.exp(1 - 2 * values)) if squash else values).astype(np.float32)
    return found


def table(scores: Scores) -> list[str]:
    output = io.StringIO()
    Console(file=output, width=80).print(render_scores(scores))
    return output.getvalue().splitlines()


def row_of(scores: Scores, name: str, metric: str, target: str | None = None) -> dict:
    (row,) = (
        row for row in scores["rows"] if row["name"] == name and row["metric"] == metric and row.get("target") == target
    )
    return dict(row)


def test_multilabel(tmp_path: Path) -> None:
    labels = (np.random.default_rng(0).random((COUNT, 3)) < (0.5, 0.2, 0.1)).astype(np.float32)
    columns = noisy(labels, (0.9, 0.5, 1.1), squash=True)
    opened = ledger(tmp_path, "multilabel", ("sun", "rain", "fog"), labels, columns)
    scores = score_run(opened, [{"name": "theirs", "metric": "mean_ap", "value": 0.75, "source": "Them 2020"}])
    for suffix, view in zip(SUFFIXES, ("identity", "tta"), strict=True):
        members = {f"member/{name}{suffix}": columns[name, view] for name in MEMBERS}
        soft = np.mean([values.astype(float) for values in members.values()], axis=0)
        for name, values in {**members, f"soft{suffix}": soft.astype(np.float32)}.items():
            row = row_of(scores, name, "mean_ap")
            assert row["value"] == pytest.approx(metrics.average_precision_score(labels, values, average="macro"))
            assert row["low"] < row["value"] < row["high"] and row["n"] == COUNT
            assert row_of(scores, name, "f1")["value"] == pytest.approx(
                metrics.f1_score(labels, values > 0.5, average="micro")
            )
            losses = [metrics.log_loss(labels[:, label], values[:, label].astype(float)) for label in range(3)]
            assert row_of(scores, name, "log_loss")["value"] == pytest.approx(np.mean(losses), rel=1e-6)
    assert scores["best_member"] == "member/second"
    assert row_of(scores, "member/second", "mean_ap")["difference"] is None
    difference = row_of(scores, "member/third", "mean_ap")["difference"]
    assert difference["to"] == "member/second" and difference["high"] < 0
    lines = table(scores)
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith(" member/second+tta ") for line in lines) == 3  # names are not broken
    (line,) = (line for line in lines if line.startswith(" soft+tta ") and "mAP %" in line)
    assert f"{100 * row_of(scores, 'soft+tta', 'mean_ap')['value']:.1f} [" in line
    assert any(line.split() == ["theirs", "mAP", "%", "75.0", "published"] for line in lines)


def test_regression(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).normal((3.0, 1e4), (2.0, 3e3), (COUNT, 2)).astype(np.float32)
    columns = {key: values * (1, 1000) for key, values in noisy(labels / (1, 1000), (0.9, 0.5, 0.6), False).items()}
    columns = {key: values.astype(np.float32) for key, values in columns.items()}
    scores = score_run(ledger(tmp_path, "regression", ("kg", "dollars"), labels, columns))
    for suffix, view in zip(SUFFIXES, ("identity", "tta"), strict=True):
        members = {f"member/{name}{suffix}": columns[name, view] for name in MEMBERS}
        stack = np.stack([values.astype(float) for values in members.values()])
        rules = {f"mean{suffix}": stack.mean(0), f"median{suffix}": np.median(stack, axis=0)}
        for name, values in {**members, **rules}.items():
            for number, target in enumerate(("kg", "dollars")):
                truth, predicted = labels[:, number].astype(float), values[:, number].astype(float)
                found = {metric: row_of(scores, name, metric, target) for metric in ("mae", "rmse", "r2")}
                assert found["mae"]["value"] == pytest.approx(metrics.mean_absolute_error(truth, predicted), rel=1e-5)
                assert found["rmse"]["value"] == pytest.approx(
                    metrics.root_mean_squared_error(truth, predicted), rel=1e-5
                )
                assert found["r2"]["value"] == pytest.approx(metrics.r2_score(truth, predicted), rel=1e-5)
                assert all(row["low"] < row["value"] < row["high"] for row in found.values())
    assert scores["best_member"] == "member/second"
    assert max(map(len, table(scores))) <= 80
    assert json.loads(to_json(scores)) == json.loads(to_json(score_run(Ledger.open(tmp_path / "test.parquet"))))


def test_regression_intervals_match_repeated_samples(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).normal(5, 2, (40, 1)).astype(np.float32)
    columns = noisy(labels, (0.9, 0.5, 0.6), squash=False)
    scores = score_run(ledger(tmp_path, "regression", ("kg",), labels, columns))
    first, second = (columns[name, "identity"][:, 0].astype(float) for name in ("first", "second"))
    r2, gain = [], []
    for draw in np.concatenate(list(bootstrap_counts(40))):
        rows = np.repeat(np.arange(40), draw)
        r2.append(metrics.r2_score(labels[rows, 0], first[rows]))
        rmse = [metrics.root_mean_squared_error(labels[rows, 0], values[rows]) for values in (first, second)]
        gain.append(rmse[0] - rmse[1])
    row = row_of(scores, "member/first", "r2", "kg")
    assert (row["low"], row["high"]) == pytest.approx(tuple(np.quantile(r2, [0.025, 0.975])), rel=1e-6)
    difference = row_of(scores, "member/first", "rmse", "kg")["difference"]
    assert (difference["low"], difference["high"]) == pytest.approx(tuple(np.quantile(gain, [0.025, 0.975])), rel=1e-5)
