"""The prediction ledger: the table of predictions that an evaluation writes, and that combining, scoring and analysis read.

A Parquet file with one row per sample, sorted by key. Its columns are `key`, `label`, and one column of float32
predictions, "MEMBER/VIEW", for every member and view.

| task | label | predictions |
|---|---|---|
| multiclass | class id | probabilities of the classes |
| multilabel | 0 or 1 for each label | a probability for each label |
| regression | a number for each target | a number for each target |

The JSON under the schema's metadata key `choral` describes the columns (`LedgerMeta`). Reading one column does not read the
bytes of the others.

The ranks of an evaluation write parts: Arrow IPC files with some chunks of the split each. Merging maps them into memory
and goes block by block, so it needs the memory of one block, not of the ledger. The merged file does not depend on the
number of ranks or parts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from choral.core.errors import DataError, did_you_mean
from choral.inference.ledger_parts import (
    PART_KEY,
    Part,
    atomic_writer,
    check_and_sort_rows,
    open_parts,
    part_path,
    single_array,
)
from choral.inference.prediction_checks import check_labels, check_predictions

FORMAT = "choral-ledger-1"
_META_KEY = b"choral"
_BLOCK_BYTES = 8 << 20  # of one column in one row group: about 2,000 rows of 1,000 classes


@dataclass(frozen=True)
class LedgerMeta:
    """The metadata of a ledger.

    Attributes:
        classes: names of the classes, labels or targets, in the order of the predictions.
        members: names, in the order of the columns.
        views: of the columns: "identity", "tta" (average of the predictions over `tta_views`), or stored views by name.
        split: name of the evaluated split, with "@NAME" for other data than the run's own.
        dataset: fingerprint of the packed data set.
        evaluation: hash of the models and options; parts with different hashes are never merged.
        tta_views: the views that the "tta" columns average.
        task: multiclass (also if the file does not say), multilabel or regression.
        average: how "tta" averages its views; see `EvaluateConfig.average`.
        features: number of feature values stored beside each column of predictions; 0: none.
        skipped: number of samples without a row, because they could not be read or no model was to predict them: in a
            held-out ledger, samples that every model was trained on; in a probe ledger, samples that were not selected.
    """

    classes: tuple[str, ...]
    members: tuple[str, ...]
    views: tuple[str, ...]
    split: str
    dataset: str
    evaluation: str = ""
    tta_views: tuple[str, ...] = ()
    task: str = "multiclass"
    average: str = "probabilities"
    features: int = 0
    skipped: int = field(default=0, compare=False)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the prediction columns, in the order of the file."""
        return tuple(f"{member}/{view}" for member in self.members for view in self.views)

    def to_json(self) -> str:
        """Return the JSON that is stored in the schema's metadata."""
        return json.dumps({"format": FORMAT, **asdict(self)}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> LedgerMeta:
        """Parse what `to_json` wrote; ValueError, KeyError or TypeError if it is something else."""
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}, expected {FORMAT!r}")
        values: dict[str, Any] = {}
        defaults = {"task": "multiclass", "average": "probabilities", "features": 0}  # older ledgers lack these keys
        for item in fields(cls):
            value = content.get(item.name, defaults[item.name]) if item.name in defaults else content[item.name]
            values[item.name] = tuple(value) if isinstance(value, list) else value
        return cls(**values)


def feature_column_name(view: str) -> str:
    """Return the name of a view's feature column, to use in place of the view's name."""
    return f"{view}:features"


def build_ledger_table(
    meta: LedgerMeta,
    keys: Sequence[str],
    labels: NDArray[Any],
    predictions: Mapping[tuple[str, str], NDArray[np.float32]],
) -> pa.Table:
    """Build rows of a ledger as an Arrow table, in the given order.

    Args:
        meta: of the ledger.
        keys: (n,) of the samples; n may be 0.
        labels: (n,) int64, or (n, labels or targets) float32; see `Targets.take`.
        predictions: (member, view) to (n, classes) float32, for each column of `meta`; with features also
            (member, `feature_column_name(view)`) to (n, features).
    """
    schema = _schema(meta)
    columns = [pa.array(keys, pa.string()), _label_column(meta, labels)]
    for member in meta.members:
        for view in meta.views:
            values = np.ascontiguousarray(predictions[member, view], dtype=np.float32)
            assert values.shape == (len(keys), len(meta.classes)), (member, view, values.shape)
            columns.append(_as_lists(values))
    if meta.features:
        features = (predictions[member, feature_column_name(view)] for member in meta.members for view in meta.views)
        columns += [_as_lists(np.asarray(values, dtype=np.float16)) for values in features]
    return pa.Table.from_arrays(columns, schema=schema)


