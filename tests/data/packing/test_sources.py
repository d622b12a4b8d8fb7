from __future__ import annotations

import builtins
import importlib.util
import io
import struct
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from choral.core.errors import ChoralError, ConfigError, DataError
from choral.data.packing.options import PackOptions
from choral.data.packing.sources import ImageSource, TarSource, open_source
from choral.data.packing.sources.base import FileReader, make_sample_key, read_class_names, resolve_labels
from choral.data.packing.sources.label_column import use_column_as_label
from choral.data.packing.sources.tars import index_tars
from small_sources import image_bytes, make_photos, samples, write_tar

OPTIONS = PackOptions(processes=1)


def images(spec: str | Path, options: PackOptions = OPTIONS) -> ImageSource:
    source = open_source(str(spec), options)
    assert isinstance(source, ImageSource)
    return source


def tars(spec: str | Path, options: PackOptions = OPTIONS) -> tuple[tuple[str, ...], pa.Table]:
    source = open_source(str(spec), options)
    assert isinstance(source, TarSource)
    classes, _, table = index_tars(source, options)
    return classes, table


# Keys and labels


def test_keys_are_readable_unique_and_stable() -> None:
    assert make_sample_key("cats/no 1.jpg") == "cats_no_1-" + "8e3568d9a6b9"
    names = [
        "a/b.jpg",
        "a/b.png",
        "a b.jpg",
        "a_b.jpg",
        "a/b/c.jpg",
        "ä.jpg",
        "ö.jpg",
        "...jpg",
        "-.jpg",
        "../x.jpg",
        "x" * 300,
    ]
    keys = [make_sample_key(name) for name in names]
    assert len(set(keys)) == len(names)
    assert all(
        len(key) <= 80 and not set(key) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
        for key in keys
    )
    assert make_sample_key(unicodedata.normalize("NFD", "ä.jpg")) == make_sample_key("ä.jpg")


@pytest.mark.parametrize(("labels", "classes", "ids", "names", "result"), [
    (["cat", "dog", "cat"], None, False, ("cat", "dog"), [0, 1, 0]),
    (["10", "9", "10"], None, False, ("9", "10"), [1, 0, 1]),
    (["1", "0", "2"], None, True, ("0", "1", "2"), [1, 0, 2]),
    (["1", "b"], ("a", "b"), True, ("a", "b"), [1, 1]),
    (["1", "0"], ("1", "0"), False, ("1", "0"), [0, 1]),
    (["1", "0"], ("1", "0"), True, ("1", "0"), [1, 0]),
])  # fmt: skip
def test_labels(labels: list[str], classes: Any, ids: bool, names: tuple[str, ...], result: list[int]) -> None:
    found, numbers = resolve_labels(labels, classes, str, ids)
    assert (found, numbers.tolist()) == (names, result)


