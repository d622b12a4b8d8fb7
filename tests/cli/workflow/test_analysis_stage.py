"""`choral analyze` on made-up predictions of packed images: when the page is written, and its content."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from choral.cli import main
from choral.cli.workflow.analysis import analyze
from choral.core.errors import DataError
from choral.data.shards.index import Dataset, Index
from choral.runs.run_dir import RunDir
from made_runs import made_run, predictions, write_ledger


def run_of(shards: Path, folder: Path, splits: tuple[str, ...] = ("val",)) -> RunDir:
    """Return a run of three members, evaluated on splits of the toy data."""
    dataset = Dataset.open(shards)
    overrides = [f"data.shards={shards}", "ensemble.members=[{name: a}, {name: b}, {name: c}]"]
    run, _ = made_run(folder, {}, overrides)
    for split in splits:
        index = Index.open(dataset, split)
        keys = sorted(index.keys(np.arange(len(index))))
        labels, columns = predictions(len(keys))
        options: dict[str, Any] = {"classes": dataset.classes, "dataset": dataset.fingerprint}
        write_ledger(run.predictions / f"{split}.parquet", labels, columns, keys=keys, **options)
    return run


def data_of(path: Path) -> dict[str, Any]:
    found = re.search(r'id="data">(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    content: dict[str, Any] = json.loads(found[1])
    return content


def test_a_page_is_written_once_and_again_when_something_has_changed(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(shards, tmp_path / "run")
    path = analyze(run, results=Console(width=200))
    assert path == run.path / "analysis-val.html"
    data = data_of(path)
    assert data["meta"]["n"] == 13 and data["meta"]["members"] == ["a", "b", "c"]
    assert data["meta"]["predictor"] == "soft+tta"
    said = capsys.readouterr().out
    assert all(f"- {one['text']}" in said for one in data["highlights"])
    pictures = re.search(r'id="images">(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL)
    assert pictures is not None and len(json.loads(pictures[1])["val"]) == 13

    before = path.stat().st_mtime_ns
    assert analyze(run, results=Console(width=200)) == path and path.stat().st_mtime_ns == before
    again = capsys.readouterr()
    assert "up to date" in again.err and again.out == said
    analyze(run, force=True)
    assert path.stat().st_mtime_ns > before
    analyze(run, of="member/b")
    assert data_of(path)["meta"]["predictor"] == "member/b"
    before = path.stat().st_mtime_ns
    (run.path / "probes").mkdir()
    (run.path / "advice.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="advice.json: damaged"):
        analyze(run, of="member/b")
    assert path.stat().st_mtime_ns == before


def test_the_verb_prints_where_the_page_is_or_all_of_it(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(shards, tmp_path / "run", ("val", "test"))
    out = tmp_path / "elsewhere.html"
    assert main(["analyze", str(run.path), "--split", "test", "--of", "soft", "--out", str(out)]) == 0
    assert f"Page: {out}" in capsys.readouterr().out
    assert "1st use of this test split" in out.read_text(encoding="utf-8")
    assert main(["analyze", str(run.path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["split"] == "val" and len(found["samples"]["keys"]) == 13
    assert not (run.path / "analysis-val.html").exists()
    assert main(["analyze", str(run.path), "--json", "--out", str(out)]) == 2
    assert main(["analyze", str(run.path), "--of", "nobody"]) == 2
    capsys.readouterr()
    assert main(["analyze", str(run.path), "--out", str(tmp_path)]) == 2
    assert "is a directory; expected a file name" in " ".join(capsys.readouterr().err.split())


def test_test_data_are_not_evaluated_by_the_way(shards: Path, tmp_path: Path) -> None:
    run = run_of(shards, tmp_path / "run")
    with pytest.raises(DataError, match="split 'test' has not been evaluated"):
        analyze(run, "test")


def test_held_out_predictions_are_about_the_training_split(shards: Path, tmp_path: Path) -> None:
    run = run_of(shards, tmp_path / "run", ())
    dataset = Dataset.open(shards)
    index = Index.open(dataset, "train")
    keys = sorted(index.keys(np.arange(len(index))))
    labels, columns = predictions(len(keys), members=("a",), views=("identity",))
    path = run.predictions / "held-out.parquet"
    write_ledger(path, labels, columns, keys=keys, classes=dataset.classes, dataset=dataset.fingerprint)
    page = analyze(run, "held-out")
    assert data_of(page)["meta"]["n"] == 37
    pictures = re.search(r'id="images">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)
    assert pictures is not None and len(json.loads(pictures[1])["held-out"]) == 37
