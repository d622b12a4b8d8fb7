"""Slices by metadata: every sample is in exactly one, missing values have a slice of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from choral.core.errors import ConfigError, DataError
from choral.data.shards.index import EXT_TYPE, Dataset, Index
from choral.scoring.slices import MAX_VALUES, MISSING, list_slice_columns, split_by_column

COUNT = 100
KEYS = [f"k{number:03d}" for number in range(COUNT)]


def index_of(task: str = "multiclass", **columns: pa.Array) -> Index:
    dataset = Dataset(Path("/data"), "made", task, ("ok", "defect"), (), {}, "f", "p")
    core = {
        "key": pa.array(KEYS[::-1]),  # rows lie in another order than a ledger's
        "shard": pa.array([0] * COUNT, pa.int32()),
        "offset": pa.array(range(COUNT), pa.int64()),
        "length": pa.array(range(COUNT), pa.int64()),
        "ext": pa.array(["png", "jpg"] * (COUNT // 2)).cast(EXT_TYPE),
        "label": pa.array([number % 2 for number in range(COUNT)], pa.int64()),
    }
    return Index(dataset, "test", pa.table(core | {name: values[::-1] for name, values in columns.items()}))


def sizes(index: Index, column: str) -> dict[str, int]:
    slices = split_by_column(index, KEYS, column)
    assert (np.sum(list(slices.values()), axis=0) == 1).all()
    return {name: int(mask.sum()) for name, mask in slices.items()}


def test_texts_and_booleans_by_value_largest_first() -> None:
    types = ["poly"] * 60 + ["mono"] * 30 + [None] * 6 + [""] * 4
    index = index_of(type=pa.array(types), known=pa.array([True] * 99 + [None]), no=pa.array([False] * 99 + [True]))
    assert list(sizes(index, "type").items()) == [("poly", 60), ("mono", 30), (MISSING, 10)]
    assert sizes(index, "known") == {"True": 99, MISSING: 1}
    assert sizes(index, "no") == {"False": 99, "True": 1}
    assert split_by_column(index, KEYS, "type")["poly"][:60].all()  # in the order of the keys, not of the rows
    assert split_by_column(index, KEYS[55:65], "type")["poly"].tolist() == [True] * 5 + [False] * 5
    assert sizes(index, "ext") == {"jpg": 50, "png": 50}
    assert sizes(index, "label") == {"defect": 50, "ok": 50}


def test_rare_values_share_a_slice() -> None:
    groups = [f"g{min(number, 29):02d}" for number in range(COUNT)]  # 29 of one sample, one of 71
    found = sizes(index_of(group=pa.array(groups)), "group")
    assert next(iter(found)) == "g29" and len(found) == MAX_VALUES + 1 and found["(10 others)"] == 10


def test_numbers_by_quartile_with_equal_numbers_together() -> None:
    age = pa.array([float(number) for number in range(98)] + [None, float("nan")])
    skewed = pa.array([0] * 60 + list(range(1, 41)), pa.int32())
    index = index_of(
        age=age, skewed=skewed, year=pa.array([2019, 2020] * 50), close=pa.array(1 + np.arange(100) * 1e-9)
    )
    found = sizes(index, "age")
    assert found == {"0 to 24": 25, "25 to 48": 24, "49 to 73": 25, "74 to 97": 24, MISSING: 2}
    assert sizes(index, "skewed") == {"0": 60, "1 to 15": 15, "16 to 40": 25}
    assert sizes(index, "year") == {"2019": 50, "2020": 50}
    assert len(sizes(index, "close")) == 4


def test_unsupported_columns_are_refused() -> None:
    index = index_of(type=pa.array(["x"] * COUNT), boxes=pa.array([[1, 2]] * COUNT))
    assert list_slice_columns(index) == ["length", "ext", "label", "type", "boxes"]
    assert "label" not in list_slice_columns(index_of("regression"))
    with pytest.raises(ConfigError, match=r"no column 'typ'.*Did you mean type.*length, ext, label, type, boxes"):
        split_by_column(index, KEYS, "typ")
    with pytest.raises(ConfigError, match="'boxes' holds list"):
        split_by_column(index, KEYS, "boxes")
    with pytest.raises(DataError, match="has no sample 'k999'"):
        split_by_column(index, [*KEYS, "k999"], "type")