@pytest.mark.parametrize(("labels", "classes", "message"), [
    (["0", "1", "7x"], None, "2: label '7x' does not match the others, which are numbers"),
    (["0", "1", "-1"], None, "2: label '-1' is out of range"),
    (["0", "1", "1" + "0" * 21], None, "2: label '1000000000000000000000' is out of range"),
    (["0", "1", "3"], None, "2: label '3', but class 2 has no sample"),
    (["0", ""], None, "1: the label is empty"),
    (["a", "a"], None, "all labels are 'a', expected at least two"),
    (["0", "2"], ("a", "b"), "1: label '2' is not one of the 2 classes"),
    (["a", "c"], ("a", "b"), "1: label 'c' is not one of the 2 classes"),
    (["0", "1" + "0" * 21], ("a", "b"), "is not one of the 2 classes"),
    ([f"caption {i}" for i in range(30)], None, "every label occurs only once"),
])  # fmt: skip
def test_invalid_labels(labels: list[str], classes: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        resolve_labels(labels, classes, str, numbers_are_ids=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [("a\n\nb\n", "line 2 is empty"), ("a\nb\na\n", "line 3 repeats class 'a' of line 1"), ("a", "at least two")],
)
def test_class_files(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_class_names([tmp_path])
    (tmp_path / "classes.txt").write_text("\ufeffcat\r\nüber dog\r\n\r\n")
    assert read_class_names([tmp_path]) == ("cat", "über dog")


# Folders


def test_folder_with_odd_names(tmp_path: Path) -> None:
    names = ["Katze & Hund", 'it\'s "fine"', "ärger .. & \\n", "<b>bold"]
    root = make_photos(tmp_path / "photos", dict.fromkeys(names, 2))
    (root / names[0] / "deeper").mkdir()
    (root / names[0] / "deeper" / "x.JPEG").write_bytes(image_bytes(fmt="JPEG"))
    for hidden in (".DS_Store", f"{names[0]}/.hidden.jpg", f"{names[0]}/Thumbs.db", ".git/config"):
        (root / hidden).parent.mkdir(exist_ok=True)
        (root / hidden).write_text("x")
    source = images(root)
    assert source.classes == tuple(sorted(names))
    assert source.samples.num_rows == 9
    assert f"{names[0]}/deeper/x.JPEG" in source.samples["path"].to_pylist()
    assert "split" not in source.samples.column_names
    location = source.samples["location"][0].as_py()
    assert source.reader.read(location) == (root / location).read_bytes()


def test_folder_with_given_splits(tmp_path: Path) -> None:
    make_photos(tmp_path / "Train", {"a": 3, "b": 2})
    make_photos(tmp_path / "validation", {"a": 1})
    source = images(tmp_path)
    assert source.classes == ("a", "b")
    assert source.samples["split"].to_pylist() == ["train"] * 5 + ["val"]
    make_photos(tmp_path / "extra", {"a": 1})
    with pytest.raises(DataError, match="has 'extra' beside 'Train'"):
        images(tmp_path)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert images(make_photos(tmp_path / "p", {"train": 2, "bus": 1})).classes == ("bus", "train")


@pytest.mark.parametrize(("make", "message"), [
    (lambda r: (r / "empty").mkdir(), "empty: class folder without images"),
    (lambda r: (r / "red" / "notes.txt").write_text("x"), r"red/notes\.txt: not an image"),
    (lambda r: (r / "loose.jpg").write_bytes(b"x"), r"loose\.jpg: an image outside the class folders"),
    (lambda r: (r / "labels.csv").write_bytes(b"x"), r"labels\.csv: .*pass the manifest as the source"),
    (lambda r: (r / "red" / "gone.png").symlink_to(r / "nowhere"), r"gone\.png: cannot be read \(No such file"),
    (lambda r: (r / "red" / "loop").symlink_to(r / "red"), "loop: a link to one of its parent folders"),
    (lambda r: (r / "red" / "b\udcff.png").write_bytes(b"x"), r"b'b\\xff\.png' is not UTF-8"),
])  # fmt: skip
def test_bad_folders(photos: Path, make: Callable[[Path], Any], message: str) -> None:
    make(photos)
    with pytest.raises(DataError, match=message):
        images(photos)


def test_too_few_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 class folders"):
        images(make_photos(tmp_path / "p", {"a": 3}))
    with pytest.raises(DataError, match="0 class folders, expected at least two"):
        (tmp_path / "empty").mkdir()
        images(tmp_path / "empty")


def test_an_archive_among_photos_does_not_make_a_folder_of_tars(photos: Path) -> None:
    write_tar(photos / "red" / "old.tar", samples(0, 3))
    with pytest.raises(DataError, match=r"red/old\.tar: not an image"):
        images(photos)


def test_a_relative_path_of_dots(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos / "red")
    assert images("..").name == "photos"


# Manifests


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    (tmp_path / "img").mkdir()
    for number in range(6):
        (tmp_path / "img" / f"{number}.png").write_bytes(image_bytes((number, 0, 0)))
    return tmp_path / "list.csv"


ROWS = [f"img/{i}.png,{'ab'[i % 2]},{('train', 'test')[i // 4]},g{i // 2},{i / 2},x{i}\n" for i in range(6)]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv(listed: Path, delimiter: str) -> None:
    text = "\ufeffimage,label,split,group,key,note\n" + "".join(ROWS)
    listed.write_text(text.replace(",", delimiter).replace("x0", '"two\nlines"'))
    source = images(listed)
    assert source.classes == ("a", "b")
    assert source.samples["split"].to_pylist() == ["train"] * 4 + ["test"] * 2
    assert source.samples["group"].to_pylist() == ["g0", "g0", "g1", "g1", "g2", "g2"]
    assert source.samples["meta_key"].to_pylist() == [0, 0.5, 1, 1.5, 2, 2.5]
    assert source.samples["note"][0].as_py() == "two\nlines"
    assert source.samples["path"][3].as_py() == "img/3.png"
    assert source.reader.read("img/3.png") == image_bytes((3, 0, 0))


def test_parquet(listed: Path) -> None:
    path = listed.with_suffix(".parquet")
    table = pa.table(
        {
            "file": [f"img/{i}.png" for i in range(5)] + [str(listed.parent / "img" / "5.png")],
            "grade": [1.0, 5.0, 1.0, 5.0, 1.0, 3.0],
            "kind": pa.array(["p", "q"] * 3).dictionary_encode(),
        }
    )
    pq.write_table(table, path)
    source = images(path, PackOptions(image_column="file", label_column="grade"))
    assert source.classes == ("1", "3", "5")
    assert source.samples["label"].to_pylist() == [0, 2, 0, 2, 0, 1]
    assert source.samples["kind"].type == pa.string()
    relative = pa.table({"file": [f"img/{i}.png" for i in range(6)], "grade": [1, 5, 1, 5, 1, 3]})
    pq.write_table(relative, path)
    again = images(path, PackOptions(image_column="file", label_column="grade"))
    assert again.samples["key"].to_pylist() == source.samples["key"].to_pylist(), "the same files, the same keys"


@pytest.mark.parametrize(("row", "message"), [
    ("img/none.png,a", r"list\.csv: row 7: no such image: img/none\.png \(relative paths start at"),
    ("https://host/x.png,a", "row 7: no such image: https"),
    ("img,a", "row 7: not a file"),
    (",a", "row 7: the image is ''"),
    ("img/../img/0.png,a", r"row 7: img/\.\./img/0\.png is already listed in row 1"),
    ("img/0.png,a,b", "cannot be read: CSV parse error"),
])  # fmt: skip
def test_bad_rows(listed: Path, row: str, message: str) -> None:
    listed.write_text("image,label\n" + "".join(",".join(r.split(",")[:2]) + "\n" for r in ROWS) + row + "\n")
    with pytest.raises(DataError, match=message):
        images(listed)


@pytest.mark.parametrize(("label", "message"), [
    ("", r"list\.csv: row 3: the label is empty"), ("-1", "row 3: label '-1' is out of range"),
    ("7x", "row 3: label '7x' does not match"), ("1" + "0" * 21, "row 3: label .* is out of range"),
])  # fmt: skip
def test_bad_labels_in_a_manifest(listed: Path, label: str, message: str) -> None:
    listed.write_text("image,label\n" + "".join(f"img/{i}.png,{label if i == 2 else i % 2}\n" for i in range(6)))
    with pytest.raises(DataError, match=message):
        images(listed)


def test_manifest_with_a_class_file(listed: Path) -> None:
    (listed.parent / "classes.txt").write_text("b\na\nc\n")
    listed.write_text("image,label\nimg/0.png,a\nimg/1.png,b\n")
    assert images(listed).classes == ("b", "a", "c")
    assert images(listed).samples["label"].to_pylist() == [1, 0]
    listed.write_text("image,label\nimg/0.png,a\nimg/1.png,d\n")
    with pytest.raises(DataError, match="row 2: label 'd' is not one of the 3 classes"):
        images(listed)


def test_bad_columns(listed: Path) -> None:
    listed.write_text("images,label\nimg/0.png,a\n")
    with pytest.raises(ConfigError, match=r"no column 'image'; available: images, label\. Did you mean images\?"):
        images(listed)
    listed.write_text("image,label,split\nimg/0.png,a,train\nimg/1.png,b,holdout\n")
    with pytest.raises(DataError, match="row 2: the split is 'holdout', expected train, val or test"):
        images(listed)
    listed.write_text("image,label,label\nimg/0.png,a,b\n")
    with pytest.raises(DataError, match="column 'label' occurs twice"):
        images(listed)
    listed.write_text("image,label\n")
    with pytest.raises(DataError, match="lists no images"):
        images(listed)
    listed.with_suffix(".parquet").write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"list\.parquet: cannot be read"):
        images(listed.with_suffix(".parquet"))


# Tars


def test_tars_by_folder_glob_braces_and_file(tmp_path: Path) -> None:
    for number in range(3):
        write_tar(tmp_path / f"part-{number}.tar", samples(number * 7, 7))
    specs = ["", "/part-*.tar", "/part-{0..2}.tar"]
    tables = [tars(f"{tmp_path}{spec}") for spec in specs]
    for classes, table in tables:
        assert classes == ("0", "1", "2")
        assert table.equals(tables[0][1])
    assert table.num_rows == 21
    assert tars(tmp_path / "part-1.tar")[1].num_rows == 7
    shard, offset, length = (table[name][8].as_py() for name in ("shard", "offset", "length"))
    assert (tmp_path / f"part-{shard}.tar").read_bytes()[offset:][:length] == image_bytes((8, 0, 0))


@pytest.mark.parametrize(
    "names", [("train-0.tar", "val.tar", "test_0.tar"), ("train/0.tar", "valid/0.tar", "test/0.tar")]
)
def test_splits_from_names(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        write_tar(tmp_path / name, samples(0, 3))
    (tmp_path / "classnames.txt").write_text("x\ny\nz\n")
    classes, table = tars(tmp_path)
    assert classes == ("x", "y", "z")
    pairs = set(zip(table["shard"].to_pylist(), table["split"].to_pylist(), strict=True))
    assert sorted(pairs) == [(0, "test"), (1, "train"), (2, "val")]


def test_labels_and_metadata_from_json_and_text(tmp_path: Path) -> None:
    def sample(key: str, parts: dict[str, bytes]) -> list[tuple[str, bytes]]:
        return [(f"{key}.jpg", b"?"), *((f"{key}.{ext}", data) for ext, data in parts.items())]

    members = sample("a", {"json": b'{"label": "cat", "width": 5, "key": "k", "who": "me", "more": {"x": 1}}'})
    members += sample("b", {"txt": b" dog\n", "json": b'{"width": "wide", "group": 7}'})
    members += sample("c", {"cls": b"cat"})
    write_tar(tmp_path / "a.tar", members)
    classes, table = tars(tmp_path)
    assert classes == ("cat", "dog")
    assert table["label"].to_pylist() == [0, 1, 0]
    assert table["width"].to_pylist() == ["5", "wide", None]
    assert table["group"].to_pylist() == [None, "7", None]
    assert table["meta_key"].to_pylist() == ["k", None, None]
    assert "more" not in table.column_names


@pytest.mark.parametrize(("parts", "message"), [
    ({"cls": b"7x"}, r"0\.tar: sample 'z' at byte \d+: label '7x' does not match"),
    ({"cls": b"-1"}, r"0\.tar: sample 'z' at byte \d+: label '-1' is out of range"),
    ({"cls": b"1" + b"0" * 21}, r"0\.tar: sample 'z' at byte \d+: label '10+' is out of range"),
    ({"cls": b"9"}, "label '9', but class 3 has no sample"),
    ({"cls": b" "}, r"0\.tar: sample 'z': the label in 'z\.cls' at byte \d+ is empty"),
    ({"cls": b"\xff\xfe"}, "does not match the others"),
    ({}, r"0\.tar: sample 'z' at byte \d+ has no label"),
    ({"json": b"{"}, r"'z\.json' at byte \d+ is not JSON"),
    ({"json": b"[1]"}, "has no label"),
])  # fmt: skip
def test_bad_labels_in_tars(tmp_path: Path, parts: dict[str, bytes], message: str) -> None:
    members = [("z.png", b"?"), *((f"z.{ext}", data) for ext, data in parts.items())]
    write_tar(tmp_path / "0.tar", samples(0, 6) + members)
    with pytest.raises(DataError, match=message):
        tars(tmp_path)


def test_shards_listed_twice_or_missing(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", samples(0, 6))
    (tmp_path / "b.tar").symlink_to(tmp_path / "a.tar")
    with pytest.raises(DataError, match=r"b\.tar: listed twice \(also as .*a\.tar\)"):
        tars(tmp_path)
    with pytest.raises(DataError, match=r"x-3\.tar: no such tar"):
        tars(tmp_path / "x-{3..4}.tar")
    write_tar(tmp_path / "train-0.tar", samples(6, 6))
    (tmp_path / "b.tar").unlink()
    with pytest.raises(DataError, match=r"a\.tar: its name does not contain a split"):
        tars(tmp_path)


# torchvision


def write_mnist(root: Path, count: int) -> None:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, n in (("train", count), ("t10k", 4)):
        pixels = np.arange(n * 784).astype(np.uint8).reshape(n, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, n, 28, 28) + pixels.tobytes())
        labels = (np.arange(n) % 10).astype(np.uint8)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, n) + labels.tobytes())


