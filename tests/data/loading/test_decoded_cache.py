"""The decoded cache: same pixels as decode, built once, rebuilt if damaged or outdated."""

from __future__ import annotations

import fcntl
import json
import logging
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from choral.config.files import load_config
from choral.core.errors import DataError
from choral.data.loading import decoded_cache as cache_module
from choral.data.loading.decode import decode
from choral.data.loading.decoded_cache import DecodedCache
from choral.data.loading.rank_place import RankPlace
from choral.data.loading.split import open_dataset, open_split
from choral.data.shards.index import Index
from choral.data.shards.store import LocalStore


def build(index: Index, folder: Path, budget_gib: float = 1.0, workers: int = 2, **options: object) -> DecodedCache:
    cache = DecodedCache.open_or_build(index, LocalStore(index.dataset), folder, budget_gib, workers, **options)  # type: ignore[arg-type]
    assert cache is not None
    return cache


def only_file(folder: Path) -> Path:
    (path,) = folder.glob("*.decoded")
    return path


def check_pixels(cache: DecodedCache, index: Index, store: LocalStore) -> None:
    for row in range(len(index)):
        record = index.row(row)
        image = decode(store.read(record.shard, record.offset, record.length))
        cached = cache.get(row)
        assert cached.shape[2] == (
            1 if any(name in record.key for name in ("sample01", "sample05", "sample09")) else 3
        )  # the grey ones
        assert not cached.flags.writeable
        np.testing.assert_array_equal(np.broadcast_to(cached, image.shape), image)


def test_cached_pixels_equal_decode(index: Index, store: LocalStore, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    cache = build(index, tmp_path, progress=lambda done, samples: calls.append((done, samples)))
    assert calls == [(done, 13) for done in range(1, 14)]
    check_pixels(cache, index, store)
    check_pixels(pickle.loads(pickle.dumps(cache)), index, store)
    check_pixels(build(index, tmp_path, progress=lambda done, samples: pytest.fail("rebuilt")), index, store)
    assert len(list(tmp_path.iterdir())) == 2, "the file and its lock"


def test_the_file_does_not_depend_on_the_number_of_workers(index: Index, tmp_path: Path) -> None:
    for workers in (0, 1, 5):
        build(index, tmp_path / str(workers), workers=workers)
    assert len({only_file(tmp_path / str(workers)).read_bytes() for workers in (0, 1, 5)}) == 1


@pytest.mark.parametrize("left", [0, 1, 16, 1000, -1, -9, -30, -200])
def test_a_truncated_file_is_rebuilt(index: Index, store: LocalStore, tmp_path: Path, left: int) -> None:
    build(index, tmp_path)
    path = only_file(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:left])
    check_pixels(build(index, tmp_path), index, store)
    assert path.read_bytes() == whole


def test_a_file_of_another_data_set_or_format_is_rebuilt(index: Index, store: LocalStore, tmp_path: Path) -> None:
    build(index, tmp_path)
    path = only_file(tmp_path)
    whole = path.read_bytes()
    fingerprint = index.dataset.fingerprint.encode()
    for old, new in (
        (fingerprint, fingerprint[::-1]),
        (b"choral-decoded-1", b"choral-decoded-0"),
        (b'"table"', b'"tbale"'),
    ):
        path.write_bytes(whole.replace(old, new))
        check_pixels(build(index, tmp_path), index, store)
        assert path.read_bytes() == whole
    build(index, tmp_path, max_pixels=10**6)
    assert path.read_bytes() != whole, "another limit may refuse other images"


def test_a_split_over_the_budget_is_not_cached(
    index: Index, store: LocalStore, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(budget: float) -> None:
        caplog.clear()
        assert DecodedCache.open_or_build(index, store, tmp_path, budget, 1) is None
        assert "decoded again in every epoch" in caplog.text

    none(1e-5)  # by the estimate
    monkeypatch.setattr(cache_module, "_PROBED", 1)  # underestimates: the overrun is detected while building
    none(3.5e-4)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]
    build(index, tmp_path, 1.0)
    none(1e-5)  # although the file exists


def test_an_unwritable_folder_disables_the_cache(
    index: Index, store: LocalStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    assert DecodedCache.open_or_build(index, store, tmp_path / "file", 1.0, 1) is None
    assert "cannot be written or read" in caplog.text


def test_bad_images_raise_when_read(damaged: Callable[..., Index], tmp_path: Path) -> None:
    index = damaged(4, 12)
    for _ in range(2):
        cache = build(index, tmp_path / "cache")
        for row in (4, 12):
            with pytest.raises(DataError, match="not an image"):
                cache.get(row)
        assert cache.get(5).size


def test_a_missing_shard_fails_and_leaves_no_file(damaged: Callable[..., Index], tmp_path: Path) -> None:
    index = damaged()
    index.dataset.shard_path(1).unlink()
    with pytest.raises(DataError, match=r"train-000001.tar: shard cannot be opened"):
        build(index, tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


BUILD = """
import sys, pathlib, logging
logging.basicConfig(level=logging.INFO)
from choral.data.shards.index import Dataset, Index
from choral.data.shards.store import LocalStore
from choral.data.loading.decoded_cache import DecodedCache
dataset = Dataset.open(sys.argv[1])
index = Index.open(dataset, "train")
done = []
store, folder = LocalStore(dataset), pathlib.Path(sys.argv[2])
cache = DecodedCache.open_or_build(index, store, folder, 1.0, 1, progress=lambda *a: done.append(a))
print(len(done), int(cache.get(3).sum()))
"""


def test_concurrent_processes_build_the_cache_once(index: Index, packed: Path, tmp_path: Path) -> None:
    leftover = tmp_path / f"train-{index.dataset.fingerprint[:16]}.decoded.99999.part"
    leftover.write_bytes(b"of a process that was killed")
    with (tmp_path / f"train-{index.dataset.fingerprint[:16]}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # so that both wait before either builds
        command = [sys.executable, "-c", BUILD, str(packed), str(tmp_path)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes = [subprocess.Popen(command, **pipes) for _ in range(2)]  # type: ignore[call-overload]
        for process in processes:
            assert "waiting for another process" in process.stderr.readline()
    answers = [process.communicate(timeout=60)[0].split() for process in processes]
    assert sorted(answer[0] for answer in answers) == ["0", "13"]
    assert answers[0][1] == answers[1][1]
    assert not leftover.exists()


def test_the_description_is_json_at_the_end_of_the_file(
    index: Index, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    build(index, tmp_path)
    data = only_file(tmp_path).read_bytes()
    length = int.from_bytes(data[-24:-16], "little")
    description = json.loads(data[-24 - length : -24])
    assert description["bytes"] == len(data) and description["split"] == "train" and description["samples"] == 13
    assert not caplog.records


def test_choral_scratch_holds_the_cache(config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHORAL_SCRATCH", str(tmp_path / "scratch"))
    config = load_config(config_file)
    split = open_split(config, open_dataset(config.data), "val", RankPlace(0, 1, torch.device("cpu"), 1))
    assert split.cache is not None
    assert [path.name[:4] for path in (tmp_path / "scratch" / "choral-decoded").glob("*.decoded")] == ["val-"]
