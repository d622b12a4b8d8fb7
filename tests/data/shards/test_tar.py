from __future__ import annotations

import gzip
import tarfile
from pathlib import Path

import pytest

from choral.core.errors import DataError
from choral.data.shards.tar import group_by_key, read_headers
from small_sources import samples, write_tar


def reference(path: Path) -> list[tuple[str, int, int]]:
    with tarfile.open(path) as archive:
        return [(m.name, m.offset_data, m.size) for m in archive if m.isreg()]


@pytest.mark.parametrize("fmt", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("prefix", ["", "./", "deep/" * 30, "x" * 120])
def test_headers_match_tarfile(tmp_path: Path, fmt: int, prefix: str) -> None:
    if fmt == tarfile.USTAR_FORMAT and prefix.startswith("x"):
        pytest.skip("this format cannot store such a name")
    path = write_tar(tmp_path / "a.tar", [(prefix + name, data) for name, data in samples(0, 5)], fmt)
    members = read_headers(path)
    assert [(m.name, m.data, m.size) for m in members] == reference(path)
    keys = [sample.key for sample in group_by_key(path, members)]
    assert keys == [prefix.removeprefix("./") + f"s{i:04d}" for i in range(5)]


def test_directories_links_and_hidden_files_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        (tmp_path / "d").mkdir()
        archive.add(tmp_path / "d", "d")
        link = tarfile.TarInfo("d/a.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "b.jpg"
        archive.addfile(link)
        for name in ("d/._b.jpg", "d/README", "d/b.png", "d/b.x.json"):
            archive.addfile(tarfile.TarInfo(name))
    (sample,) = group_by_key(path, read_headers(path))
    assert sample.key == "d/b"
    assert list(sample.members) == ["png", "x.json"]


def test_base_256_size(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("a.png", b"x" * 700), ("a.cls", b"0")])
    block = bytearray(path.read_bytes())
    block[124:136] = b"\x80" + (700).to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block[:512])
    path.write_bytes(block)
    assert [(m.name, m.data, m.size) for m in read_headers(path)] == [("a.png", 512, 700), ("a.cls", 2048, 1)]


@pytest.mark.parametrize("fmt", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_truncation_at_every_block_is_detected(tmp_path: Path, fmt: int) -> None:
    long = "n" * 110 if fmt == tarfile.PAX_FORMAT else "n"
    path = write_tar(
        tmp_path / "a.tar", [(f"{long}{i}.{ext}", b"7" * 700) for i in range(3) for ext in ("cls", "png")], fmt
    )
    whole = path.read_bytes()
    complete = read_headers(path)
    end = len(whole.rstrip(b"\0"))
    end = (end + 511) // 512 * 512
    cut = tmp_path / "cut.tar"
    for size in [*range(0, len(whole), 512), 100, 513, 1300]:
        cut.write_bytes(whole[:size])
        if size >= end + 1024:  # only padding is missing
            assert read_headers(cut) == complete
            continue
        with pytest.raises(DataError, match=str(cut)):
            read_headers(cut)


@pytest.mark.parametrize("fmt", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("damage", ["zero", "noise"])
@pytest.mark.parametrize("member", range(5))
def test_a_damaged_header_is_detected(tmp_path: Path, fmt: int, damage: str, member: int) -> None:
    long = "n" * 110 if fmt == tarfile.PAX_FORMAT else "n"
    path = write_tar(tmp_path / "a.tar", [(f"{long}{i}.png", b"7" * 700) for i in range(5)], fmt)
    data = bytearray(path.read_bytes())
    start = read_headers(path)[member].data - 512
    data[start : start + 512] = bytes(512) if damage == "zero" else b"\x5a" * 512
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.tar: (damaged|begins with zeros|not a tar|contains no)"):
        read_headers(path)


@pytest.mark.parametrize(("content", "message"), [
    (b"", "empty file"),
    (bytes(10240), "begins with zeros"),
    (b"<!DOCTYPE html><html>" + b" " * 2000, "not a tar .it begins with b'<!DOCTYPE"),
    (b"short", "not a tar"),
    (gzip.compress(b"x" * 5000, mtime=0), "decompress it first"),
], ids=["empty", "zeros", "page", "short", "gzip"])  # fmt: skip
def test_files_that_are_not_tars(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_headers(path)


@pytest.mark.parametrize(("names", "message"), [
    (["a.jpg", "b.jpg", "a.cls", "b.cls"], r"'a' are not adjacent: at byte 0 and at byte 2048"),
    (["a.jpg", "a.cls", "b.jpg", "b.cls", "a.jpg", "a.cls"], r"'a\.jpg' occurs twice, at byte 0 and at byte 4096"),
    (["a.jpg", "a.jpg"], r"'a\.jpg' occurs twice"),
    (["README", ".hidden.jpg"], "contains no samples"),
])  # fmt: skip
def test_malformed_samples(tmp_path: Path, names: list[str], message: str) -> None:
    path = write_tar(tmp_path / "a.tar", [(name, b"0") for name in names])
    with pytest.raises(DataError, match=message):
        group_by_key(path, read_headers(path))


@pytest.mark.parametrize(("exts", "message"), [
    (["cls", "json"], "'a' at byte 0 has no image"), (["jpg", "png", "cls"], "more than one image"),
])  # fmt: skip
def test_a_sample_needs_exactly_one_image(tmp_path: Path, exts: list[str], message: str) -> None:
    path = write_tar(tmp_path / "a.tar", [(f"a.{ext}", b"0") for ext in exts])
    with pytest.raises(DataError, match=message):
        group_by_key(path, read_headers(path))[0].image(path)