def test_torchvision_on_disk(tmp_path: Path) -> None:
    write_mnist(tmp_path, 20)
    source = images("torchvision:MNIST", PackOptions(root=str(tmp_path)))
    assert source.classes[:2] == ("0 - zero", "1 - one")
    assert source.samples["split"].to_pylist() == ["train"] * 20 + ["test"] * 4
    assert source.samples["label"].to_pylist()[9:12] == [9, 0, 1]
    assert source.samples["key"][3].as_py() == "train-0000003"
    with Image.open(io.BytesIO(source.reader.read("train/0000003"))) as image:
        assert image.format == "PNG"
        assert (np.asarray(image) == np.arange(3 * 784, 4 * 784).astype(np.uint8).reshape(28, 28)).all()


@pytest.mark.parametrize("size", ["3,8,8", "(3, 8, 8)", "[3,8,8]"])
def test_torchvision_with_arguments(size: str) -> None:
    source = images(f"torchvision:FakeData?size=12&image_size={size}&num_classes=2")
    assert source.samples.num_rows == 12
    assert "split" not in source.samples.column_names
    assert len(source.classes) == 2


@pytest.mark.parametrize(("spec", "message"), [
    ("torchvision:CIFAR11", r"no data set 'CIFAR11'\. Did you mean CIFAR10"),
    ("torchvision:FakeData?sise=3", r"no argument 'sise'.*Did you mean size\?"),
    ("torchvision:FakeData?image_size=3x8", r"cannot create the samples \(.*\): check the arguments; write several numbers"),
])  # fmt: skip
def test_torchvision_with_wrong_arguments(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        images(spec)


def test_torchvision_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets.utils

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets.utils, "_urlretrieve", refuse)
    for name in ("CIFAR10", "MNIST", "Flowers102"):
        with pytest.raises(
            DataError, match=rf"torchvision:{name}: not in {tmp_path}, and the download failed"
        ) as caught:
            images(f"torchvision:{name}", PackOptions(root=str(tmp_path)))
        assert len(str(caught.value).splitlines()) == 1


