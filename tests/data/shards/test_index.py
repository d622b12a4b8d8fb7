from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from choral.core.errors import ConfigError, DataError
from choral.data.shards.index import Dataset, Index, Shard, Split, compute_fingerprint, write_index


def test_rows_are_sorted_and_match_the_columns(packed: Dataset) -> None:
    index = Index.open(packed, "train")
    records = [index.row(i) for i in range(len(index))]
    assert len(index) == packed.splits["train"].samples == 11
    assert [(r.shard, r.offset) for r in records] == sorted((r.shard, r.offset) for r in records)
    assert index.keys(np.array([3, 1])) == [records[3].key, records[1].key]
    assert index.labels.tolist() == [r.label for r in records]
    assert index.labels.dtype == np.int64
    assert not index.labels.flags.owndata
    assert index.shard_sizes.sum() == len(index)
    assert {r.ext for r in records} == {"png", "jpg"}
    assert index.column("path").type == pa.string()
    with pytest.raises(IndexError):
        index.row(11)


def test_a_pickled_index_maps_the_file_again(packed: Dataset) -> None:
    index = Index.open(packed, "val")
    again = pickle.loads(pickle.dumps(index))
    assert again.row(0) == index.row(0)
    assert len(pickle.dumps(index)) < 5000


def test_unknown_names_list_the_available_ones(packed: Dataset) -> None:
    with pytest.raises(DataError, match=r"no split 'tets'; available: train, val, test. Did you mean test\?"):
        Index.open(packed, "tets")
    with pytest.raises(DataError, match=r"no column 'pat' in split train; available: key, .*path"):
        Index.open(packed, "train").column("pat")


def test_shard_sizes_of_shared_shards(tmp_path: Path) -> None:
    """Tars indexed in place: a split may have samples in some of the shards only."""
    shard = np.array([0, 0, 2, 2, 2, 5], dtype=np.int32)
    table = pa.table(
        {
            "key": [f"k{i}" for i in range(6)],
            "shard": shard,
            "offset": pa.array(range(6), pa.int64()),
            "length": pa.array(range(6), pa.int64()),
            "ext": pa.array(["jpg"] * 6).cast(pa.dictionary(pa.int8(), pa.string())),
            "label": pa.array([0] * 6, pa.int64()),
        }
    )
    checksum = write_index(tmp_path / "train.arrow", table)
    split = Split(6, "train.arrow", checksum, (0, 2, 5), (6, 0))
    shards = tuple(Shard(f"{i}.tar", 1, "", 1) for i in range(6))
    dataset = Dataset(tmp_path, "n", "multiclass", ("a", "b"), shards, {"train": split}, "", "")
    assert Index.open(dataset, "train").shard_sizes.tolist() == [2, 3, 1]


def test_description_round_trip(packed: Dataset) -> None:
    again = Dataset.open(packed.folder)
    assert again == packed
    assert again.columns["label"] == "int64"
    assert again.fingerprint == compute_fingerprint(packed.classes, packed.shards, packed.splits)
    content = json.loads((packed.folder / "dataset.json").read_text())
    assert list(content)[:4] == ["format", "task", "name", "classes"]
    summary = packed.summary()
    assert sum(split["samples"] for split in summary["splits"].values()) == 13
    assert summary["splits"]["train"]["class_counts"].keys() == {"blue", "green", "red"}
    json.dumps(summary)


def test_missing_and_damaged_descriptions(tmp_path: Path, packed: Dataset) -> None:
    with pytest.raises(DataError, match=r"not a packed directory \(no dataset.json\): run `choral pack"):
        Dataset.open(tmp_path / "nothing")
    path = packed.folder / "dataset.json"
    content = json.loads(path.read_text())
    for change, message in [
        ({"format": "other-9"}, "format is 'other-9'"),
        ({"shards": [{"path": "../../etc/passwd", "bytes": 1, "sha256": "", "samples": 1}]}, "leaves the directory"),
        ({"shards": []}, "refers to a shard that is not listed"),
        ({"classes": None}, "damaged"),
    ]:
        path.write_text(json.dumps({**content, **change}))
        with pytest.raises(DataError, match=message):
            Dataset.open(packed.folder)
    for text in ("{", "[1]", "\0"):
        path.write_text(text)
        with pytest.raises(DataError, match=r"dataset\.json"):
            Dataset.open(packed.folder)
    with pytest.raises(ConfigError, match="expected a local path"):
        Dataset.open("s3://bucket/data")


def test_check_files_names_the_missing_file(packed: Dataset) -> None:
    packed.check_files()
    path = packed.shard_path(0)
    whole = path.read_bytes()
    path.write_bytes(whole[:-512])
    with pytest.raises(DataError, match=rf"train-000000\.tar: {len(whole) - 512} bytes, expected {len(whole)}"):
        packed.check_files()
    path.unlink()
    with pytest.raises(DataError, match=r"train-000000\.tar: shard is missing"):
        packed.check_files()
    path.write_bytes(whole)
    (packed.folder / "val.arrow").unlink()
    with pytest.raises(DataError, match=r"val\.arrow: index is missing"):
        packed.check_files()


def test_damaged_index(packed: Dataset) -> None:
    path = packed.folder / "train.arrow"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(DataError, match=r"train\.arrow: index cannot be read"):
        Index.open(packed, "train")
    path.write_bytes((packed.folder / "val.arrow").read_bytes())
    with pytest.raises(DataError, match=r"train\.arrow: not the index .* \(1 rows, expected 11\)"):
        Index.open(packed, "train")
    write_index(path, pa.table({"key": ["a"] * 11}))
    with pytest.raises(DataError, match=r"not the index .*wrong columns: \['shard'"):
        Index.open(packed, "train")
