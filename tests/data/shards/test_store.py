from __future__ import annotations

import dataclasses
import gc
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from choral.core.errors import ConfigError, DataError
from choral.data.shards import store as store_module
from choral.data.shards.index import Dataset, Index, Shard
from choral.data.shards.store import LocalStore


def test_read_returns_the_packed_bytes(packed: Dataset, photos: Path) -> None:
    store = pickle.loads(pickle.dumps(LocalStore(packed)))
    for split in packed.splits:
        index = Index.open(packed, split)
        for row in range(len(index)):
            record = index.row(row)
            data = store.read(record.shard, record.offset, record.length)
            assert data == (photos / index.column("path")[row].as_py()).read_bytes()


def test_short_read_names_shard_and_offset(packed: Dataset) -> None:
    size = packed.shards[0].bytes
    with pytest.raises(
        DataError, match=rf"train-000000\.tar: truncated: ends at byte {size}, expected 99 bytes from byte {size - 9}"
    ):
        LocalStore(packed).read(0, size - 9, 99)
    packed.shard_path(1).unlink()
    with pytest.raises(DataError, match="shard cannot be opened"):
        LocalStore(packed).read(1, 0, 10)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("path", ["pipe:cat /etc/passwd", "a.tar::b.tar", "https://host/a.tar", "s3://bucket/a.tar"])
def test_commands_and_urls_are_rejected(packed: Dataset, path: str) -> None:
    bad = dataclasses.replace(packed, shards=(Shard(path, 1, "", 1),))
    with pytest.raises(ConfigError, match="expected a local path"):
        LocalStore(bad)


def test_many_threads_and_few_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_MAX_OPEN_SHARDS", 3)
    for number in range(12):
        (tmp_path / f"{number}.tar").write_bytes(bytes([number]) * 4096)
    shards = tuple(Shard(f"{n}.tar", 4096, "", 1) for n in range(12))
    store = LocalStore(Dataset(tmp_path, "n", "multiclass", ("a", "b"), shards, {}, "", ""))
    gc.collect()  # close files that earlier tests left in reference cycles
    before = open_files()

    def read(number: int) -> bool:
        shard = number * 7 % 12
        return store.read(shard, number % 4000, 96) == bytes([shard]) * 96

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(4000)))
    assert before < open_files() <= before + 3
