"""The description of a packed directory (`Dataset`) and the position of every sample of a split (`Index`).

`dataset.json` describes the directory and is written last: a directory that has one is complete. Each split has an
Arrow IPC file that is memory-mapped: opening it costs the same for a thousand and for a billion samples, and processes
share its pages. Rows are sorted by shard, then offset. Columns:

    key        string
    shard      int32, position in `Dataset.shards`
    offset     int64, first byte of the image in the tar
    length     int64, size of the image in bytes
    ext        image format
    label      int64 class id; 0 for tasks without classes
    group      string, where the source has groups
    label_ids  multilabel only: ascending list of label ids
    ...        metadata; for regression this includes the targets
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from choral.core.errors import DataError, did_you_mean
from choral.core.files import check_local_path, write_atomic

FORMAT = "choral-shards-1"
DATASET_FILE = "dataset.json"
SPLITS = ("train", "val", "test")
EXT_TYPE = pa.dictionary(pa.int8(), pa.string())
CORE_COLUMNS = {
    "key": pa.string(),
    "shard": pa.int32(),
    "offset": pa.int64(),
    "length": pa.int64(),
    "ext": EXT_TYPE,
    "label": pa.int64(),
}
LABEL_IDS = "label_ids"
LABEL_IDS_TYPE = pa.list_(pa.int32())


@dataclass(frozen=True)
class Shard:
    """One tar: path relative to the directory (absolute for tars indexed in place), size, SHA-256, sample count."""

    path: str
    bytes: int
    sha256: str
    samples: int


@dataclass(frozen=True)
class Split:
    """One split: sample count, index file and its SHA-256, ids of its shards in row order, samples per class or label.

    `class_counts` is empty for regression.
    """

    samples: int
    index: str
    index_sha256: str
    shards: tuple[int, ...]
    class_counts: tuple[int, ...]


@dataclass(frozen=True)
class Dataset:
    """The description of a packed directory, stored as `dataset.json`."""

    folder: Path  # absolute
    name: str
    task: str  # multiclass, multilabel or regression
    classes: tuple[str, ...]  # names of the classes or labels; for regression, of the target columns
    shards: tuple[Shard, ...]
    splits: dict[str, Split]
    fingerprint: str  # hash of the contents: classes, shard checksums, index checksums
    plan_hash: str  # hash of the source and the options, by which a repeated pack is recognised; "plan" on disk
    source: dict[str, Any] = field(default_factory=dict)  # provenance, with citation and licence where known
    columns: dict[str, str] = field(default_factory=dict)  # index columns and their Arrow types

    @classmethod
    def open(cls, folder: str | Path) -> Dataset:
        """Read the description of a packed directory; no shard and no index is opened.

        Raises:
            DataError: the directory is missing or incomplete, or its description is damaged.
        """
        check_local_path(str(folder))
        path = Path(folder).absolute() / DATASET_FILE
        try:
            content = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(
                f"{folder}: not a packed directory (no {DATASET_FILE}): run `choral pack SOURCE {folder}`"
            ) from None
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read ({error}): pack again with --force") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            found = content.get("format") if isinstance(content, dict) else type(content).__name__
            raise DataError(f"{path}: format is {found!r}, expected {FORMAT!r}: pack again with this version of choral")
        try:
            return cls._from_json(path.parent, content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{path}: damaged ({type(error).__name__}: {error}): pack again with --force") from error

    @classmethod
    def _from_json(cls, folder: Path, content: dict[str, Any]) -> Dataset:
        shards = tuple(
            Shard(str(s["path"]), int(s["bytes"]), str(s["sha256"]), int(s["samples"])) for s in content["shards"]
        )
        splits = {
            str(name): Split(
                int(s["samples"]),
                str(s["index"]),
                str(s["index_sha256"]),
                tuple(int(i) for i in s["shards"]),
                tuple(int(n) for n in s["class_counts"]),
            )
            for name, s in content["splits"].items()
        }
        for name in [*(s.path for s in shards), *(s.index for s in splits.values())]:
            if ".." in PurePosixPath(name).parts:  # an untrusted description must not point outside its directory
                raise ValueError(f"path {name!r} leaves the directory")
        for split in splits.values():
            if any(not 0 <= i < len(shards) for i in split.shards):
                raise ValueError("a split refers to a shard that is not listed")
        return cls(
            folder=folder,
            name=str(content["name"]),
            task=str(content["task"]),
            classes=tuple(str(name) for name in content["classes"]),
            shards=shards,
            splits=splits,
            fingerprint=str(content["fingerprint"]),
            plan_hash=str(content.get("plan", "")),
            source=dict(content.get("source", {})),
            columns=dict(content.get("columns", {})),
        )

    def save(self) -> None:
        """Write `dataset.json` atomically."""
        content = {
            "format": FORMAT,
            "task": self.task,
            "name": self.name,
            "classes": list(self.classes),
            "source": self.source,
            "columns": self.columns,
            "shards": [vars(shard) for shard in self.shards],
            "splits": {name: vars(split) for name, split in self.splits.items()},
            "fingerprint": self.fingerprint,
            "plan": self.plan_hash,
        }
        text = json.dumps(content, indent=1, ensure_ascii=False, sort_keys=False) + "\n"
        write_atomic(self.folder / DATASET_FILE, text.encode())

    def shard_path(self, shard: int) -> Path:
        """Return the path of shard number `shard`."""
        return self.folder / self.shards[shard].path

    def check_files(self) -> None:
        """Check that every shard and index exists and that every shard has its recorded size; contents are not read.

        Raises:
            DataError: with the first file that is missing or has the wrong size.
        """
        for number, shard in enumerate(self.shards):
            path = self.shard_path(number)
            try:
                size = path.stat().st_size
            except OSError as error:
                raise DataError(
                    f"{path}: shard is missing ({error.strerror}): restore it or pack again with --force"
                ) from None
            if size != shard.bytes:
                raise DataError(
                    f"{path}: {size} bytes, expected {shard.bytes}: truncated or modified; pack again with --force"
                )
        for split in self.splits.values():
            if not (self.folder / split.index).is_file():
                raise DataError(f"{self.folder / split.index}: index is missing: pack again with --force")

    def summary(self) -> dict[str, Any]:
        """Return name, task, classes, fingerprint, source; and for each split samples, shards, bytes, class counts."""
        return {
            "name": self.name,
            "task": self.task,
            "classes": list(self.classes),
            "fingerprint": self.fingerprint,
            "source": self.source,
            "splits": {
                name: {
                    "samples": split.samples,
                    "shards": len(split.shards),
                    "bytes": sum(self.shards[i].bytes for i in split.shards),
                    "class_counts": dict(zip(self.classes, split.class_counts, strict=True))
                    if self.task != "regression"
                    else {},
                }
                for name, split in self.splits.items()
            },
        }


class Record(NamedTuple):
    """One sample: its key, the position of its image (shard id, offset and length in bytes), its format, its class id."""

    key: str
    shard: int
    offset: int
    length: int
    ext: str
    label: int


class Index:
    """The samples of one split, by row. Create it with `Index.open`. Picklable: a worker process maps the file again."""

    def __init__(self, dataset: Dataset, split: str, table: pa.Table) -> None:
        self.dataset = dataset
        self.split = split
        self._table = table

    @classmethod
    def open(cls, dataset: Dataset, split: str) -> Index:
        """Map the index of `split` into memory.

        Raises:
            DataError: no such split, or the index is missing, damaged or not the one that `dataset.json` describes.
        """
        if split not in dataset.splits:
            available = ", ".join(dataset.splits)
            raise DataError(
                f"{dataset.folder}: no split {split!r}; available: {available}.{did_you_mean(split, dataset.splits)}"
            )
        entry = dataset.splits[split]
        path = dataset.folder / entry.index
        try:
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"{path}: index cannot be read ({error}): pack again with --force") from error
        expected = CORE_COLUMNS | ({LABEL_IDS: LABEL_IDS_TYPE} if dataset.task == "multilabel" else {})
        wrong = [n for n, t in expected.items() if n not in table.column_names or table.schema.field(n).type != t]
        if wrong or table.num_rows != entry.samples:
            detail = f"wrong columns: {wrong}" if wrong else f"{table.num_rows} rows, expected {entry.samples}"
            raise DataError(f"{path}: not the index that {DATASET_FILE} describes ({detail}): pack again with --force")
        return cls(dataset, split, table)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without the data: the receiving process maps the same file."""
        return (Index.open, (self.dataset, self.split))

    def __len__(self) -> int:
        """Return the number of samples."""
        return int(self._table.num_rows)

    @property
    def table(self) -> pa.Table:
        """All columns, mapped into memory."""
        return self._table

    @cached_property
    def shard_sizes(self) -> NDArray[np.int64]:
        """(shards of the split,) int64: the samples of this split in each of its shards, in row order."""
        ids = np.asarray(self.dataset.splits[self.split].shards, dtype=np.int64)
        shard = self._numbers("shard")  # sorted: a binary search touches few pages
        return np.searchsorted(shard, ids, side="right") - np.searchsorted(shard, ids, side="left")

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """(n,) int64 class ids: a read-only view of the mapped file."""
        return self._numbers("label")

    @property
    def class_counts(self) -> tuple[int, ...]:
        """Samples per class or label; longer than `Dataset.classes` if the index holds ids out of range."""
        return count_classes(self._table, self.dataset.task, len(self.dataset.classes))

    def row(self, row: int) -> Record:
        """Return the record of `row`, 0 <= row < len(self)."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        keys, exts, shard, offset, length, label = self._columns
        return Record(
            keys[row].as_py(), int(shard[row]), int(offset[row]), int(length[row]), exts[row].as_py(), int(label[row])
        )

    @cached_property
    def _columns(self) -> tuple[Any, ...]:
        numbers = (self._numbers(name) for name in ("shard", "offset", "length", "label"))
        return (self._table["key"], self._table["ext"], *numbers)

    def keys(self, rows: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """Return the keys of `rows`, in the same order."""
        keys: list[str] = self._table["key"].take(pa.array(np.asarray(rows, dtype=np.int64))).to_pylist()
        return keys

    def column(self, name: str) -> NDArray[Any] | pa.Array:
        """Return a column: numbers without nulls as a NumPy array (n,), other columns as an Arrow array.

        Raises:
            DataError: no such column; the message lists the available ones.
        """
        if name not in self._table.column_names:
            available = ", ".join(self._table.column_names)
            hint = did_you_mean(name, self._table.column_names)
            raise DataError(
                f"{self.dataset.folder}: no column {name!r} in split {self.split}; available: {available}.{hint}"
            )
        column = self._table[name]
        if column.null_count == 0 and (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            return self._numbers(name)
        return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()

    def _numbers(self, name: str) -> NDArray[Any]:
        column = self._table[name]
        if column.num_chunks == 1:
            values: NDArray[Any] = column.chunk(0).to_numpy(zero_copy_only=True)
        else:  # several chunks exist only if the keys of a split exceed 2 GiB; this copies the column
            values = column.to_numpy()
        return values


def count_classes(samples: pa.Table, task: str, classes: int) -> tuple[int, ...]:
    """Return the number of samples of each class or label; () for regression.

    Args:
        samples: rows with the column `label`, or `label_ids` for multilabel.
        task: multiclass, multilabel or regression.
        classes: number of classes or labels.
    """
    if task == "regression":
        return ()
    ids = samples["label"] if task == "multiclass" else pc.list_flatten(samples[LABEL_IDS])
    return tuple(np.bincount(ids.to_numpy(), minlength=classes).tolist())


def write_index(path: Path, table: pa.Table) -> str:
    """Write the index of a split atomically and return its SHA-256; the module docstring lists the columns."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    data = sink.getvalue()
    write_atomic(path, data)
    return hashlib.sha256(data).hexdigest()


def compute_fingerprint(classes: Sequence[str], shards: Sequence[Shard], splits: dict[str, Split]) -> str:
    """Return the SHA-256 of class names, shard checksums and index checksums: equal for equal data."""
    parts = [list(classes), [s.sha256 for s in shards], {name: s.index_sha256 for name, s in sorted(splits.items())}]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