def write_part(folder: Path, first: int, stop: int, table: pa.Table, skipped: Sequence[str] = ()) -> Path:
    """Write the rows of consecutive chunks to a file in the directory of parts, atomically, and return its path.

    Args:
        folder: for the parts of this ledger only; created if it does not exist.
        first, stop: the chunks, `stop` not included.
        table: from `build_ledger_table`.
        skipped: keys of samples that could not be read: they have no row, and are counted in the ledger.

    Raises:
        DataError: the file cannot be written.
    """
    part = json.dumps({"first": first, "stop": stop, "skipped": list(skipped)})
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), PART_KEY: part.encode()})
    path = part_path(folder, first, stop)
    with atomic_writer(path) as file, pa.ipc.new_file(file, table.schema) as writer:
        # As one record batch, so that columns can be memory-mapped and indexed as single arrays.
        writer.write_table(table.combine_chunks())
    return path


def merge_parts(
    folder: Path, chunks: int, expected_keys: Sequence[str], out: Path, meta: LedgerMeta, left_out: Sequence[str] = ()
) -> None:
    """Merge the parts of all chunks into one ledger, sorted by key and written atomically, and remove the parts.

    Args:
        folder: that `write_part` wrote to.
        chunks: number of chunks; each must be in exactly one part.
        expected_keys: of all samples of the split; each must have one row, or be skipped, or be left out.
        out: path of the ledger, RUN/predictions/SPLIT.parquet.
        meta: of the ledger; parts with other metadata are left over from an earlier evaluation.
        left_out: keys of samples that no model was to predict; they are counted as skipped.

    Raises:
        DataError: a part is missing, stale or damaged; a key is missing, duplicated or not in the split; a label does not
            fit the task; predictions are not finite, or not between 0 and 1, or do not sum to 1 within 0.001. The message
            names chunks or keys.
    """
    parts = [check_part(part, meta) for part in open_parts(folder, chunks)]
    keys, order = check_and_sort_rows(parts, expected_keys, left_out)
    meta = replace(meta, skipped=len(left_out) + sum(len(part.skipped) for part in parts))
    schema = _schema(meta)
    split_bytes = [f"{name}.list.element" for name in meta.columns]  # makes the file a tenth smaller
    with (
        atomic_writer(out) as file,
        pq.ParquetWriter(
            file, schema, compression="zstd", use_dictionary=False, use_byte_stream_split=split_bytes
        ) as writer,
    ):
        step = int(np.clip(_BLOCK_BYTES // (4 * len(meta.classes)), 256, 65536))
        for start in range(0, len(order), step):
            rows = order[start : start + step]
            writer.write_table(_merged_block(parts, meta, schema, keys.slice(start, step), rows), row_group_size=step)
    for path in folder.glob("part-*"):
        path.unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def write_combined(
    out: Path, meta: LedgerMeta, keys: Sequence[str], labels: NDArray[Any], blocks: Iterable[NDArray[np.float32]]
) -> None:
    """Write a ledger with one prediction column, block by block and atomically.

    Args:
        out: path of the ledger.
        meta: with one member and one view.
        keys, labels: (N,) of all samples, as in a ledger.
        blocks: (n, classes) float32 predictions of consecutive samples.

    Raises:
        DataError: the file cannot be written, or the predictions do not fit the task.
    """
    (name,) = meta.columns
    schema, start = _schema(meta), 0
    split_bytes = [f"{name}.list.element"]
    with (
        atomic_writer(out) as file,
        pq.ParquetWriter(
            file, schema, compression="zstd", use_dictionary=False, use_byte_stream_split=split_bytes
        ) as writer,
    ):
        for values in blocks:
            rows = slice(start, start + len(values))
            block_keys = pa.array(keys[rows], pa.string())
            check_predictions(values, meta.task, name, block_keys)
            columns = [block_keys, _label_column(meta, labels[rows]), _as_lists(values)]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=max(len(values), 1))
            start += len(values)


class Ledger:
    """A merged ledger, open for reading. Each method reads only the columns that it needs.

    Attributes:
        path: of the file.
        meta: describes its columns.
    """

    def __init__(self, path: Path, file: pq.ParquetFile, meta: LedgerMeta) -> None:
        self.path, self.meta, self._file = path, meta, file

    @classmethod
    def open(cls, path: Path) -> Ledger:
        """Open a ledger, reading only its footer. DataError if it is missing, damaged or something else."""
        if not path.is_file():
            raise DataError(f"{path}: no predictions here; run `choral evaluate` first")
        try:
            file = pq.ParquetFile(path)
            meta = LedgerMeta.from_json(file.schema_arrow.metadata[_META_KEY])
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}: not a choral ledger, or damaged ({error}); run `choral evaluate` again"
            ) from error
        return cls(path, file, meta)

    def __len__(self) -> int:
        """Return the number of samples."""
        return int(self._file.metadata.num_rows)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, labels or targets, in the order of the predictions."""
        return self.meta.classes

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the members, in the order of the columns and of the first axis of `blocks`."""
        return self.meta.members

    @property
    def views(self) -> tuple[str, ...]:
        """Views for which every member has a column."""
        return self.meta.views

    @cached_property
    def keys(self) -> list[str]:
        """(N,) keys of the samples, sorted."""
        return [str(key) for key in self._file.read(columns=["key"]).column("key").to_pylist()]

    @cached_property
    def labels(self) -> NDArray[Any]:
        """(N,) int64 class of each sample; (N, labels) float32 0 and 1; or (N, targets) float32 numbers."""
        column = single_array(self._file.read(columns=["label"]).column("label"))
        return _label_array(self.meta, column)

    def predictions(self, member: str, view: str = "identity") -> NDArray[np.float32]:
        """Return the (N, classes) float32 predictions of one member under one view.

        Raises:
            DataError: there is no such member or view; the message names the nearest one.
        """
        self._require("member", member, self.members)
        self._require("view", view, self.views)
        values = np.empty((len(self), len(self.classes)), dtype=np.float32)
        start = 0
        for group in range(self._file.num_row_groups):  # group by group: one copy of the column, not two
            block = self._read_group(group, [f"{member}/{view}"])[0]
            values[start : start + len(block)] = block
            start += len(block)
        return values

    def features(self, member: str, view: str = "identity") -> NDArray[np.float32]:
        """Return the (N, features) float32 features of one member under one view, from a ledger that stores features."""
        self._require("member", member, self.members)
        self._require("view", view, self.views)
        assert self.meta.features, f"{self.path} stores no features"
        column = self._file.read(columns=[f"{member}/{feature_column_name(view)}"]).column(0)
        return _as_array(single_array(column), self.meta.features).astype(np.float32)

    def blocks(self, view: str = "identity", members: Sequence[str] | None = None) -> Iterator[NDArray[np.float32]]:
        """Yield (members, n, classes) float32 predictions of consecutive rows, all rows in turn.

        Memory is bounded by one block (some MB per member), whatever the number of samples.

        Args:
            view: of all members.
            members: to read, in this order; None: all.

        Raises:
            DataError: there is no such member or view, or the file is damaged.
        """
        self._require("view", view, self.views)
        names = self.members if members is None else members
        for name in names:
            self._require("member", name, self.members)
        for group in range(self._file.num_row_groups):
            yield self._read_group(group, [f"{member}/{view}" for member in names])

    def _read_group(self, group: int, names: list[str]) -> NDArray[np.float32]:
        try:
            table = self._file.read_row_group(group, columns=names)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.path}: damaged ({error}); run `choral evaluate` again") from error
        values = np.empty((len(names), len(table), len(self.classes)), dtype=np.float32)
        for target, name in zip(values, names, strict=True):
            target[:] = _as_array(single_array(table.column(name)), len(self.classes))
        return values

    def _require(self, kind: str, name: str, available: Sequence[str]) -> None:
        if name not in available:
            raise DataError(
                f"{self.path}: no {kind} {name!r}.{did_you_mean(name, available)} It has: {', '.join(available)}"
            )