def test_torchvision_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("torchvision"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match="torchvision is not installed"):
        images("torchvision:MNIST")


# elpv and dispatch


@pytest.mark.demo
@pytest.mark.skipif(importlib.util.find_spec("elpv_dataset") is None, reason="elpv-dataset is not installed")
def test_elpv() -> None:
    source = images("elpv")
    assert source.classes == ("functional", "defective")
    assert source.samples.num_rows == 2624
    assert source.samples["key"][0].as_py() == "cell0001"
    assert sum(source.samples["label"].to_pylist()) == 313 + 402 + 56 + 50
    assert set(source.samples["type"].to_pylist()) == {"mono", "poly"}
    assert source.provenance["licence"] == "CC BY-NC-SA 4.0"
    assert "Deitsch" in source.provenance["citation"]


@pytest.mark.skipif(importlib.util.find_spec("elpv_dataset") is None, reason="elpv-dataset is not installed")
def test_elpv_with_another_label_column() -> None:
    """The four values of the defect probability become classes in numerical order; the column itself stays."""
    source = images("elpv", PackOptions(processes=1, label_column="probability"))
    assert source.classes == ("0", "0.333333", "0.666667", "1")
    probability, label = source.samples["probability"].to_numpy(), source.samples["label"].to_numpy()
    assert np.array_equal(label, np.round(probability * 3)) and np.bincount(label).tolist() == [1508, 295, 106, 715]
    assert images("elpv", PackOptions(processes=1, label_column="type")).classes == ("mono", "poly")


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (["b", "a", "b"], ("a", "b")),
        ([10, 9, 10], ("9", "10")),
        ([True, False, True], ("False", "True")),
        ([0.1 + 0.2, 0.3, 1.0], ("0.3", "0.30000000000000004", "1.0")),
    ],
)
def test_values_of_a_column_become_classes(values: list[Any], classes: tuple[str, ...]) -> None:
    source = use_column_as_label(source_with(values), "grade")
    assert source.classes == classes
    assert [sorted(set(values))[label] for label in source.samples["label"].to_pylist()] == values


