"""The feature cache: exact, verified, resumable part by part, and never filled by two processes at once."""

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


def make_values(rows: np.ndarray) -> np.ndarray:
    return (rows[:, None] + np.array([0.25, 0.5, 0.75])).astype(np.float32)


def make_cache(root: Path, width: int = 3, **description: object) -> FeatureCache:
    return FeatureCache(root, DESCRIPTION | description, ROWS, width)


def fill(cache: FeatureCache, unreadable: tuple[int, ...] = ()) -> None:
    for part in cache.find_missing_parts().tolist():
        rows = cache.rows_in_part(part)
        cache.write_part(part, make_values(rows), ~np.isin(rows, unreadable))


def build(root: Path, unreadable: tuple[int, ...] = ()) -> Features:
    cache = make_cache(root)
    assert cache.load() is None
    fill(cache, unreadable)
    return cache.merge_parts()


def test_cached_features_are_loaded_in_the_order_of_rows(tmp_path: Path) -> None:
    build(tmp_path)
    found = make_cache(tmp_path).load()
    assert found is not None and isinstance(found.values, np.memmap) and not found.values.flags.writeable
    assert np.array_equal(found.rows, ROWS) and np.array_equal(found.values, make_values(ROWS))
    assert [path.name for path in tmp_path.iterdir()] == [make_cache(tmp_path).path.name]  # the parts are removed


def test_unreadable_rows_are_excluded_and_listed(tmp_path: Path) -> None:
    build(tmp_path, unreadable=(103, 169))
    found = make_cache(tmp_path).load()
    assert found is not None and found.unreadable.tolist() == [103, 169] and len(found.rows) == 68
    assert np.array_equal(found.values, make_values(found.rows)) and 103 not in found.rows


def test_only_parts_with_unreadable_rows_are_computed_again(tmp_path: Path) -> None:
    build(tmp_path, unreadable=(103, 169))
    cache = make_cache(tmp_path)
    assert cache.find_missing_parts().tolist() == [0, 4]
    cache.write_part(0, make_values(cache.rows_in_part(0)), np.ones(16, bool))
    assert cache.find_missing_parts().tolist() == [4]
    cache.write_part(4, make_values(cache.rows_in_part(4)), cache.rows_in_part(4) != 169)
    assert cache.merge_parts().unreadable.tolist() == [169]
    again = make_cache(tmp_path)
    fill(again)
    found = again.merge_parts()
    assert (
        not len(found.unreadable)
        and np.array_equal(found.values, make_values(ROWS))
        and not len(again.find_missing_parts())
    )


def test_a_different_description_gives_a_different_directory(tmp_path: Path) -> None:
    build(tmp_path)
    others = [
        make_cache(tmp_path, weights="abd"),
        make_cache(tmp_path, view={"pass": 2}),
        make_cache(tmp_path, width=4),
        FeatureCache(tmp_path, DESCRIPTION, ROWS[:-1], 3),
    ]
    assert len({cache.path for cache in [make_cache(tmp_path), *others]}) == 5
    assert all(cache.load() is None for cache in others)


@pytest.mark.parametrize("damage", ["cut", "flipped", "no meta", "half meta", "no values", "other description"])
def test_damage_is_detected_and_repaired(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    build(tmp_path)
    cache = make_cache(tmp_path)
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
    assert cache.load() is None
    assert "features are computed again" in caplog.text
    fill(cache)
    assert np.array_equal(cache.merge_parts().values, make_values(ROWS))


def test_existing_parts_are_not_computed_again(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    assert cache.num_parts == 5 and cache.find_missing_parts().tolist() == [0, 1, 2, 3, 4]
    fill(cache)
    parts = sorted(next(tmp_path.glob("*.parts")).iterdir())
    parts[1].unlink()
    parts[3].write_bytes(parts[3].read_bytes()[:-5])
    again = make_cache(tmp_path)
    assert again.find_missing_parts().tolist() == [1, 3]
    with pytest.raises(ChoralError, match=r"part-00001.safetensors: missing or damaged; run the same command again"):
        again.merge_parts()
    assert again.load() is None  # a failed merge leaves no usable cache
    fill(again)
    assert np.array_equal(again.merge_parts().values, make_values(ROWS))


def test_the_lock_is_exclusive_and_released_when_its_process_dies(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    code = f"import fcntl, time; f = open({str(cache.path.with_suffix('.lock'))!r}, 'a'); fcntl.flock(f, 2);"
    code += "print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout and other.stdout.readline() == "held\n"
        assert cache.try_lock() is None
        other.kill()
    lock = cache.try_lock()
    assert lock is not None
    lock.close()


def test_an_unwritable_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = make_cache(tmp_path / "file" / "features")
    with pytest.raises(ChoralError, match=r"features cannot be written \(Not a directory\)"):
        cache.try_lock()
    with pytest.raises(ChoralError, match="features cannot be written"):
        cache.write_part(0, make_values(ROWS[:16]), np.ones(16, bool))
