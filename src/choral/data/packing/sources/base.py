"""What every source of images brings: samples as a table, class names, and a reader for the bytes."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from choral.core.errors import ConfigError, DataError, did_you_mean
from choral.data.shards.index import LABEL_IDS_TYPE

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
CLASS_FILES = ("classes.txt", "classnames.txt")
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
_RESERVED = {
    "key",
    "label_ids",
    "shard",
    "offset",
    "length",
    "ext",
    "label",
    "path",
    "group",
    "split",
    "location",
    "size",
}
_MAX_LABEL = 2**31 - 1
_INTEGER = re.compile(r"[+-]?[0-9]+(?:\.0*)?")
_SEPARATOR = re.compile("[;|]")
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
_STEM_CHARACTERS = 64  # with the hash and ".json" below the 100 characters of a plain tar header


class Reader(Protocol):
    """Reads the bytes of one image; picklable, since worker processes use it."""

    def read(self, location: str) -> bytes:
        """Return the encoded image at `location`; OSError where it cannot be read."""

    def describe(self, location: str) -> str:
        """Return how to name `location` to the user."""


@dataclass(frozen=True)
class FileReader:
    """Images in files; locations are relative to `root` (or absolute)."""

    root: str

    def read(self, location: str) -> bytes:
        """Return the contents of the file."""
        return (Path(self.root) / location).read_bytes()

    def describe(self, location: str) -> str:
        """Return the file's path."""
        return str(Path(self.root) / location)


@dataclass(frozen=True)
class ImageSource:
    """Images to be packed.

    samples has the columns key, location (for the reader), size (bytes, 0 where not known), label (int64 class id, 0 where
    the task has none), with multilabel label_ids, perhaps split (where given: all rows train, val or test) and group
    (null: a group of its own), and the metadata.
    """

    name: str
    classes: tuple[str, ...]
    samples: pa.Table
    reader: Reader
    provenance: dict[str, Any]  # kind, path or package and version, licence and citation where known
    val: float = 0.1  # used where the options say nothing
    test: float = 0.1
    stratify: tuple[str, ...] = field(default=())


def key_of(path: str) -> str:
    """Return the key of an image from its relative path: readable, unique, safe as a file name, without dots.

    It is the path without extension, each run of characters other than A-Z a-z 0-9 _ - replaced by one _ and cut to its
    last 64, then a minus and 12 hexadecimal digits of the SHA-256 of the whole path (Unicode NFC): `cats/no 1.jpg`
    becomes `cats_no_1-` and 12 digits. Other files do not matter, so adding some changes no key.
    """
    path = unicodedata.normalize("NFC", path)
    folder, slash, name = path.rpartition("/")
    stem = _UNSAFE.sub("_", folder + slash + (name.rpartition(".")[0] or name))[-_STEM_CHARACTERS:]
    return f"{stem.strip('_-')}-{hashlib.sha256(path.encode()).hexdigest()[:12]}".lstrip("-")


def metadata_name(name: str) -> str:
    """Return the index column for a metadata column: `meta_NAME` where NAME already has a meaning there."""
    return f"meta_{name}" if name in _RESERVED else name


def read_classes(folders: Sequence[Path]) -> tuple[str, ...] | None:
    """Return class names, one a line, from classes.txt or classnames.txt in the first folder that has one.

    Raises:
        DataError: an empty line between names, a name twice, or text that is not UTF-8.
    """
    for path in (folder / name for folder in folders for name in CLASS_FILES):
        if not path.is_file():
            continue
        try:
            names = tuple(line.strip() for line in path.read_text("utf-8-sig").rstrip().splitlines())
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from error
        first: dict[str, int] = {}
        for number, name in enumerate(names, start=1):
            if not name:
                raise DataError(f"{path}: line {number} is empty, expected a class name")
            if first.setdefault(name, number) != number:
                raise DataError(f"{path}: line {number} repeats class {name!r} of line {first[name]}")
        if len(names) < 2:
            raise DataError(f"{path}: {len(names)} class names, expected at least two")
        return names
    return None


