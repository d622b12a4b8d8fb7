"""What every source returns (`ImageSource`), and helpers that sources share: keys, class names, labels, targets."""

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
_STEM_CHARACTERS = 64  # with hash and ".json" it stays below the 100 characters of a basic tar header
_SHOWN_CHARACTERS = 40  # of a label, in messages


class ImageReader(Protocol):
    """Reads the bytes of one image. Must be picklable: worker processes use it."""

    def read(self, location: str) -> bytes:
        """Return the encoded image at `location`; OSError if it cannot be read."""

    def describe(self, location: str) -> str:
        """Return `location` as it appears in messages."""


@dataclass(frozen=True)
class FileReader:
    """Reads image files; locations are absolute or relative to `root`."""

    root: str

    def read(self, location: str) -> bytes:
        """Return the contents of the file."""
        return (Path(self.root) / location).read_bytes()

    def describe(self, location: str) -> str:
        """Return the file's path."""
        return str(Path(self.root) / location)


@dataclass(frozen=True)
class ImageSource:
    """Images to pack.

    Columns of `samples`:

        key        string, unique within a split; see `make_sample_key`
        location   string, for the reader
        size       int64 bytes of the file, 0 if unknown
        label      int64 class id; 0 for tasks without classes
        label_ids  multilabel only: ascending list of label ids
        split      optional: train, val or test in every row
        group      optional: string; null: the sample is a group by itself
        ...        metadata, stored in the index as it is
    """

    name: str
    classes: tuple[str, ...]
    samples: pa.Table
    reader: ImageReader
    provenance: dict[str, Any]  # kind, path or package and version; licence and citation where known
    val: float = 0.1  # default fraction of all samples for validation
    test: float = 0.1  # default fraction of all samples for testing
    stratify: tuple[str, ...] = field(default=())  # default of the option of that name


def make_sample_key(path: str) -> str:
    """Return the key of an image, computed from its relative path: readable, unique, safe as a file name, without dots.

    The key is the path without extension, in which each run of characters other than A-Z a-z 0-9 _ - becomes one _,
    cut to its last 64 characters, then "-" and 12 hexadecimal digits of the SHA-256 of the whole path (Unicode NFC):
    `cats/no 1.jpg` becomes `cats_no_1-` and 12 digits. Adding files to a source changes no key.
    """
    path = unicodedata.normalize("NFC", path)
    folder, slash, name = path.rpartition("/")
    stem = _UNSAFE.sub("_", folder + slash + (name.rpartition(".")[0] or name))[-_STEM_CHARACTERS:]
    return f"{stem.strip('_-')}-{hashlib.sha256(path.encode()).hexdigest()[:12]}".lstrip("-")


def metadata_column_name(name: str) -> str:
    """Return the name of a metadata column in the index: `meta_NAME` if the index has a column NAME."""
    return f"meta_{name}" if name in _RESERVED else name


def read_class_names(folders: Sequence[Path]) -> tuple[str, ...] | None:
    """Return the class names of the first classes.txt or classnames.txt in `folders`, one a line; None: no such file.

    Raises:
        DataError: an empty line between names, a repeated name, fewer than two names, or text that is not UTF-8.
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
    labels: Sequence[str], classes: tuple[str, ...] | None, locate: Callable[[int], str], numbers_are_ids: bool
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Map text labels to class names and ids.

    If `classes` is given, a label is a class name or a class number. Otherwise the labels are either all names (classes
    in alphabetical order) or all numbers (in numerical order; with `numbers_are_ids` they must be 0, 1, ... without gaps).

    Args:
        labels: (n,) text.
        classes: from a class file, or None.
        locate: returns the location of label i, for messages.
        numbers_are_ids: read a number as a class id even if a class has that name; otherwise names take precedence.

    Returns:
        The class names, and (n,) int64 ids.

    Raises:
        DataError: with the location of the first label that is empty, outside the classes, or a name among numbers.
    """
    distinct = dict.fromkeys(labels)
    ids: dict[str, int] = {}
    if classes is None:
        classes, ids = _infer_classes(list(distinct), labels, locate, numbers_are_ids)
    else:
        id_of_name = {name: number for number, name in enumerate(classes)}
        for label in distinct:
            as_id = int(label.partition(".")[0]) if _INTEGER.fullmatch(label) else None
            as_name = id_of_name.get(label)
            first, second = (as_id, as_name) if numbers_are_ids else (as_name, as_id)
            number = first if first is not None else second if second is not None else -1
            if not 0 <= number < len(classes):
                raise DataError(
                    f"{locate(labels.index(label))}: label {_quote(label)} is not one of the {len(classes)} classes"
                )
            ids[label] = number
    return classes, np.fromiter((ids[label] for label in labels), dtype=np.int64, count=len(labels))


