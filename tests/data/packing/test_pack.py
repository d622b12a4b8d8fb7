from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from choral.core import worker_processes as parallel
from choral.core.errors import ChoralError, ConfigError, DataError
from choral.data.packing.check import check_dataset
from choral.data.packing.layout import build_layout
from choral.data.packing.options import PackOptions
from choral.data.packing.pack import pack
from choral.data.packing.sources import ImageSource, open_source
from choral.data.shards.index import Dataset, Index
from choral.data.shards.store import LocalStore
from small_sources import image_bytes, make_photos, samples, write_tar

ONE = PackOptions(processes=1)
SMALL = PackOptions(processes=1, samples_per_shard=4)


def contents(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of all files, including hidden ones."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def members(dataset: Dataset) -> dict[str, dict[str, Any]]:
    return {
        split: dict(zip(index.keys(range(len(index))), index.labels.tolist(), strict=True))
        for split in dataset.splits
        for index in [Index.open(dataset, split)]
    }


def test_every_image_is_stored_once_byte_for_byte(photos: Path, packed: Dataset) -> None:
    found = {}
    for split in packed.splits:
        index = Index.open(packed, split)
        for row in range(len(index)):
            record = index.row(row)
            data = LocalStore(packed).read(record.shard, record.offset, record.length)
            found[index.column("path")[row].as_py()] = (packed.classes[record.label], data)
    expected = {f"{p.parent.name}/{p.name}": (p.parent.name, p.read_bytes()) for p in photos.glob("*/*")}
    assert found == expected
    assert packed.classes == ("blue", "green", "red")
    assert check_dataset(packed.folder).problems == []
    assert sorted(p.name for p in packed.folder.iterdir()) == sorted(
        [*(f"{s}.arrow" for s in packed.splits), *(s.path for s in packed.shards), "dataset.json"]
    )


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset does not close its files
def test_webdataset_reads_the_tars(packed: Dataset) -> None:
    urls = [str(packed.shard_path(i)) for i in packed.splits["train"].shards]
    index = Index.open(packed, "train")
    stream = webdataset.WebDataset(urls, shardshuffle=False, handler=webdataset.reraise_exception)
    read = [(sample["__key__"], int(sample["cls"]), json.loads(sample["json"])["path"]) for sample in stream]
    paths = index.column("path").to_pylist()
    assert read == list(zip(index.keys(range(len(index))), index.labels.tolist(), paths, strict=True))


def test_same_bytes_for_any_file_order_and_number_of_processes(tmp_path: Path) -> None:
    names = {"b b": 9, "ä": 14, "c": 3}
    first = make_photos(tmp_path / "1" / "photos", names)
    again = make_photos(tmp_path / "2" / "photos", dict(reversed(names.items())))
    for path in sorted(first.rglob("*.*"), reverse=True):  # written, and so listed, in a different order
        other = again / path.relative_to(first)
        other.unlink()
        other.write_bytes(path.read_bytes())
    one = pack(str(first), tmp_path / "one", SMALL)
    two = pack(str(again), tmp_path / "two", dataclasses.replace(SMALL, processes=2))
    assert one.fingerprint == two.fingerprint
    files = contents(tmp_path / "one")
    same = contents(tmp_path / "two")
    del files["dataset.json"], same["dataset.json"]  # it contains the path of the source
    assert files == same
    assert len(one.shards) > 5


def test_a_different_seed_gives_a_different_split(photos: Path, tmp_path: Path, packed: Dataset) -> None:
    other = pack(str(photos), tmp_path / "other", dataclasses.replace(ONE, seed=1))
    assert members(other) != members(packed)
    assert {k for s in members(other).values() for k in s} == {k for s in members(packed).values() for k in s}


def test_classes_are_mixed_over_shards(tmp_path: Path) -> None:
    dataset = pack(
        str(make_photos(tmp_path / "p", {"a": 60, "b": 60})),
        tmp_path / "out",
        dataclasses.replace(ONE, samples_per_shard=24),
    )
    index = Index.open(dataset, "train")
    assert index.shard_sizes.tolist() == [24, 24, 24, 24]
    for labels in np.split(index.labels, 4):
        assert 4 <= labels.sum() <= 20


def test_given_splits_groups_and_metadata(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"{number}.png").write_bytes(image_bytes((number, 0, 0)))
    rows = [f"{i}.png,{'ab'[i % 2]},g{i // 3},{i / 4},m{i % 5}\n" for i in range(30)]
    (tmp_path / "list.csv").write_text("image,label,group,weight,kind\n" + "".join(rows))
    dataset = pack(str(tmp_path / "list.csv"), tmp_path / "out", dataclasses.replace(ONE, val=0.2, test=0.2))
    splits_of: dict[str, set[str]] = {}
    for split in dataset.splits:
        index = Index.open(dataset, split)
        assert isinstance(index.column("weight"), np.ndarray)
        for group in index.column("group").to_pylist():
            splits_of.setdefault(group, set()).add(split)
    assert len(splits_of) == 10
    assert all(len(splits) == 1 for splits in splits_of.values())
    assert {name: split.samples for name, split in dataset.splits.items()} == {"train": 18, "val": 6, "test": 6}

    rows = [f"{i}.png,{'ab'[i % 2]},{'test' if i > 24 else 'train'}\n" for i in range(30)]
    (tmp_path / "given.csv").write_text("image,label,split\n" + "".join(rows))
    dataset = pack(str(tmp_path / "given.csv"), tmp_path / "given", ONE)
    assert {name: split.samples for name, split in dataset.splits.items()} == {"train": 22, "val": 3, "test": 5}
    assert sorted(Index.open(dataset, "test").column("path").to_pylist()) == [f"{i}.png" for i in range(25, 30)]
    with pytest.raises(ConfigError, match="already has the splits test, train: remove the option test"):
        pack(str(tmp_path / "given.csv"), tmp_path / "x", dataclasses.replace(ONE, test=0.2))


@pytest.mark.parametrize(("rows", "options", "error", "message"), [
    (["0.png,a,train,g", "1.png,b,train,g", "2.png,a,test,g"], {}, DataError, "group 'g' has samples in more"),
    (["0.png,a,train,", "1.png,b,train,", "2.png,c,test,"], {}, DataError, "class 'c' has 1 samples, in test, but"),
    (["0.png,a,train,", "1.png,b,train,"], {}, DataError, "2 samples are too few for 1 validation samples, 1 test samples"),
    ([f"{i}.png,{'ab'[i % 2]},train," for i in range(6)], {"stratify": ("kin",)}, ConfigError, "no column 'kin'"),
])  # fmt: skip
def test_impossible_splits(
    tmp_path: Path, rows: list[str], options: dict[str, Any], error: type[ChoralError], message: str
) -> None:
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(image_bytes((number, 0, 0)))
    (tmp_path / "list.csv").write_text("\n".join(["image,label,split,group", *rows]) + "\n")
    with pytest.raises(error, match=message):
        pack(str(tmp_path / "list.csv"), tmp_path / "out", dataclasses.replace(ONE, **options))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [
    {"val": 1.0}, {"test": -0.1}, {"val": 0.5, "test": 0.5}, {"task": "poetry"}, {"max_size": 0}, {"quality": 101},
    {"samples_per_shard": 0}, {"processes": 0},
])  # fmt: skip
def test_impossible_options(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        PackOptions(**options)


def test_max_size_scales_large_images(tmp_path: Path) -> None:
    root = make_photos(tmp_path / "p", {"a": 4, "b": 4})
    (root / "a" / "big.jpg").write_bytes(image_bytes("red", (60, 40), "JPEG"))
    dataset = pack(str(root), tmp_path / "out", dataclasses.replace(ONE, max_size=30, val=0, test=0))
    index = Index.open(dataset, "train")
    assert list(dataset.splits) == ["train"]
    for row in range(len(index)):
        record = index.row(row)
        data = LocalStore(dataset).read(record.shard, record.offset, record.length)
        with Image.open(io.BytesIO(data)) as image:
            assert image.size == ((30, 20) if "big" in record.key else (8, 6))
    assert check_dataset(dataset.folder).problems == []


# Errors


def test_bad_images_are_listed_and_the_output_is_removed(photos: Path, tmp_path: Path) -> None:
    (photos / "red" / "000.png").write_text("I am a text file")
    with pytest.raises(DataError) as caught:
        pack(str(photos), tmp_path / "out", SMALL)
    assert str(caught.value) == (
        f"{photos}/red/000.png: not an image (it begins with b'I am a text '); "
        "supported formats are JPEG, PNG, WebP, GIF, BMP and TIFF"
    )
    assert not (tmp_path / "out").exists()
    for number in range(1, 7):
        path = next((photos / "red").glob(f"{number:03d}.*"))
        path.write_bytes(path.read_bytes()[:-20])
    (tmp_path / "out").mkdir()
    with pytest.raises(
        DataError, match=r"red/000\.png: .*\n7 images cannot be packed, also .*red/001\.jpeg, .*, \.\.\.$"
    ):
        pack(str(photos), tmp_path / "out", SMALL)
    assert list((tmp_path / "out").iterdir()) == []


def test_too_many_bad_images_stop_early(tmp_path: Path) -> None:
    root = tmp_path / "p"
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for number in range(150):
            (root / name / f"{number}.jpg").write_text("text")
    with pytest.raises(DataError, match="more than 100 images cannot be packed"):
        pack(str(root), tmp_path / "out", dataclasses.replace(ONE, samples_per_shard=50))


def test_a_full_disk_keeps_finished_shards(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import choral.data.packing.write_shard as module

    real, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 6:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(DataError, match=r"out: cannot be written \(No space left on device\); run again to continue"):
        pack(str(photos), tmp_path / "out", SMALL)
    monkeypatch.undo()
    kept = list((tmp_path / "out").glob("*.tar"))
    assert kept
    times = {path: path.stat().st_mtime_ns for path in kept}
    assert not list((tmp_path / "out" / ".packing").glob("*.tmp"))
    dataset = pack(str(photos), tmp_path / "out", SMALL)
    assert {path: path.stat().st_mtime_ns for path in kept} == times
    assert check_dataset(dataset.folder).problems == []


def test_a_complete_pack_is_returned_at_once(photos: Path, packed: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "map_unordered", lambda *_: pytest.fail("packed again"))
    assert pack(str(photos), packed.folder, PackOptions(processes=3)) == packed
    packed.shard_path(0).unlink()
    with pytest.raises(DataError, match="shard is missing"):
        pack(str(photos), packed.folder, ONE)


def test_other_contents_are_rejected_or_replaced(photos: Path, packed: Dataset, tmp_path: Path) -> None:
    other = make_photos(tmp_path / "other", {"x": 3, "y": 4})
    with pytest.raises(
        ConfigError, match="already holds 'photos', packed from different data or with different options"
    ):
        pack(str(other), packed.folder, ONE)
    with pytest.raises(ConfigError, match="already holds"):
        pack(str(photos), packed.folder, dataclasses.replace(ONE, seed=5))
    (packed.folder / "notes.txt").write_text("mine")
    replaced = pack(str(other), packed.folder, dataclasses.replace(ONE, force=True, val=0, test=0))
    assert sorted(p.name for p in packed.folder.iterdir()) == [
        "dataset.json",
        "notes.txt",
        "train-000000.tar",
        "train.arrow",
    ]
    assert replaced.classes == ("x", "y")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "train-000000.tar").write_text("precious")
    for force in (False, True):
        with pytest.raises(ConfigError, match=r"is not empty \('train-000000\.tar' was not packed by choral\)"):
            pack(str(other), mine, dataclasses.replace(ONE, force=force))
    with pytest.raises(ConfigError, match="is a file"):
        pack(str(other), mine / "train-000000.tar", ONE)
    with pytest.raises(ConfigError, match="is inside the source"):
        pack(str(other), other / "packed", ONE)
    with pytest.raises(ConfigError, match="already a packed directory"):
        pack(str(packed.folder), tmp_path / "again", ONE)


def test_only_one_process_packs_into_a_directory(photos: Path, tmp_path: Path) -> None:
    def second(done: int, total: int) -> None:
        with pytest.raises(ConfigError, match="another process is packing into it"):
            pack(str(photos), tmp_path / "out", SMALL)

    pack(str(photos), tmp_path / "out", SMALL, second)


# Tars that are indexed in place


def test_index_over_tars(tmp_path: Path) -> None:
    for number in range(4):
        write_tar(tmp_path / "tars" / f"{number}.tar", samples(number * 10, 10))
    before = contents(tmp_path / "tars")
    dataset = pack(str(tmp_path / "tars"), tmp_path / "out", ONE)
    assert contents(tmp_path / "tars") == before
    assert [shard.path for shard in dataset.shards] == [str(tmp_path / "tars" / f"{n}.tar") for n in range(4)]
    assert {name: split.samples for name, split in dataset.splits.items()} == {"train": 32, "val": 4, "test": 4}
    index = Index.open(dataset, "test")
    for row in range(len(index)):
        record = index.row(row)
        number = int(record.key[1:])
        assert record.label == number % 3
        assert LocalStore(dataset).read(record.shard, record.offset, record.length) == image_bytes((number, 0, 0))
    assert check_dataset(dataset.folder).problems == []
    assert pack(str(tmp_path / "tars"), tmp_path / "out", ONE) == dataset
    assert pack(str(tmp_path / "tars"), tmp_path / "out", dataclasses.replace(ONE, force=True)) == dataset
    assert contents(tmp_path / "tars") == before
    with pytest.raises(ConfigError, match="tars are indexed in place"):
        pack(str(tmp_path / "tars"), tmp_path / "x", dataclasses.replace(ONE, max_size=10))


def test_packed_shards_can_be_indexed_as_tars(packed: Dataset, tmp_path: Path) -> None:
    """Packed shards, indexed as if they were other people's tars, give the same samples, labels and splits."""
    (packed.folder / "dataset.json").unlink()
    (packed.folder / "classes.txt").write_text("\n".join(packed.classes))
    again = pack(str(packed.folder), tmp_path / "again", ONE)
    assert members(again) == members(packed)
    assert again.classes == packed.classes
    assert Index.open(again, "val").column("path").equals(Index.open(packed, "val").column("path"))


@pytest.mark.parametrize(("make", "message"), [
    (lambda p: write_tar(p / "1.tar", samples(0, 6)), r"'s0000' occurs twice in train: .*0\.tar at byte \d+ and .*1"),
    (lambda p: (p / "1.tar").write_bytes((p / "0.tar").read_bytes()[:2048]), r"1\.tar: truncated"),
    (lambda p: (p / "1.tar").write_bytes(b""), r"1\.tar: empty file"),
])  # fmt: skip
def test_damaged_tars_leave_no_output(tmp_path: Path, make: Callable[[Path], Any], message: str) -> None:
    write_tar(tmp_path / "tars" / "0.tar", samples(0, 6))
    make(tmp_path / "tars")
    with pytest.raises(DataError, match=message):
        pack(str(tmp_path / "tars"), tmp_path / "out", dataclasses.replace(ONE, val=0, test=0))
    assert not (tmp_path / "out").exists()


# Interruption

SLOW = """
import signal, sys, time
from choral.data.packing.layout import build_layout
from choral.data.packing.options import PackOptions
from choral.data.packing.pack import pack
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore SIGINT
    options = PackOptions(processes=int(sys.argv[3]), samples_per_shard=4)
    pack(sys.argv[1], sys.argv[2], options, lambda done, total: (print(done, flush=True), time.sleep(0.2 * (done > 0))))
"""


def start(tmp_path: Path, photos: Path, processes: int) -> subprocess.Popen[str]:
    (tmp_path / "slow.py").write_text(SLOW)
    command = [sys.executable, str(tmp_path / "slow.py"), str(photos), str(tmp_path / "out"), str(processes)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )  # fmt: skip


def running_in_session(leader: int) -> list[int]:
    """Return the processes of the session that still run; zombies do not."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append(int(entry.name))
    return found


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_pack_is_continued(tmp_path: Path, signal_number: int) -> None:
    photos = make_photos(tmp_path / "photos", {"a": 40, "b": 40})
    process = start(tmp_path, photos, 2)
    assert process.stdout is not None
    assert process.stderr is not None
    while (line := process.stdout.readline()) and int(line) < 8:
        pass
    if signal_number == signal.SIGINT:
        os.killpg(process.pid, signal.SIGINT)  # a terminal signals parent and workers
    else:
        process.kill()
    errors = process.communicate(timeout=30)[1]
    deadline = time.monotonic() + 15
    while running_in_session(process.pid):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.02)
    assert process.returncode == -signal_number or process.returncode == 130
    assert errors.count("Traceback") <= (1 if signal_number == signal.SIGINT else 0), errors
    out = tmp_path / "out"
    assert not (out / "dataset.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert kept
    (out / ".packing" / "train-000009.tar.tmp").write_bytes(b"half a shard")

    with pytest.raises(ConfigError, match="holds an unfinished pack of different data or options"):
        pack(str(photos), out, dataclasses.replace(SMALL, seed=1))
    dataset = pack(str(photos), out, SMALL)
    recorded = {path: path.stat().st_mtime_ns for path in kept}
    assert sum(recorded[path] == kept[path] for path in kept) >= len(kept) - 2  # two may not have been recorded yet
    pack(str(photos), tmp_path / "whole", SMALL)
    assert contents(out) == contents(tmp_path / "whole")
    assert dataset.splits["train"].samples == 64


def test_a_dying_worker_is_an_error() -> None:
    with pytest.raises(DataError, match="a worker process died"):
        list(parallel.map_unordered(os._exit, [7, 7, 7], 2))


def test_an_exception_of_a_worker_is_raised(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(parallel.map_unordered(os.stat, [str(tmp_path), str(tmp_path / "none"), str(tmp_path)], 2))


@pytest.mark.demo
@pytest.mark.skipif(importlib.util.find_spec("elpv_dataset") is None, reason="elpv-dataset is not installed")
def test_elpv_is_split_as_in_the_paper() -> None:
    source = open_source("elpv", ONE)
    assert isinstance(source, ImageSource)
    layout = build_layout(source, ONE)
    labels = layout.samples["label"].to_numpy()
    mono = np.array([kind == "mono" for kind in layout.samples["type"].to_pylist()])
    train, val, test = (np.bincount((labels * 2 + mono)[layout.splits == split], minlength=4) for split in range(3))
    assert (train.sum(), val.sum(), test.sum()) == (1706, 262, 656)
    whole = train + val + test
    assert np.abs(test - whole / 4).max() < 1
    assert np.abs(val - whole * 262 / 2624).max() < 1