def _schema(meta: LedgerMeta) -> pa.Schema:
    element = pa.field("element", pa.float32(), nullable=False)
    lists = pa.list_(element, len(meta.classes))
    label = pa.int64() if meta.task == "multiclass" else lists
    columns = [pa.field("key", pa.string(), nullable=False), pa.field("label", label, nullable=False)]
    columns += [pa.field(name, lists, nullable=False) for name in meta.columns]
    if meta.features:
        features = pa.list_(pa.field("element", pa.float16(), nullable=False), meta.features)
        columns += [pa.field(feature_column_name(name), features, nullable=False) for name in meta.columns]
    return pa.schema(columns, metadata={_META_KEY: meta.to_json().encode()})


def _label_column(meta: LedgerMeta, labels: NDArray[Any]) -> pa.Array:
    if meta.task == "multiclass":
        return pa.array(np.asarray(labels, dtype=np.int64))
    return _as_lists(np.ascontiguousarray(labels, dtype=np.float32).reshape(-1, len(meta.classes)))


def _label_array(meta: LedgerMeta, column: pa.Array) -> NDArray[Any]:
    if meta.task != "multiclass":
        return _as_array(column, len(meta.classes))
    labels: NDArray[np.int64] = np.asarray(np.from_dlpack(column), np.int64)
    return labels