def _infer_classes(
    distinct: list[str], labels: Sequence[str], locate: Callable[[int], str], numbers_are_ids: bool
) -> tuple[tuple[str, ...], dict[str, int]]:
    numbers = {label: int(label.partition(".")[0]) for label in distinct if _INTEGER.fullmatch(label)}
    names = [label for label in distinct if label not in numbers]
    if "" in names:
        raise DataError(f"{locate(labels.index(''))}: the label is empty")
    if numbers and names:
        label = names[0] if len(names) <= len(numbers) else next(iter(numbers))
        raise DataError(
            f"{locate(labels.index(label))}: label {_quote(label)} does not match the others, which are "
            f"{'numbers' if label in names else 'names'}; "
            "if this is intended, list all class names in classes.txt beside the data, one a line"
        )
    for label, number in numbers.items():
        if not 0 <= number <= _MAX_LABEL:
            raise DataError(
                f"{locate(labels.index(label))}: label {_quote(label)} is out of range: class numbers start at 0"
            )
    if len(distinct) < 2:
        raise DataError(f"{locate(0)}: all labels are {_quote(distinct[0])}, expected at least two classes")
    if len(distinct) == len(labels) and len(labels) > 20:
        raise DataError(
            f"{locate(0)}: every label occurs only once, the first is {_quote(labels[0])}: are these class labels?"
        )
    if not numbers:
        classes = tuple(sorted(distinct))
        return classes, {name: number for number, name in enumerate(classes)}
    values = sorted(set(numbers.values()))
    if numbers_are_ids and values != list(range(len(values))):
        missing = next(i for i in range(len(values)) if values[i] != i)
        label = next(label for label, number in numbers.items() if number == values[-1])
        raise DataError(
            f"{locate(labels.index(label))}: label {_quote(label)}, but class {missing} has no sample; "
            "if this is intended, list all class names in classes.txt beside the data, one a line"
        )
    rank = {value: number for number, value in enumerate(values)}
    return tuple(str(value) for value in values), {label: rank[number] for label, number in numbers.items()}


def _quote(label: str) -> str:
    return repr(label if len(label) <= _SHOWN_CHARACTERS else label[:_SHOWN_CHARACTERS] + "...")


def resolve_label_sets(
    texts: Sequence[str], names: tuple[str, ...] | None, locate: Callable[[int], str]
) -> tuple[tuple[str, ...], pa.Array]:
    """Map texts of labels, separated by `;` or `|`, to label names and lists of ids.

    Args:
        texts: (n,); an empty text means that no label applies.
        names: from a class file; None: the labels that occur, in alphabetical order.
        locate: returns the location of text i, for messages.

    Returns:
        The label names, and (n,) lists of ascending int32 ids.

    Raises:
        DataError: a label that is not in `names`, or no label in any sample.
    """
    sets = [sorted({part.strip() for part in _SEPARATOR.split(text)} - {""}) for text in texts]
    found = dict.fromkeys(label for labels in sets for label in labels)
    if not found:
        raise DataError(f"{locate(0)}: neither this nor any other sample has a label: there is nothing to learn")
    names = names or tuple(sorted(found))
    ids = {name: number for number, name in enumerate(names)}
    for label in found:
        if label not in ids:
            row = next(i for i, labels in enumerate(sets) if label in labels)
            raise DataError(f"{locate(row)}: label {_quote(label)} is not one of the {len(names)} in the class file")
    return names, pa.array([sorted(ids[label] for label in labels) for labels in sets], LABEL_IDS_TYPE)


def check_targets(samples: pa.Table, targets: Sequence[str], available: Sequence[str], source: str) -> None:
    """Check that the targets of a regression are metadata columns of finite numbers.

    Args:
        samples: all samples of a source.
        targets: the target columns.
        available: the names of all metadata columns.
        source: its name, for messages.

    Raises:
        ConfigError: no such column.
        DataError: a column of another type, or with nulls or numbers that are not finite.
    """
    for name in targets:
        if name not in available:
            hint = did_you_mean(name, available)
            raise ConfigError(
                f"{source}: no column {name!r} for a target; available: {', '.join(available) or 'none'}.{hint}"
            )
        column = samples[name]
        if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            raise DataError(f"{source}: target {name!r} is {column.type}, expected numbers")
        finite = np.isfinite(column.to_numpy())  # null becomes NaN
        if not finite.all():
            row = int(np.flatnonzero(~finite)[0])
            raise DataError(
                f"{source}: target {name!r} is {column[row].as_py()} for sample {samples['key'][row].as_py()!r} "
                f"({int((~finite).sum())} such samples): remove these samples or set a number"
            )