@pytest.mark.parametrize(
    ("column", "values", "error", "text"),
    [
        (
            "grad",
            ["a", "b"],
            ConfigError,
            r"no column 'grad' to use as the label; available: grade\. Did you mean grade",
        ),
        ("label", ["a", "b"], ConfigError, r"no column 'label'"),
        ("grade", ["a", None], DataError, r"'grade' has no value for 1 samples, first 'k1'"),
        ("grade", [1.0, float("nan")], DataError, r"'grade' is double: classes must be text, finite numbers"),
        ("grade", [1.0, float("inf")], DataError, r"'grade' is double: classes must be text, finite numbers"),
        ("grade", ["a", "a"], DataError, r"is 'a' for all samples, expected at least two classes"),
        ("grade", [number / 7 for number in range(21)], DataError, r"every value occurs only once.*task regression"),
    ],
)
def test_columns_that_cannot_be_classes(column: str, values: list[Any], error: type[ChoralError], text: str) -> None:
    with pytest.raises(error, match=text):
        use_column_as_label(source_with(values), column)


def source_with(values: list[Any]) -> ImageSource:
    count = len(values)
    columns = {
        "key": pa.array([f"k{number}" for number in range(count)]),
        "location": pa.array(["x"] * count),
        "size": pa.array([0] * count),
        "label": pa.array([0] * count),
        "grade": pa.array(values),
    }
    return ImageSource("made", ("one", "two"), pa.table(columns), FileReader("."), {"kind": "made"})


def test_elpv_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install elpv-dataset"):
        images("elpv")


@pytest.mark.parametrize(("spec", "error", "message"), [
    ("{tmp}/fotos", DataError, r"fotos: no such folder or file\. Did you mean photos\?"),
    ("s3://bucket/x", ConfigError, "expected a local path"),
    ("pipe:cat x.tar", ConfigError, "expected a local path"),
    ("{tmp}/photos/red/000.png", ConfigError, "expected a folder, a manifest"),
    ("{tmp}/none.csv", DataError, "no such folder or file"),
    ("{tmp}/none.tar", DataError, "no such tar"),
])  # fmt: skip
def test_invalid_sources(photos: Path, spec: str, error: type[ChoralError], message: str) -> None:
    with pytest.raises(error, match=message):
        open_source(spec.replace("{tmp}", str(photos.parent)), OPTIONS)
