"""`choral score --of` and `--by`: values equal those of the metrics, slices are compared with the rest."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

from choral.cli import main
from choral.config import Config
from choral.data.shards.index import Dataset, Index
from choral.ensembles.rules import soft_vote
from choral.inference.ledger import LedgerMeta, build_ledger_table, merge_parts, write_part
from choral.runs.run_dir import RunDir
from choral.scoring import slice_metrics as by_slice
from choral.scoring.predictor import Predictor, load_predictor
from choral.scoring.predictor_report import build_predictor_report
from choral.scoring.predictor_table import render_predictor_report
from choral.scoring.slice_metrics import compute_slice_metrics
from choral.scoring.slice_table import render_slices
from made_runs import MEMBERS, made_run, numbers, predictions, write_ledger

VAL, TEST = predictions(150, seed=1), predictions(400, seed=2)


@pytest.fixture
def run(tmp_path: Path) -> tuple[RunDir, Config]:
    return made_run(tmp_path / "run", {"val": VAL, "test": TEST})


def shown(renderable: Any) -> list[str]:
    console = Console(file=io.StringIO(), width=80)
    console.print(renderable)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in text
    return [line.rstrip() for line in text.splitlines()]


def called(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    assert main(["score", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_report_agrees_with_the_score_table(run: tuple[RunDir, Config], capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["name"]: row for row in called(capsys, str(run[0].path))["rows"]}
    for name in ("soft+tta", "member/b", "weighted"):
        card = called(capsys, str(run[0].path), "--of", name)
        for metric, wanted in (("accuracy", rows[name]), ("log_loss", rows[name]["log_loss"])):
            found = card["metrics"][metric]
            assert [found[key] for key in ("value", "low", "high")] == pytest.approx(
                [wanted[key] for key in ("value", "low", "high")], abs=1e-9
            )
    card = called(capsys, str(run[0].path), "--of", "soft+tta")
    said = soft_vote(np.stack([TEST[1][name, "tta"] for name in MEMBERS]))
    assert card["metrics"]["balanced_accuracy"]["value"] == pytest.approx(
        balanced_accuracy_score(TEST[0], said.argmax(1))
    )
    assert card["metrics"]["roc_auc"]["value"] == pytest.approx(roc_auc_score(TEST[0], said, multi_class="ovr"))
    assert np.sum(card["confusion"]) == 400 and card["n"] == 400
    assert card["confusions"][0]["count"] == max(card["confusion"][a][b] for a in range(3) for b in range(3) if a != b)
    hard = called(capsys, str(run[0].path), "--of", "hard")
    assert "log_loss" not in hard["metrics"] and hard["plain_ece"] is None


def test_rendered_report(run: tuple[RunDir, Config], capsys: pytest.CaptureFixture[str]) -> None:
    card = build_predictor_report(load_predictor(*run, "test", "soft+tta"))
    lines = shown(render_predictor_report(card))
    assert lines[0] == "soft+tta on test: 400 samples"
    accuracy = card["metrics"]["accuracy"]
    assert accuracy is not None
    wanted = f"{100 * accuracy['value']:.1f} [{100 * accuracy['low']:.1f}, {100 * accuracy['high']:.1f}]"
    assert [line.strip() for line in lines if line.startswith(" accuracy %")] == [f"accuracy %            {wanted}"]
    assert any("debiased" in line for line in lines) and any("confusion" in line for line in lines)
    assert main(["score", str(run[0].path), "--of", "nobody"]) == 2
    assert "There are: member/a" in " ".join(capsys.readouterr().err.split())


def test_many_classes_are_summarized_by_the_worst_and_the_confusions(tmp_path: Path) -> None:
    classes = tuple(f"class number {number}" for number in range(30))
    labels, columns = predictions(900, classes=30)
    run = made_run(tmp_path / "many", {"test": (labels, columns)}, classes=classes)
    lines = shown(render_predictor_report(build_predictor_report(load_predictor(*run, "test"))))
    assert "the 20 of 30 classes with the lowest F1" in lines and "most frequent confusions" in lines
    assert any("top-5 %" in line for line in lines)


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_reports_of_multilabel_and_regression(tmp_path: Path, task: str) -> None:
    rng = np.random.default_rng(0)
    labels = rng.normal(size=(120, 2)).astype(np.float32)
    truth = (labels > 0.3).astype(np.float32) if task == "multilabel" else labels
    run = made_run(tmp_path / task, {"test": (truth, numbers(truth, task))}, classes=("w", "h"), task=task)
    predictor = load_predictor(*run, "test")
    card = build_predictor_report(predictor)
    lines = shown(render_predictor_report(card))
    if task == "multilabel":
        f1 = card["metrics"]["f1"]
        assert f1 is not None
        assert f1["value"] == pytest.approx(f1_score(truth, predictor.predictions > 0.5, average="micro"))
        assert any(line.split()[:1] == ["label"] and "AP % [95 %]" in line for line in lines)
    else:
        assert list(card["metrics"]) == ["r2", "spearman"]
        assert set(card["by_class"]["w"]) == {"rmse", "mae", "r2", "spearman"}
        assert any("Spearman" in line for line in lines)
    half = np.arange(120) < 60
    found = compute_slice_metrics(predictor, {"first": half, "second": ~half}, "half")
    one = found["slices"][0]["metrics"]["f1" if task == "multilabel" else "rmse h"]
    assert one["score"] is not None and one["rest"] is not None and one["difference"] is not None
    assert one["difference"]["value"] == pytest.approx(one["score"]["value"] - one["rest"]["value"])
    assert any("RMSE h" in line or "F1 %" in line for line in shown(render_slices(found)))


def sliced(run: tuple[RunDir, Config]) -> tuple[Predictor, np.ndarray]:
    predictor = load_predictor(*run, "test", "soft+tta")
    return predictor, predictor.predictions.argmax(1) == predictor.ledger.labels


def test_only_the_worse_slice_is_significant(run: tuple[RunDir, Config]) -> None:
    predictor, right = sliced(run)
    rng = np.random.default_rng(0)
    worse = ~right & (rng.random(400) < 0.7)
    worse |= right & (rng.random(400) < 0.1)
    other = np.arange(400) % 2 == 0
    slices = {"worse": worse, "even": ~worse & other, "odd": ~worse & ~other}
    found = compute_slice_metrics(predictor, slices, "made")
    assert found["comparisons"] == 3
    by_name = {one["name"]: one["metrics"]["accuracy"] for one in found["slices"]}
    score, difference = by_name["worse"]["score"], by_name["worse"]["difference"]
    assert score is not None and score["value"] == pytest.approx(right[worse].mean())
    assert difference is not None and difference["value"] == pytest.approx(right[worse].mean() - right[~worse].mean())
    assert difference["high"] < 0
    assert by_name["worse"]["p_adjusted"] < 0.001  # type: ignore[operator]
    lines = shown(render_slices(found))
    starred = [line for line in lines if line.endswith("*")]
    assert any("worse" in line for line in starred)
    assert any("3 comparisons per metric" in line for line in lines)


def test_a_small_slice_like_the_others_is_not_significant(tmp_path: Path) -> None:
    """Two or five samples that are all correct, like most samples: the slice must not be starred as significant."""
    count, starred = 400, dict.fromkeys(("accuracy", "balanced_accuracy", "log_loss", "brier", "roc_auc"), 0)
    rng = np.random.default_rng(5)
    for _ in range(6):
        labels = (rng.random(count) < 0.3).astype(np.int64)
        second = 1 / (1 + np.exp(-1.5 * (rng.normal(size=count) + 2.9 * (labels - 0.5))))
        said = np.stack([1 - second, second], axis=1).astype(np.float32)
        place = rng.permutation(count)
        slices = {"two": place < 2, "five": (place >= 2) & (place < 7), "ten": (place >= 7) & (place < 17)}
        ledger = write_ledger(tmp_path / "test.parquet", labels, {("net", "identity"): said}, ("no", "yes"))
        made = Predictor("member/net", ledger, said, gives_probabilities=True)
        found = compute_slice_metrics(made, {**slices, "others": place >= 17}, "made")
        for one in found["slices"][:3]:
            for metric in starred:
                cell = one["metrics"][metric]
                starred[metric] += cell["p_adjusted"] is not None and cell["p_adjusted"] < 0.05
        accuracy = found["slices"][0]["metrics"]["accuracy"]["score"]
        assert accuracy is not None and accuracy["high"] - accuracy["low"] > 0.5, "two samples say little"
    assert max(starred.values()) <= 2, starred
    lines = shown(render_slices(found))
    assert any("slices of fewer than 20 samples" in line for line in lines)


def test_rankings_that_would_take_minutes_are_listed(
    run: tuple[RunDir, Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor, _ = sliced(run)
    half = np.arange(400) < 200
    assert compute_slice_metrics(predictor, {"a": half, "b": ~half}, "made")["left_out"] == []
    monkeypatch.setattr(by_slice, "_MAX_RANKED", 1000)
    found = compute_slice_metrics(predictor, {"a": half, "b": ~half}, "made")
    assert found["left_out"] == ["roc_auc", "average_precision"]
    assert not set(found["left_out"]) & set(found["overall"])
    assert "left out: ROC-AUC %, average precision %" in " ".join(shown(render_slices(found)))


def test_holm_is_ordered_and_monotonic(run: tuple[RunDir, Config]) -> None:
    predictor, _ = sliced(run)
    parts = np.random.default_rng(1).integers(0, 5, 400)
    found = compute_slice_metrics(predictor, {str(part): parts == part for part in range(5)}, "made")
    cells = sorted(
        (one["metrics"]["accuracy"]["p"], one["metrics"]["accuracy"]["p_adjusted"]) for one in found["slices"]
    )  # type: ignore[type-var]
    expected, largest = [], 0.0
    for place, (p, _) in enumerate(cells):
        assert p is not None
        largest = max(largest, min(1, (5 - place) * p))
        expected.append(largest)
    assert [adjusted for _, adjusted in cells] == pytest.approx(expected)


def test_one_slice_of_all_has_no_rest(run: tuple[RunDir, Config]) -> None:
    found = compute_slice_metrics(sliced(run)[0], {"all of them": np.ones(400, dtype=np.bool_)}, "made")
    cell = found["slices"][0]["metrics"]["accuracy"]
    assert found["comparisons"] == 0 and cell["difference"] is None and cell["score"] == found["overall"]["accuracy"]
    assert shown(render_slices(found))


def test_by_a_column_of_real_shards(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = Dataset.open(shards)
    index = Index.open(dataset, "test")
    keys = index.keys(range(len(index)))
    order = np.argsort(keys)
    labels = index.labels[order]
    run, _ = made_run(tmp_path / "real", {}, [f"data.shards={shards}"])
    meta = LedgerMeta(dataset.classes, ("net",), ("identity",), "test", dataset.fingerprint)
    said = np.full((len(labels), len(dataset.classes)), 0.1, np.float32)
    said[:, 0] = 1 - 0.1 * (len(dataset.classes) - 1)
    columns = {("net", "identity"): said}
    table = build_ledger_table(meta, [keys[row] for row in order], labels, columns)
    write_part(run.predictions / "parts", 0, 1, table)
    merge_parts(run.predictions / "parts", 1, keys, run.predictions / "test.parquet", meta)
    found = called(capsys, str(run.path), "--by", "ext")
    extensions = index.table["ext"].cast(pa.string()).to_pylist()
    assert {one["name"]: one["n"] for one in found["slices"]} == {ext: extensions.count(ext) for ext in set(extensions)}
    shutil.copytree(shards, tmp_path / "march")
    moved = run.predictions / "test@march.parquet"
    elsewhere = replace(meta, split="test@march")
    write_part(
        run.predictions / "parts", 0, 1, build_ledger_table(elsewhere, [keys[row] for row in order], labels, columns)
    )
    merge_parts(run.predictions / "parts", 1, keys, moved, elsewhere)
    there = called(capsys, str(run.path), "--split", "test@march", "--by", "ext", "--data", str(tmp_path / "march"))
    assert there["split"] == "test@march" and there["slices"] == found["slices"]
    by_label = called(capsys, str(run.path), "--by", "label", "--of", "member/net")
    first = next(one for one in by_label["slices"] if one["name"] == dataset.classes[0])
    assert first["metrics"]["accuracy"]["score"]["value"] == 1
    assert main(["score", str(run.path), "--by", "ext"]) == 0
    assert main(["score", str(run.path), "--by", "typ"]) == 2
    assert "no column 'typ'" in capsys.readouterr().err
    assert main(["score", str(run.path), "--data", str(shards)]) == 2
    assert "--data: belongs to --by" in capsys.readouterr().err


def test_other_data_than_were_evaluated_are_refused(
    run: tuple[RunDir, Config], shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", str(run[0].path), "--by", "ext", "--data", str(shards)]) == 1
    assert "was made of other data" in " ".join(capsys.readouterr().err.split())
