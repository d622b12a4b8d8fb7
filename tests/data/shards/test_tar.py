from __future__ import annotations

import gzip
import tarfile
from pathlib import Path

import pytest

from choral.core.errors import DataError
from choral.data.shards.tar import group, scan
from shard_samples import samples, write_tar


def reference(path: Path) -> list[tuple[str, int, int]]:
    with tarfile.open(path) as archive:
        return [(m.name, m.offset_data, m.size) for m in archive if m.isreg()]


@pytest.mark.parametrize("fmt", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("prefix", ["", "./", "deep/" * 30, "x" * 120])
def test_finds_the_same_as_tarfile(tmp_path: Path, fmt: int, prefix: str) -> None:
    if fmt == tarfile.USTAR_FORMAT and prefix.startswith("x"):
        pytest.skip("such a name does not fit into this format")
    path = write_tar(tmp_path / "a.tar", [(prefix + name, data) for name, data in samples(0, 5)], fmt)
    members = scan(path)
    assert [(m.name, m.data, m.size) for m in members] == reference(path)
    keys = [sample.key for sample in group(path, members)]
    assert keys == [prefix.removeprefix("./") + f"s{i:04d}" for i in range(5)]


def test_folders_links_and_hidden_files_are_no_samples(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        (tmp_path / "d").mkdir()
        archive.add(tmp_path / "d", "d")
        link = tarfile.TarInfo("d/a.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "b.jpg"
        archive.addfile(link)
        for name in ("d/._b.jpg", "d/README", "d/b.png", "d/b.x.json"):
            archive.addfile(tarfile.TarInfo(name))
    (sample,) = group(path, scan(path))
    assert sample.key == "d/b"
    assert list(sample.parts) == ["png", "x.json"]


def test_base_256_size(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("a.png", b"x" * 700), ("a.cls", b"0")])
    block = bytearray(path.read_bytes())
    block[124:136] = b"\x80" + (700).to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block[:512])
    path.write_bytes(block)
    assert [(m.name, m.data, m.size) for m in scan(path)] == [("a.png", 512, 700), ("a.cls", 2048, 1)]


@pytest.mark.parametrize("fmt", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_cut_at_every_512_bytes(tmp_path: Path, fmt: int) -> None:
    long = "n" * 110 if fmt == tarfile.PAX_FORMAT else "n"
    path = write_tar(
        tmp_path / "a.tar", [(f"{long}{i}.{ext}", b"7" * 700) for i in range(3) for ext in ("cls", "png")], fmt
    )
    whole = path.read_bytes()
    complete = scan(path)
    end = len(whole.rstrip(b"\0"))
    end = (end + 511) // 512 * 512
    cut = tmp_path / "cut.tar"
    for size in [*range(0, len(whole), 512), 100, 513, 1300]:
        cut.write_bytes(whole[:size])
        if size >= end + 1024:  # only padding is missing
            assert scan(cut) == complete
            continue
        with pytest.raises(DataError, match=str(cut)):
            scan(cut)


@pytest.mark.parametrize("fmt", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("damage", ["zero", "noise"])
@pytest.mark.parametrize("member", range(5))
def test_damaged_header_is_found(tmp_path: Path, fmt: int, damage: str, member: int) -> None:
    long = "n" * 110 if fmt == tarfile.PAX_FORMAT else "n"
    path = write_tar(tmp_path / "a.tar", [(f"{long}{i}.png", b"7" * 700) for i in range(5)], fmt)
    data = bytearray(path.read_bytes())
    start = scan(path)[member].data - 512
    data[start : start + 512] = bytes(512) if damage == "zero" else b"\x5a" * 512
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.tar: (damaged|begins with zeros|not a tar|holds no)"):
        scan(path)


@pytest.mark.parametrize(("content", "message"), [
    (b"", "empty file"),
    (bytes(10240), "begins with zeros"),
    (b"<!DOCTYPE html><html>" + b" " * 2000, "not a tar .it begins with b'<!DOCTYPE"),
    (b"short", "not a tar"),
    (gzip.compress(b"x" * 5000, mtime=0), "decompress it first"),
], ids=["empty", "zeros", "page", "short", "gzip"])  # fmt: skip
def test_what_is_no_tar(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        scan(path)


@pytest.mark.parametrize(("names", "message"), [
    (["a.jpg", "b.jpg", "a.cls", "b.cls"], r"'a' do not lie together: at byte 0 and at byte 2048"),
    (["a.jpg", "a.cls", "b.jpg", "b.cls", "a.jpg", "a.cls"], r"'a\.jpg' occurs twice, at byte 0 and at byte 4096"),
    (["a.jpg", "a.jpg"], r"'a\.jpg' occurs twice"),
    (["README", ".hidden.jpg"], "holds no samples"),
])  # fmt: skip
def test_samples_that_do_not_hold_together(tmp_path: Path, names: list[str], message: str) -> None:
    path = write_tar(tmp_path / "a.tar", [(name, b"0") for name in names])
    with pytest.raises(DataError, match=message):
        group(path, scan(path))


@pytest.mark.parametrize(("exts", "message"), [
    (["cls", "json"], "'a' at byte 0 has no image"), (["jpg", "png", "cls"], "more than one image"),
])  # fmt: skip
def test_one_image_a_sample(tmp_path: Path, exts: list[str], message: str) -> None:
    path = write_tar(tmp_path / "a.tar", [(f"a.{ext}", b"0") for ext in exts])
    with pytest.raises(DataError, match=message):
        group(path, scan(path))[0].image(path)