def resolve_labels(
    labels: Sequence[str], classes: tuple[str, ...] | None, where: Callable[[int], str], numbers_are_ids: bool
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Turn labels as text into class names and ids.

    With known classes a label is a name or a class number. Without, labels are either all names (classes in
    alphabetical order) or all numbers (in numerical order; with `numbers_are_ids` none from 0 on may be missing).

    Args:
        labels: (n,) text.
        classes: from a class file, or None.
        where: says where label i stands, for messages.
        numbers_are_ids: a number is a class id, whatever the classes are called; otherwise a name comes first.

    Returns:
        Class names, and (n,) int64 ids.

    Raises:
        DataError: naming the first label that is empty, outside the classes, or a name among numbers.
    """
    distinct = dict.fromkeys(labels)
    ids: dict[str, int] = {}
    if classes is None:
        classes, ids = _infer_classes(list(distinct), labels, where, numbers_are_ids)
    else:
        known = {name: number for number, name in enumerate(classes)}
        for label in distinct:
            as_id = int(label.partition(".")[0]) if _INTEGER.fullmatch(label) else None
            as_name = known.get(label)
            first, second = (as_id, as_name) if numbers_are_ids else (as_name, as_id)
            number = first if first is not None else second if second is not None else -1
            if not 0 <= number < len(classes):
                raise DataError(
                    f"{where(labels.index(label))}: label {_show(label)} is outside the {len(classes)} classes"
                )
            ids[label] = number
    return classes, np.fromiter((ids[label] for label in labels), dtype=np.int64, count=len(labels))


def _infer_classes(
    distinct: list[str], labels: Sequence[str], where: Callable[[int], str], numbers_are_ids: bool
) -> tuple[tuple[str, ...], dict[str, int]]:
    numbers = {label: int(label.partition(".")[0]) for label in distinct if _INTEGER.fullmatch(label)}
    odd = [label for label in distinct if label not in numbers]
    if "" in odd:
        raise DataError(f"{where(labels.index(''))}: the label is empty")
    if numbers and odd:
        label = odd[0] if len(odd) <= len(numbers) else next(iter(numbers))
        raise DataError(
            f"{where(labels.index(label))}: label {_show(label)} does not fit the others, which are "
            f"{'numbers' if label in odd else 'names'}; "
            "if it is meant so, list all class names in classes.txt beside the data, one a line"
        )
    for label, number in numbers.items():
        if not 0 <= number <= _MAX_LABEL:
            raise DataError(
                f"{where(labels.index(label))}: label {_show(label)} is outside the classes, which count from 0"
            )
    if len(distinct) < 2:
        raise DataError(f"{where(0)}: all labels are {_show(distinct[0])}, expected at least two classes")
    if len(distinct) == len(labels) and len(labels) > 20:
        raise DataError(
            f"{where(0)}: every label occurs just once, beginning with {_show(labels[0])}: are these class labels?"
        )
    if not numbers:
        names = tuple(sorted(distinct))
        return names, {name: number for number, name in enumerate(names)}
    values = sorted(set(numbers.values()))
    if numbers_are_ids and values != list(range(len(values))):
        missing = next(i for i in range(len(values)) if values[i] != i)
        label = next(label for label, number in numbers.items() if number == values[-1])
        raise DataError(
            f"{where(labels.index(label))}: label {_show(label)}, but class {missing} has no sample; "
            "if it is meant so, list all class names in classes.txt beside the data, one a line"
        )
    rank = {value: number for number, value in enumerate(values)}
    return tuple(str(value) for value in values), {label: rank[number] for label, number in numbers.items()}


def _show(label: str) -> str:
    return repr(label if len(label) <= 40 else label[:40] + "...")


def resolve_label_sets(
    texts: Sequence[str], names: tuple[str, ...] | None, where: Callable[[int], str]
) -> tuple[tuple[str, ...], pa.Array]:
    """Turn texts of labels, separated by `;` or `|`, into label names and lists of ids.

    Args:
        texts: (n,); an empty one means that no label applies.
        names: from a class file, or None: those that occur, in alphabetical order.
        where: says where text i stands, for messages.

    Returns:
        Label names, and (n,) lists of ascending int32 ids.

    Raises:
        DataError: a label outside the names, or none at all.
    """
    sets = [sorted({part.strip() for part in _SEPARATOR.split(text)} - {""}) for text in texts]
    found = dict.fromkeys(label for labels in sets for label in labels)
    if not found:
        raise DataError(f"{where(0)}: neither this nor any other sample has a label: nothing can be learnt")
    names = names or tuple(sorted(found))
    ids = {name: number for number, name in enumerate(names)}
    for label in found:
        if label not in ids:
            row = next(i for i, labels in enumerate(sets) if label in labels)
            raise DataError(f"{where(row)}: label {_show(label)} is none of the {len(names)} in the class file")
    return names, pa.array([sorted(ids[label] for label in labels) for labels in sets], LABEL_IDS_TYPE)


def check_targets(samples: pa.Table, columns: Sequence[str], known: Sequence[str], where: str) -> None:
    """Check that columns of the metadata can be the targets of a regression.

    Args:
        samples: all of a source.
        columns, known: names asked for, and of all metadata.
        where: names the source, for messages.

    Raises:
        ConfigError: no such column.
        DataError: it holds text, has gaps, or numbers that are not finite.
    """
    for name in columns:
        if name not in known:
            there = ", ".join(known) or "none"
            raise ConfigError(
                f"{where}: no column {name!r} for a target; there are: {there}.{did_you_mean(name, known)}"
            )
        column = samples[name]
        if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            raise DataError(f"{where}: target {name!r} is {column.type}, expected numbers")
        good = np.isfinite(column.to_numpy())  # a gap becomes NaN
        if not good.all():
            row = int(np.flatnonzero(~good)[0])
            raise DataError(
                f"{where}: target {name!r} is {column[row].as_py()} for sample {samples['key'][row].as_py()!r} "
                f"({int((~good).sum())} such samples): leave them out, or give them a number"
            )
