"""Packing for the tasks multilabel and regression."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from choral.cli import main
from choral.config import Config, DataConfig
from choral.core.errors import ChoralError, ConfigError, DataError
from choral.data.loading.targets import Targets
from choral.data.packing.check import check_dataset
from choral.data.packing.options import PackOptions
from choral.data.packing.pack import pack
from choral.data.shards.index import Dataset, Index
from choral.data.shards.tar import group_by_key, read_headers
from choral.training.preflight import preflight
from small_sources import image_bytes, make_photos, write_tar

LABELS = PackOptions(processes=1, task="multilabel", val=0.2, test=0.2)
NUMBERS = PackOptions(processes=1, task="regression", targets=("weight", "label"), val=0.2, test=0.2)
CELLS = ["sun;rain", "", " rain | sun|rain", "fog", "sun"]


def write_manifest(root: Path, header: str, cells: list[str]) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for number in range(len(cells)):
        (root / f"{number}.png").write_bytes(image_bytes((number, 0, 0)))
    lines = [header, *(f"{number}.png,{cell}" for number, cell in enumerate(cells))]
    (root / "list.csv").write_text("\n".join(lines) + "\n")
    return root / "list.csv"


def targets_by_path(dataset: Dataset, task: str, columns: tuple[str, ...] = ()) -> dict[str, list[float]]:
    config = Config(task=task, data=DataConfig(shards="x", targets=columns))  # type: ignore[arg-type]
    found = {}
    for split in dataset.splits:
        index = Index.open(dataset, split)
        rows = Targets.open(config, index).take(np.arange(len(index)))
        found |= dict(zip(index.column("path").to_pylist(), rows.tolist(), strict=True))
    return found


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("labels")
    return pack(str(write_manifest(root / "in", "image,label", CELLS * 12)), root / "out", LABELS)


def test_labels_of_a_manifest(labelled: Dataset) -> None:
    assert (labelled.task, labelled.classes) == ("multilabel", ("fog", "rain", "sun"))
    expected = [[0, 1, 1], [0, 0, 0], [0, 1, 1], [1, 0, 0], [0, 0, 1]]
    assert targets_by_path(labelled, "multilabel") == {f"{n}.png": expected[n % 5] for n in range(60)}
    assert check_dataset(labelled.folder).problems == []
    counts = {name: split.class_counts for name, split in labelled.splits.items()}
    assert np.sum(list(counts.values()), axis=0).tolist() == [12, 24, 36]
    assert labelled.summary()["splits"]["train"]["class_counts"]["sun"] == counts["train"][2]


def test_splits_are_stratified_by_combinations_of_labels(labelled: Dataset) -> None:
    for split in ("val", "test"):
        combinations = Counter(map(tuple, Index.open(labelled, split).column("label_ids").to_pylist()))
        whole = {(): 12, (0,): 12, (1, 2): 24, (2,): 12}
        assert all(abs(combinations[ids] - 0.2 * count) <= 1 for ids, count in whole.items()), combinations


def test_rare_combinations_are_pooled_so_that_each_label_is_in_training(tmp_path: Path) -> None:
    rare = [f"odd{number // 2};sun;x{number}" for number in range(6)]
    dataset = pack(str(write_manifest(tmp_path, "image,label", CELLS * 12 + rare)), tmp_path / "out", LABELS)
    assert all(dataset.splits["train"].class_counts)


def test_packed_labels_are_read_again_from_the_tars(labelled: Dataset, tmp_path: Path) -> None:
    path = labelled.shard_path(0)
    sample = group_by_key(path, read_headers(path))[0]
    assert "cls" not in sample.members
    again = pack(str(labelled.folder / "*.tar"), tmp_path / "again", dataclasses.replace(LABELS, val=None, test=None))
    assert targets_by_path(again, "multilabel") == targets_by_path(labelled, "multilabel")
    assert again.classes == labelled.classes and check_dataset(again.folder).problems == []


def test_lists_of_labels_in_parquet(tmp_path: Path) -> None:
    write_manifest(tmp_path, "image,label", CELLS)
    lists = [["b", "a"], [], None, ["a"], ["a"]]
    table = pa.table({"image": [f"{n}.png" for n in range(5)], "label": pa.array(lists, pa.list_(pa.string()))})
    pq.write_table(table, tmp_path / "list.parquet")
    dataset = pack(str(tmp_path / "list.parquet"), tmp_path / "out", dataclasses.replace(LABELS, val=0, test=0))
    found = targets_by_path(dataset, "multilabel")
    assert [found[f"{n}.png"] for n in range(5)] == [[1, 1], [0, 0], [0, 0], [1, 0], [1, 0]]


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("numbers")
    cells = [f"{number % 7},{number / 4}" for number in range(100)]
    return pack(str(write_manifest(root / "in", "image,weight,label", cells)), root / "out", NUMBERS)


def test_numbers_of_a_manifest(numbered: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    """No column is a class; a target called label becomes meta_label."""
    assert (numbered.task, numbered.classes) == ("regression", ("weight", "meta_label"))
    expected = {f"{number}.png": [number % 7, number / 4] for number in range(100)}
    assert targets_by_path(numbered, "regression") == expected
    assert targets_by_path(numbered, "regression", ("meta_label",)) == {key: [b] for key, (_, b) in expected.items()}
    assert check_dataset(numbered.folder).problems == []
    assert numbered.summary()["splits"]["val"]["class_counts"] == {}
    assert main(["ls", str(numbered.folder)]) == 0
    assert "meta_label" in capsys.readouterr().out
    for split in ("val", "test"):  # stratified by bins of the first target
        assert set(np.bincount(Index.open(numbered, split).column("weight"), minlength=7)) <= {2, 3, 4}


def test_numbers_from_tars(tmp_path: Path) -> None:
    members = []
    for number in range(8):
        members.append((f"s{number}.json", json.dumps({"weight": number / 2, "path": f"{number}.png"}).encode()))
        members.append((f"s{number}.png", image_bytes((number, 0, 0))))
    options = dataclasses.replace(NUMBERS, targets=("weight",), val=0, test=0)
    dataset = pack(str(write_tar(tmp_path / "a.tar", members)), tmp_path / "out", options)
    assert targets_by_path(dataset, "regression") == {f"{number}.png": [number / 2] for number in range(8)}


@pytest.mark.parametrize(
    ("cells", "options", "error", "text"),
    [
        (["1,2", "3,x"], NUMBERS, DataError, r"list: target 'meta_label' is string, expected numbers"),
        (["1,2", ",3"], NUMBERS, DataError, r"target 'weight' is None for sample '1-.*\(1 such samples\)"),
        (
            ["1,2"],
            dataclasses.replace(NUMBERS, targets=("wait",)),
            ConfigError,
            r"no column 'wait'.*Did you mean weight",
        ),
        (["1,", "2,;"], LABELS, DataError, r"row 1: neither this nor any other sample has a label"),
    ],
)
def test_invalid_labels_and_targets(
    tmp_path: Path, cells: list[str], options: PackOptions, error: type[ChoralError], text: str
) -> None:
    with pytest.raises(error, match=text):
        pack(str(write_manifest(tmp_path, "image,weight,label", cells)), tmp_path / "out", options)


def test_class_folders_do_not_support_multilabel(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", {"a": 3, "b": 3})
    with pytest.raises(ConfigError, match=r"photos: has one class per image; for several labels use a manifest"):
        pack(str(photos), tmp_path / "out", LABELS)
    with pytest.raises(ConfigError, match=r"photos: no column 'weight' for a target; available: path"):
        pack(str(photos), tmp_path / "out", NUMBERS)
    with pytest.raises(ConfigError, match="task regression needs a target"):
        PackOptions(task="regression")


def test_preflight_rejects_a_config_of_another_task(labelled: Dataset, numbered: Dataset) -> None:
    def refused(dataset: Dataset, task: str, *columns: str) -> str:
        data = DataConfig(shards=str(dataset.folder), targets=columns)
        with pytest.raises(ChoralError) as caught:
            preflight(Config(task=task, data=data))  # type: ignore[arg-type]
        return str(caught.value)

    assert "packed for multilabel: set task: multilabel, or pack" in refused(labelled, "multiclass")
    assert "or name a column of numbers in data.targets" in refused(labelled, "regression")
    assert "expected 0 or 1" in refused(numbered, "multilabel", "weight")


def test_preflight_rejects_a_split_without_labels(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, "image,label,split", ["a,train", "b,train", ",val"])
    dataset = pack(str(manifest), tmp_path / "out", PackOptions(processes=1, task="multilabel"))
    with pytest.raises(DataError, match="no sample of split 'val' has any label"):
        preflight(Config(task="multilabel", data=DataConfig(shards=str(dataset.folder))))