def _as_lists(values: NDArray[np.floating]) -> pa.Array:
    numbers = pa.array(values.reshape(-1))
    element = pa.field("element", numbers.type, nullable=False)
    return pa.FixedSizeListArray.from_arrays(numbers, type=pa.list_(element, values.shape[1]))


def _as_array(lists: pa.Array, width: int) -> NDArray[np.float32]:
    values = np.asarray(np.from_dlpack(lists.flatten()))  # `to_numpy` imports pandas, if that is installed
    return values.reshape(-1, width)


def check_part(part: Part, meta: LedgerMeta) -> Part:
    """Return the part if it belongs to this evaluation; otherwise raise DataError with the keys that differ."""
    try:
        part_meta = LedgerMeta.from_json(part.table.schema.metadata[_META_KEY])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{part.path}: not a part of a ledger ({error}); evaluate again") from error
    if part_meta != meta:
        different = [
            item.name
            for item in fields(meta)
            if item.compare and getattr(part_meta, item.name) != getattr(meta, item.name)
        ]
        raise DataError(
            f"{part.path}: holds predictions of an earlier evaluation (different: {', '.join(different)}); evaluate again"
        )
    return part


def _merged_block(
    parts: Sequence[Part], meta: LedgerMeta, schema: pa.Schema, keys: pa.Array, rows: NDArray[np.int64]
) -> pa.Table:
    """Gather rows, given by their positions in the concatenated parts, and check them."""
    ends = np.cumsum([len(part.table) for part in parts])
    owners = np.searchsorted(ends, rows, side="right")
    picks = []  # for each part: the positions of its rows in the block, and in the part
    for number, part in enumerate(parts):
        places = np.flatnonzero(owners == number)
        if len(places):
            picks.append((part, places, rows[places] - (ends[number] - len(part.table))))
    single = meta.task == "multiclass"
    shape = (len(rows),) if single else (len(rows), len(meta.classes))
    labels = np.empty(shape, dtype=np.int64 if single else np.float32)
    for part, places, local in picks:
        labels[places] = _label_array(meta, part.column("label"))[local]
    check_labels(labels, meta.task, len(meta.classes), keys)
    columns = [keys, _label_column(meta, labels)]
    for name in meta.columns:
        values = np.empty((len(rows), len(meta.classes)), dtype=np.float32)
        for part, places, local in picks:
            values[places] = _as_array(part.column(name), len(meta.classes))[local]
        check_predictions(values, meta.task, name, keys)
        columns.append(_as_lists(values))
    for name in map(feature_column_name, meta.columns if meta.features else ()):
        features = np.empty((len(rows), meta.features), dtype=np.float16)
        for part, places, local in picks:
            features[places] = _as_array(part.column(name), meta.features)[local]
        check_predictions(features, "regression", name, keys)
        columns.append(_as_lists(features))
    return pa.Table.from_arrays(columns, schema=schema)
