"""Images that are named on a command line: which they are, in which order, and what is wrong with those that are not read."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from choral.core.errors import ConfigError, DataError
from choral.data.shards.index import Dataset, Index
from choral.deploy.bundle.image_sources import (
    ImageSource,
    batch_images,
    check_image_arguments,
    count_images,
    find_images,
)

LIMIT = 1 << 20


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(path.name.encode())


def names(*words: str, stdin: bytes = b"") -> list[str]:
    return [image.name for image in find_images(words, io.BytesIO(stdin))]


def problems(*words: str, stdin: bytes = b"") -> dict[str, str]:
    return {image.name: image.problem for image in find_images(words, io.BytesIO(stdin)) if image.problem}


@pytest.fixture
def photos_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    paths = ["b.PNG", "a.jpg", "sub/c.tiff", "sub/deep/d.webp", "sub/notes.txt", ".hidden.png", "sub/.cache/e.png"]
    touch(*(tmp_path / "photos" / name for name in paths), tmp_path / "other.data")
    return tmp_path


def test_folders_are_walked_in_the_order_of_names(photos_here: Path) -> None:
    inside = ["photos/a.jpg", "photos/b.PNG", "photos/sub/c.tiff", "photos/sub/deep/d.webp"]
    assert names("photos") == names("photos/") == inside
    assert names("other.data", "photos", "photos/a.jpg") == ["other.data", *inside, "photos/a.jpg"]
    assert names(str(photos_here / "photos")) == [str(photos_here / name) for name in inside]


def test_globs_that_the_shell_left(photos_here: Path) -> None:
    touch(photos_here / "photos" / "x[1].jpg", photos_here / "photos" / "x1.jpg")
    assert names("photos/*.jpg") == ["photos/a.jpg", "photos/x1.jpg", "photos/x[1].jpg"]
    assert names("photos/x[1].jpg") == ["photos/x[1].jpg"]  # there is a file of that name
    assert names("photos/**/*.w*") == ["photos/sub/deep/d.webp"]
    assert names("photos/s*") == ["photos/sub/c.tiff", "photos/sub/deep/d.webp"]
    assert problems("photos/*.nef") == {"photos/*.nef": "no file matches"}


def test_lists(photos_here: Path) -> None:
    lines = b"\xef\xbb\xbfphotos/sub\r\n\nphotos/a.jpg\nhttps://x.org/a.jpg\nphotos/*.jpg"
    (photos_here / "list.txt").write_bytes(lines)
    expected = ["photos/sub/c.tiff", "photos/sub/deep/d.webp", "photos/a.jpg", "https://x.org/a.jpg", "photos/*.jpg"]
    assert names("-", stdin=lines) == names("@list.txt") == expected
    assert "expected a local path" in problems("@list.txt")["https://x.org/a.jpg"]
    assert "photos/*.jpg" not in problems("@list.txt")  # a name: that it is not there, reading tells
    with pytest.raises(DataError, match="No such file"):
        list(find_images(["@list.txt"]))[-1].read(LIMIT)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "expected images"),
        (["a.jpg", "https://x.org/a.jpg"], "https://x.org/a.jpg: expected a local path.* download it first"),
        (["pipe:cat a.jpg"], "not a command"),
        (["@gone.txt"], "@gone.txt: no file gone.txt with a list of images"),
        (["-", "a.jpg", "-"], "standard input can be read once"),
    ],
)
def test_words_that_are_refused(words: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check_image_arguments(words)


def test_what_is_no_image_file_is_told_in_its_place(photos_here: Path) -> None:
    odd = photos_here / "odd"
    odd.mkdir()
    (odd / "loop").symlink_to(odd)
    (odd / "itself").symlink_to("itself")  # neither a folder nor a file
    (odd / "dangling.jpg").symlink_to(odd / "nothing")
    os.mkfifo(odd / "pipe.png")  # would be waited for
    touch(odd / "z.png")
    found = problems("odd", "gone.jpg")
    assert names("odd") == ["odd/dangling.jpg", "odd/loop", "odd/pipe.png", "odd/z.png"]
    assert found["odd/pipe.png"] == "not a regular file" and "parent directories" in found["odd/loop"]
    assert found["odd/dangling.jpg"] == "No such file or directory" and "odd/z.png" not in found
    (photos_here / "empty").mkdir()
    assert problems("empty")["empty"].startswith("a directory without images (.jpg ")
    touch(photos_here / "empty" / "train.tar")
    assert problems("empty")["empty"].endswith("to predict the images in its tars, give 'empty/*.tar'")


def test_images_of_a_plain_tar(photos_here: Path) -> None:
    with tarfile.open("all.tar", "w") as archive:
        archive.add("photos")
        archive.add("photos/a.jpg", "../up.v2.JPG")
        archive.add("photos/a.jpg", "photos/._a.jpg")
        archive.add("photos/a.jpg", "long/" * 30 + "name.png")
    found = list(find_images(["all.tar"]))
    shown = {image.name.removeprefix("all.tar:"): image.read(LIMIT) for image in found}
    assert shown.pop("../up.v2.JPG") == shown.pop("long/" * 30 + "name.png") == b"a.jpg"
    assert {name: Path(name).name.encode() for name in shown} == shown
    assert set(shown) == {f"photos/{name}" for name in ("a.jpg", "b.PNG", "sub/c.tiff", "sub/deep/d.webp")}
    data = Path("all.tar").read_bytes()
    Path("cut.tar").write_bytes(data[: len(data) // 2])
    with tarfile.open("packed.tar.gz", "w:gz") as archive:
        archive.add("photos")
    with tarfile.open("words.tar", "w") as archive:
        archive.add("photos/sub/notes.txt")
    told = problems("cut.tar", "packed.tar.gz", "words.tar", "gone.tar")
    assert "damaged after" in told["cut.tar"] and "decompress it first" in told["packed.tar.gz"]
    assert "a tar without images" in told["words.tar"] and "No such file" in told["gone.tar"]
    Path("all.tar").write_bytes(data[:700])  # after it was listed
    with pytest.raises(DataError, match="it was changed meanwhile"):
        found[-1].read(LIMIT)


def test_shards_give_their_images(shards: Path) -> None:
    dataset = Dataset.open(shards)
    found = [image.name for image in find_images([str(shards / "test-*.tar")])]
    keys = Index.open(dataset, "test").keys(range(11))
    assert sorted(name.rpartition(":")[2] for name in found) == sorted(f"{key}.png" for key in keys)


def test_names_that_are_not_utf8_can_be_told_and_read(photos_here: Path) -> None:
    raw = os.fsencode(photos_here) + b"/photos/\xe9t\xe9.jpg"
    Path(os.fsdecode(raw)).write_bytes(b"summer")
    (image,) = (
        image for image in find_images(["photos"]) if "t" in image.name.removeprefix("photos/") and "x" in image.name
    )
    assert image.name == "photos/\\xe9t\\xe9.jpg" and image.read(LIMIT) == b"summer"


def test_files_too_large_for_an_image_are_not_read(photos_here: Path) -> None:
    with Path("huge.png").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DataError, match=r"1,099,511,627,776 bytes, more than the 1,048,576 that an image"):
        ImageSource("huge.png", "huge.png").read(LIMIT)
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "wb") as file:
        file.write(b"12345")
    with pytest.raises(DataError, match="more than the 4 bytes"):
        ImageSource("pipe", f"/dev/fd/{read_end}").read(4)
    os.close(read_end)
    with pytest.raises(DataError, match="null byte"):
        ImageSource("a", "a\0b").read(LIMIT)


def test_batches_and_their_number() -> None:
    made = [ImageSource(str(number), "") for number in range(7)]
    assert [len(batch) for batch in batch_images(made, 3)] == [3, 3, 1]
    total, images = count_images(iter(made), ["photos"])
    assert total == 7 and list(images) == made
    assert count_images(iter(made), ["photos", "-"])[0] is None
