from __future__ import annotations

import json
import re
from collections.abc import Callable

import pyarrow as pa
import pytest

from choral.core.errors import DataError
from choral.data.packing.check import check_dataset
from choral.data.shards.index import Dataset, Index, write_index


def test_an_intact_directory(packed: Dataset) -> None:
    seen: list[tuple[int, int]] = []
    report = check_dataset(packed.folder, lambda done, total: seen.append((done, total)))
    assert (report.samples, report.shards, report.problems) == (13, len(packed.shards), [])
    assert seen[-1] == (len(packed.shards), len(packed.shards))


def overwrite(packed: Dataset, offset: int, data: bytes) -> None:
    content = bytearray(packed.shard_path(0).read_bytes())
    content[offset : offset + len(data)] = data
    packed.shard_path(0).write_bytes(content)


def flip(packed: Dataset) -> None:
    """One bit in the middle of an image: most such JPEGs still decode."""
    record = Index.open(packed, "train").row(0)
    middle = record.offset + record.length // 2
    overwrite(packed, middle, bytes([packed.shard_path(0).read_bytes()[middle] ^ 1]))


def no_image(packed: Dataset) -> None:
    overwrite(packed, Index.open(packed, "train").row(0).offset, b"no image")


def cut(packed: Dataset) -> None:
    path = packed.shard_path(0)
    path.write_bytes(path.read_bytes()[:-512])


@pytest.mark.parametrize(("damage", "message"), [
    (flip, r"train-000000\.tar: the checksum differs"),
    (lambda p: overwrite(p, 0, bytes(512)), r"train-000000\.tar: begins with zeros"),
    (no_image, r"train-000000\.tar: sample '.*' at byte \d+: not an image"),
    (cut, r"train-000000\.tar: \d+ bytes, expected"),
    (lambda p: p.shard_path(0).unlink(), r"train-000000\.tar: shard is missing"),
    (lambda p: (p.folder / "val.arrow").unlink(), r"val\.arrow"),
    (lambda p: (p.folder / "val.arrow").write_bytes(b"x"), r"val\.arrow: the checksum of the index differs"),
])  # fmt: skip
def test_damage_is_reported(packed: Dataset, damage: Callable[[Dataset], None], message: str) -> None:
    damage(packed)
    problems = check_dataset(packed.folder).problems
    assert any(re.search(message, problem) for problem in problems), problems


def test_an_index_with_wrong_offsets(packed: Dataset) -> None:
    """All checksums match, but the offsets in the index are wrong."""
    index = Index.open(packed, "train")
    table = pa.ipc.open_file(str(packed.folder / "train.arrow")).read_all()
    moved = pa.array([offset + 512 for offset in index.column("offset").tolist()], pa.int64())
    checksum = write_index(packed.folder / "train.arrow", table.set_column(2, "offset", moved))
    path = packed.folder / "dataset.json"
    content = json.loads(path.read_text())
    content["splits"]["train"]["index_sha256"] = checksum
    path.write_text(json.dumps(content))
    problems = check_dataset(packed.folder).problems
    assert "the fingerprint does not match" in problems[0]
    assert "by the index" in problems[1]


def test_every_bad_image_is_reported(packed: Dataset) -> None:
    for row in range(11):
        overwrite(packed, Index.open(packed, "train").row(row).offset, b"no image")
    assert len(check_dataset(packed.folder).problems) == 12


def test_not_a_packed_directory(packed: Dataset) -> None:
    (packed.folder / "dataset.json").unlink()
    with pytest.raises(DataError, match="not a packed directory"):
        check_dataset(packed.folder)
