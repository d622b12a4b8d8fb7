"""The ledger: equal bytes on any number of ranks; missing, duplicate, unexpected and stale rows are named."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from choral.core.errors import DataError
from choral.data.shards.epoch_plan import rank_slice
from choral.inference import ledger as ledger_module
from choral.inference.ledger import Ledger, LedgerMeta, build_ledger_table, merge_parts, write_part
from choral.inference.ledger_parts import atomic_writer, part_path

META = LedgerMeta(
    classes=("fine", "cracked <b>", "größe"),
    members=("lite0.a", "lite0"),
    views=("identity", "tta"),
    split="test",
    dataset="d1",
    evaluation="e1",
    tta_views=("identity", "hflip"),
)
KEYS = [f"{name}{number}" for number in range(5) for name in ("ü", "b", "A")][:13]


def data(
    count: int, meta: LedgerMeta = META, seed: int = 0
) -> tuple[NDArray[np.int64], dict[tuple[str, str], NDArray[np.float32]]]:
    rng = np.random.default_rng(seed)
    classes = len(meta.classes)
    columns = {
        (member, view): rng.dirichlet(np.ones(classes), count).astype(np.float32)
        for member in meta.members
        for view in meta.views
    }
    return rng.integers(0, classes, count), columns


def rank_table(rows: slice, keys: Sequence[str] = KEYS, meta: LedgerMeta = META) -> pa.Table:
    labels, columns = data(len(keys), meta)
    return build_ledger_table(meta, keys[rows], labels[rows], {name: values[rows] for name, values in columns.items()})


def write_parts(folder: Path, world_size: int, keys: Sequence[str] = KEYS, meta: LedgerMeta = META) -> None:
    """Write parts of one chunk each."""
    for rank in range(world_size):
        write_part(folder, rank, rank + 1, rank_table(rank_slice(len(keys), rank, world_size), keys, meta))


def test_round_trip(tmp_path: Path) -> None:
    write_parts(tmp_path / "parts", 2)
    out = tmp_path / "predictions" / "test.parquet"
    merge_parts(tmp_path / "parts", 2, KEYS, out, META)
    ledger = Ledger.open(out)
    labels, columns = data(len(KEYS))
    order = np.argsort(np.array(KEYS))
    assert ledger.keys == sorted(KEYS) and len(ledger) == 13
    assert ledger.labels.tolist() == labels[order].tolist()
    assert (ledger.classes, ledger.members, ledger.views, ledger.meta) == (META.classes, META.members, META.views, META)
    for (member, view), values in columns.items():
        found = ledger.predictions(member, view)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, values[order])
    assert not (tmp_path / "parts").exists()
    assert [path.name for path in out.parent.iterdir()] == ["test.parquet"]


def test_file_is_plain_parquet(tmp_path: Path) -> None:
    write_parts(tmp_path / "parts", 1)
    merge_parts(tmp_path / "parts", 1, KEYS, tmp_path / "test.parquet", META)
    schema = pq.read_schema(tmp_path / "test.parquet")
    assert schema.names == ["key", "label", "lite0.a/identity", "lite0.a/tta", "lite0/identity", "lite0/tta"]
    assert schema.types[:2] == [pa.string(), pa.int64()]
    assert pa.types.is_fixed_size_list(schema.types[2])
    assert (schema.types[2].value_type, schema.types[2].list_size) == (pa.float32(), 3)
    content = json.loads(schema.metadata[b"choral"])
    assert content["format"] == "choral-ledger-1" and content["classes"] == list(META.classes)
    assert (content["members"], content["views"]) == (["lite0.a", "lite0"], ["identity", "tta"])
    assert (content["split"], content["dataset"], content["skipped"]) == ("test", "d1", 0)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 14), st.integers(1, 6))
def test_every_world_size_gives_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, count: int, world_size: int
) -> None:
    folder = tmp_path_factory.mktemp("ledger")
    keys = [f"k{number * 7 % 16:02d}" for number in range(count)]
    for ranks, name in ((1, "one.parquet"), (world_size, "many.parquet")):
        write_parts(folder / "parts", ranks, keys)
        merge_parts(folder / "parts", ranks, keys, folder / name, META)
    assert (folder / "one.parquet").read_bytes() == (folder / "many.parquet").read_bytes()
    assert Ledger.open(folder / "many.parquet").keys == sorted(keys)


def test_many_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "_BLOCK_BYTES", 1)  # 256 rows a group
    keys = [f"k{number * 7919 % 1000:04d}" for number in range(1000)]
    write_parts(tmp_path / "parts", 3, keys)
    merge_parts(tmp_path / "parts", 3, keys, tmp_path / "test.parquet", META)
    ledger = Ledger.open(tmp_path / "test.parquet")
    _, columns = data(1000)
    order = np.argsort(np.array(keys))
    expected = np.stack([columns[member, "tta"][order] for member in META.members])
    blocks = list(ledger.blocks("tta"))
    assert [block.shape for block in blocks] == [(2, 256, 3)] * 3 + [(2, 232, 3)]
    np.testing.assert_array_equal(np.concatenate(blocks, axis=1), expected)
    np.testing.assert_array_equal(ledger.predictions("lite0", "tta"), expected[1])


def test_reading_a_column_does_not_read_the_others(tmp_path: Path) -> None:
    write_parts(tmp_path / "parts", 1)
    out = tmp_path / "test.parquet"
    merge_parts(tmp_path / "parts", 1, KEYS, out, META)
    group = pq.ParquetFile(out).metadata.row_group(0)
    content = bytearray(out.read_bytes())
    for number in range(group.num_columns):
        column = group.column(number)
        if column.path_in_schema.split(".list.")[0] not in ("label", "lite0/tta"):
            start = column.data_page_offset
            content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    out.write_bytes(content)
    ledger = Ledger.open(out)
    np.testing.assert_array_equal(
        ledger.predictions("lite0", "tta"), data(13)[1]["lite0", "tta"][np.argsort(np.array(KEYS))]
    )
    assert len(ledger.labels) == 13
    with pytest.raises(DataError, match=r"test\.parquet: damaged"):
        ledger.predictions("lite0", "identity")


def test_skipped_samples_need_no_row_and_are_counted(tmp_path: Path) -> None:
    write_part(tmp_path / "parts", 0, 1, rank_table(slice(1, 6)), skipped=[KEYS[0]])
    write_part(tmp_path / "parts", 1, 3, rank_table(slice(6, 11)), skipped=[KEYS[12]])
    merge_parts(tmp_path / "parts", 3, KEYS, tmp_path / "test.parquet", META, left_out=[KEYS[11]])
    ledger = Ledger.open(tmp_path / "test.parquet")
    assert ledger.meta.skipped == 3
    assert ledger.keys == sorted(KEYS[1:11])


def drop_part(folder: Path) -> None:
    part_path(folder, 1, 2).unlink()


def drop_last_part(folder: Path) -> None:
    part_path(folder, 2, 3).unlink()


def duplicate_part(folder: Path) -> None:
    write_part(folder, 0, 2, rank_table(slice(0, 8)))


def drop_rows(folder: Path) -> None:
    write_part(folder, 1, 2, rank_table(slice(4, 4)))


def duplicate_rows(folder: Path) -> None:
    write_part(folder, 1, 2, rank_table(slice(3, 8)))


def rows_of_another_split(folder: Path) -> None:
    write_part(folder, 2, 3, rank_table(slice(8, 13), [*KEYS[:12], "stranger"]))


def stale_rows(folder: Path) -> None:
    meta = replace(META, evaluation="e0")
    write_part(folder, 2, 3, rank_table(slice(8, 13), meta=meta))


def truncated_part(folder: Path) -> None:
    path = part_path(folder, 1, 2)
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (drop_part, r"parts: the predictions of chunks 1 to 1 of 3 are missing"),
        (drop_last_part, r"parts: the predictions of chunks 2 to 2 of 3 are missing"),
        (duplicate_part, r"part-000000000-000000002.arrow: more than one prediction for chunk 0 of 3"),
        (drop_rows, r"no prediction for 'b1', 'A1', 'ü2' and 1 more"),
        (
            duplicate_rows,
            r"part-000000000-000000001.arrow and part-000000001-000000002.arrow: more than one prediction for 'ü1'",
        ),
        (rows_of_another_split, r"part-000000002-000000003.arrow: predictions for 'stranger', not in this split"),
        (stale_rows, r"-000000003.arrow: holds predictions of an earlier evaluation \(different: eval"),
        (truncated_part, r"part-000000001-000000002\.arrow: damaged predictions"),
    ],
)
def test_bad_parts_are_named_in_the_message(tmp_path: Path, harm: Callable[[Path], None], message: str) -> None:
    write_parts(tmp_path / "parts", 3)
    harm(tmp_path / "parts")
    out = tmp_path / "test.parquet"
    out.write_text("the old one")
    with pytest.raises(DataError, match=message):
        merge_parts(tmp_path / "parts", 3, KEYS, out, META)
    assert out.read_text() == "the old one"
    assert {path.name for path in tmp_path.iterdir()} == {"parts", "test.parquet"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([np.nan, 0.5, 0.5], "lite0/tta is not a probability distribution"),
        ([np.inf, -np.inf, 0.5], "is not a probability distribution"),
        ([0.5, 0.5, 0.1], r"sum 1\.1"),
        ([1.5, -0.5, 0.0], r"smallest -0\.5"),
    ],
)
def test_invalid_probabilities_name_their_sample(tmp_path: Path, row: list[float], message: str) -> None:
    labels, columns = data(13)
    columns["lite0", "tta"][4] = row
    write_part(tmp_path / "parts", 0, 1, build_ledger_table(META, KEYS, labels, columns))
    with pytest.raises(DataError, match=f"sample 'b1': .*{message}"):
        merge_parts(tmp_path / "parts", 1, KEYS, tmp_path / "test.parquet", META)
    assert not (tmp_path / "test.parquet").exists()


def test_label_outside_the_classes_names_its_sample(tmp_path: Path) -> None:
    labels, columns = data(13)
    labels[5] = 3
    write_part(tmp_path / "parts", 0, 1, build_ledger_table(META, KEYS, labels, columns))
    with pytest.raises(DataError, match="sample 'A1': label 3, expected 0 to 2"):
        merge_parts(tmp_path / "parts", 1, KEYS, tmp_path / "test.parquet", META)


def test_opening_another_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"test\.parquet: no predictions here; run `choral evaluate`"):
        Ledger.open(tmp_path / "test.parquet")
    (tmp_path / "text.parquet").write_text("no")
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "other.parquet")
    for name in ("text.parquet", "other.parquet"):
        with pytest.raises(DataError, match=f"{name}: not a choral ledger, or damaged"):
            Ledger.open(tmp_path / name)


def test_unknown_member_or_view_names_the_nearest(tmp_path: Path) -> None:
    write_parts(tmp_path / "parts", 1)
    merge_parts(tmp_path / "parts", 1, KEYS, tmp_path / "test.parquet", META)
    ledger = Ledger.open(tmp_path / "test.parquet")
    with pytest.raises(DataError, match=r"no member 'lite1'. Did you mean lite0"):
        ledger.predictions("lite1")
    with pytest.raises(DataError, match=r"no view 'hflip'. It has: identity, tta"):
        next(ledger.blocks("hflip"))


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_writer(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    with pytest.raises(DataError, match="file: cannot be written"), atomic_writer(path) as file:
        raise OSError(28, "No space left on device")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "old"
