"""Features on disk: exact, verified, continued part by part, and never computed by two at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from choral.core.errors import ChoralError
from choral.models.features.cache import FeatureCache, Features

ROWS = np.arange(100, 170)
DESCRIPTION = {"weights": "abc", "view": {"pass": 1, "scale": (0.5, 1.0)}}


def values_of(rows: np.ndarray) -> np.ndarray:
    return (rows[:, None] + np.array([0.25, 0.5, 0.75])).astype(np.float32)


def cache_of(root: Path, width: int = 3, **description: object) -> FeatureCache:
    return FeatureCache(root, DESCRIPTION | description, ROWS, width)


def fill(cache: FeatureCache, unread: tuple[int, ...] = ()) -> None:
    for part in cache.missing().tolist():
        rows = cache.rows_of(part)
        cache.write_part(part, values_of(rows), ~np.isin(rows, unread))


def built(root: Path, unread: tuple[int, ...] = ()) -> Features:
    cache = cache_of(root)
    assert cache.open() is None
    fill(cache, unread)
    return cache.merge()


def test_what_is_kept_is_found_again_in_the_order_of_rows(tmp_path: Path) -> None:
    built(tmp_path)
    found = cache_of(tmp_path).open()
    assert found is not None and isinstance(found.values, np.memmap) and not found.values.flags.writeable
    assert np.array_equal(found.rows, ROWS) and np.array_equal(found.values, values_of(ROWS))
    assert [path.name for path in tmp_path.iterdir()] == [cache_of(tmp_path).path.name]  # no parts are left


def test_rows_that_could_not_be_read_are_left_out_and_named(tmp_path: Path) -> None:
    built(tmp_path, unread=(103, 169))
    found = cache_of(tmp_path).open()
    assert found is not None and found.unread.tolist() == [103, 169] and len(found.rows) == 68
    assert np.array_equal(found.values, values_of(found.rows)) and 103 not in found.rows


def test_what_could_not_be_read_is_tried_again_and_nothing_else(tmp_path: Path) -> None:
    built(tmp_path, unread=(103, 169))
    cache = cache_of(tmp_path)
    assert cache.missing().tolist() == [0, 4]
    cache.write_part(0, values_of(cache.rows_of(0)), np.ones(16, bool))
    assert cache.missing().tolist() == [4]
    cache.write_part(4, values_of(cache.rows_of(4)), cache.rows_of(4) != 169)
    assert cache.merge().unread.tolist() == [169]
    again = cache_of(tmp_path)
    fill(again)
    found = again.merge()
    assert not len(found.unread) and np.array_equal(found.values, values_of(ROWS)) and not len(again.missing())


def test_another_key_is_another_folder(tmp_path: Path) -> None:
    built(tmp_path)
    others = [
        cache_of(tmp_path, weights="abd"),
        cache_of(tmp_path, view={"pass": 2}),
        cache_of(tmp_path, width=4),
        FeatureCache(tmp_path, DESCRIPTION, ROWS[:-1], 3),
    ]
    assert len({cache.path for cache in [cache_of(tmp_path), *others]}) == 5
    assert all(cache.open() is None for cache in others)


@pytest.mark.parametrize("damage", ["cut", "flipped", "no meta", "half meta", "no values", "of something else"])
def test_damage_is_noticed_and_mended(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    built(tmp_path)
    cache = cache_of(tmp_path)
    values, meta = cache.path / "features.npy", cache.path / "meta.json"
    content = values.read_bytes()
    if damage == "cut":
        values.write_bytes(content[:-7])
    elif damage == "flipped":
        values.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    elif damage == "no meta":
        meta.unlink()
    elif damage == "half meta":
        meta.write_text(meta.read_text()[:40])
    elif damage == "no values":
        values.unlink()
    else:
        meta.write_text(meta.read_text().replace("abc", "xyz"))
    assert cache.open() is None
    assert "features are computed again" in caplog.text
    fill(cache)
    assert np.array_equal(cache.merge().values, values_of(ROWS))


def test_parts_that_are_there_are_not_made_again(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    assert cache.parts == 5 and cache.missing().tolist() == [0, 1, 2, 3, 4]
    fill(cache)
    parts = sorted(next(tmp_path.glob("*.parts")).iterdir())
    parts[1].unlink()
    parts[3].write_bytes(parts[3].read_bytes()[:-5])
    again = cache_of(tmp_path)
    assert again.missing().tolist() == [1, 3]
    with pytest.raises(ChoralError, match=r"part-00001.safetensors: missing or damaged; run the same command again"):
        again.merge()
    assert again.open() is None  # what a failed merge leaves is no cache
    fill(again)
    assert np.array_equal(again.merge().values, values_of(ROWS))


def test_one_process_computes_and_its_death_frees_the_lock(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    code = f"import fcntl, time; f = open({str(cache.path.with_suffix('.lock'))!r}, 'a'); fcntl.flock(f, 2);"
    code += "print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout and other.stdout.readline() == "held\n"
        assert cache.lock() is None
        other.kill()
    lock = cache.lock()
    assert lock is not None
    lock.close()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = cache_of(tmp_path / "file" / "features")
    with pytest.raises(ChoralError, match=r"features cannot be written \(Not a directory\)"):
        cache.lock()
    with pytest.raises(ChoralError, match="features cannot be written"):
        cache.write_part(0, values_of(ROWS[:16]), np.ones(16, bool))
