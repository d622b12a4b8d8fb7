"""The prediction ledger: what an evaluation leaves behind, and all that voting, scoring and analysis read.

A Parquet file, one row a sample, sorted by key: `key`, `label`, and for every member and view one column "MEMBER/VIEW"
of float32 predictions. By the task these are, and the label is: multiclass, probabilities over the classes, and a class id;
multilabel, a probability for each label, and 0 or 1 for each; regression, the numbers. The JSON under the schema's
metadata key `choral` says what the columns mean.
Reading one column leaves the bytes of the others alone.

The ranks of an evaluation write parts, Arrow IPC files of some chunks of the split each: they are mapped into memory and
merged block by block, so that a merge needs the memory of one block, not of the ledger. The merged file does not depend on
the number of ranks or parts.
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
from choral.inference.ledger_parts import PART_KEY, Part, checked_rows, open_all, part_path, single_array, written_aside

FORMAT = "choral-ledger-1"
_META_KEY = b"choral"
_BLOCK_BYTES = 8 << 20  # of one column in one row group: some thousand rows of 1,000 classes
NETWORK_HINT = "; was the network trained with NaN?"
_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class LedgerMeta:
    """What a ledger holds.

    Attributes:
        classes: names of the classes, labels or targets, in the order of the predictions.
        members: names, in the order of the columns.
        views: of the columns: "identity", "tta" (mean of the predictions over `tta_views`), or kept views by name.
        split: that was evaluated.
        dataset: fingerprint of the packed data set.
        evaluation: fingerprint of what predicted (weights, options): a part with another one is never merged.
        tta_views: the views that the "tta" columns average.
        task: multiclass (as in all ledgers of before there were others), multilabel or regression.
        average: what "tta" is of the predictions under its views; see `EvaluateConfig.average`.
        features: numbers that are kept of what goes into the last layer, beside each column of predictions; 0: none.
        skipped: samples that have no row because they could not be read, or nobody was asked about them: among held-out
            predictions those that everybody has seen, among probes all but a part of many.
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
        """Names of the columns of predictions, in the order of the file."""
        return tuple(f"{member}/{view}" for member in self.members for view in self.views)

    def to_json(self) -> str:
        """Return the JSON that stands in the schema's metadata."""
        return json.dumps({"format": FORMAT, **asdict(self)}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> LedgerMeta:
        """Read what `to_json` wrote; ValueError, KeyError or TypeError where it is something else."""
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}, expected {FORMAT!r}")
        values: dict[str, Any] = {}
        later = {"task": "multiclass", "average": "probabilities", "features": 0}  # what older ledgers do not say
        for item in fields(cls):
            value = content.get(item.name, later[item.name]) if item.name in later else content[item.name]
            values[item.name] = tuple(value) if isinstance(value, list) else value
        return cls(**values)


def features_of(view: str) -> str:
    """Return what stands for a view in the name of the column of its features."""
    return f"{view}:features"


def ledger_table(
    meta: LedgerMeta,
    keys: Sequence[str],
    labels: NDArray[Any],
    predictions: Mapping[tuple[str, str], NDArray[np.float32]],
) -> pa.Table:
    """Return rows of a ledger as an Arrow table, in the order given.

    Args:
        meta: what the ledger holds.
        keys: (n,) of the samples; n may be 0.
        labels: (n,) int64, or (n, labels or targets) float32; see `Targets.of`.
        predictions: (member, view) to (n, classes) float32, one entry for each of the meta's columns; with features also
            (member, `features_of(view)`) to (n, features).
    """
    schema = _schema(meta)
    columns = [pa.array(keys, pa.string()), _label_column(meta, labels)]
    for member in meta.members:
        for view in meta.views:
            values = np.ascontiguousarray(predictions[member, view], dtype=np.float32)
            assert values.shape == (len(keys), len(meta.classes)), (member, view, values.shape)
            columns.append(_as_lists(values))
    if meta.features:
        few = (predictions[member, features_of(view)] for member in meta.members for view in meta.views)
        columns += [_as_lists(np.asarray(values, dtype=np.float16)) for values in few]
    return pa.Table.from_arrays(columns, schema=schema)


def write_part(folder: Path, first: int, stop: int, table: pa.Table, skipped: Sequence[str] = ()) -> Path:
    """Write the rows of consecutive chunks into the folder of parts, atomically.

    Args:
        folder: for the parts of this ledger alone, made where it does not exist.
        first, stop: the chunks that are in it, `stop` not included.
        table: of `ledger_table`.
        skipped: keys of their samples that could not be read: they need no row, and are counted in the ledger.

    Raises:
        DataError: the file cannot be written.
    """
    part = json.dumps({"first": first, "stop": stop, "skipped": list(skipped)})
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), PART_KEY: part.encode()})
    path = part_path(folder, first, stop)
    with written_aside(path) as file, pa.ipc.new_file(file, table.schema) as writer:
        # One batch: its columns can be mapped and indexed as single arrays.
        writer.write_table(table.combine_chunks())
    return path


def merge_parts(
    folder: Path, chunks: int, expected_keys: Sequence[str], out: Path, meta: LedgerMeta, left_out: Sequence[str] = ()
) -> None:
    """Merge the parts of all chunks into one ledger, sorted by key and written atomically, and remove the parts.

    Args:
        folder: that `write_part` wrote to.
        chunks: to expect; each must lie in one part.
        expected_keys: of all samples of the split; each must have one row, or have been skipped, or left out.
        out: the ledger, RUN/predictions/SPLIT.parquet.
        meta: of the ledger; parts that hold something else are left-overs of an earlier evaluation.
        left_out: keys of samples that nobody was asked about; they are counted as skipped.

    Raises:
        DataError: a part is missing, stale or damaged; a key is missing, double or not of the split; a label is not what
            the task has; predictions that are not finite, or as probabilities not from 0 to 1, or of classes do not sum
            to 1 within 0.001. Chunks or keys are named.
    """
    parts = [own_part(part, meta) for part in open_all(folder, chunks)]
    keys, order = checked_rows(parts, expected_keys, left_out)
    meta = replace(meta, skipped=len(left_out) + sum(len(part.skipped) for part in parts))
    schema = _schema(meta)
    split_bytes = [f"{name}.list.element" for name in meta.columns]  # groups equal exponents: a tenth smaller
    with (
        written_aside(out) as file,
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
    """Write a ledger of one column, block by block and atomically.

    Args:
        out: the ledger.
        meta: of one member and one view.
        keys, labels: (N,) of all samples, as a ledger has them.
        blocks: (n, classes) float32 predictions of consecutive samples.

    Raises:
        DataError: the file cannot be written, or predictions are none of the task.
    """
    (name,) = meta.columns
    schema, start = _schema(meta), 0
    split_bytes = [f"{name}.list.element"]
    with (
        written_aside(out) as file,
        pq.ParquetWriter(
            file, schema, compression="zstd", use_dictionary=False, use_byte_stream_split=split_bytes
        ) as writer,
    ):
        for values in blocks:
            rows = slice(start, start + len(values))
            own = pa.array(keys[rows], pa.string())
            check_predictions(values, meta.task, name, own)
            columns = [own, _label_column(meta, labels[rows]), _as_lists(values)]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=max(len(values), 1))
            start += len(values)


class Ledger:
    """A merged ledger, opened for reading; columns are read when asked for, one at a time.

    Attributes:
        path: of the file.
        meta: what it holds.
    """

    def __init__(self, path: Path, file: pq.ParquetFile, meta: LedgerMeta) -> None:
        self.path, self.meta, self._file = path, meta, file

    @classmethod
    def open(cls, path: Path) -> Ledger:
        """Open a ledger; only its footer is read. DataError if it is missing, damaged or something else."""
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
        """Names of the members."""
        return self.meta.members

    @property
    def views(self) -> tuple[str, ...]:
        """Views that every member has a column for."""
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
            DataError: no such member or view; the nearest name is shown.
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
        """Return the (N, features) float32 features of one member under one view; of a ledger that keeps them."""
        self._require("member", member, self.members)
        self._require("view", view, self.views)
        assert self.meta.features, f"{self.path} keeps no features"
        column = self._file.read(columns=[f"{member}/{features_of(view)}"]).column(0)
        return _as_array(single_array(column), self.meta.features).astype(np.float32)

    def blocks(self, view: str = "identity", members: Sequence[str] | None = None) -> Iterator[NDArray[np.float32]]:
        """Yield (members, n, classes) float32 predictions of consecutive rows, all rows in turn.

        Memory is bounded by one block (some MB a member) however many samples there are.

        Args:
            view: of all of them.
            members: whose columns are read, in this order; None: all.

        Raises:
            DataError: no such member or view, or the file is damaged.
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

    def _require(self, kind: str, name: str, known: Sequence[str]) -> None:
        if name not in known:
            raise DataError(f"{self.path}: no {kind} {name!r}.{did_you_mean(name, known)} It has: {', '.join(known)}")


def _schema(meta: LedgerMeta) -> pa.Schema:
    element = pa.field("element", pa.float32(), nullable=False)
    lists = pa.list_(element, len(meta.classes))
    label = pa.int64() if meta.task == "multiclass" else lists
    columns = [pa.field("key", pa.string(), nullable=False), pa.field("label", label, nullable=False)]
    columns += [pa.field(name, lists, nullable=False) for name in meta.columns]
    if meta.features:
        few = pa.list_(pa.field("element", pa.float16(), nullable=False), meta.features)
        columns += [pa.field(features_of(name), few, nullable=False) for name in meta.columns]
    return pa.schema(columns, metadata={_META_KEY: meta.to_json().encode()})


def _label_column(meta: LedgerMeta, labels: NDArray[Any]) -> pa.Array:
    if meta.task == "multiclass":
        return pa.array(np.asarray(labels, dtype=np.int64))
    return _as_lists(np.ascontiguousarray(labels, dtype=np.float32).reshape(-1, len(meta.classes)))


def _label_array(meta: LedgerMeta, column: pa.Array) -> NDArray[Any]:
    if meta.task != "multiclass":
        return _as_array(column, len(meta.classes))
    labels: NDArray[np.int64] = column.to_numpy()
    return labels


def _as_lists(values: NDArray[np.floating]) -> pa.Array:
    numbers = pa.array(values.reshape(-1))
    element = pa.field("element", numbers.type, nullable=False)
    return pa.FixedSizeListArray.from_arrays(numbers, type=pa.list_(element, values.shape[1]))


def _as_array(lists: pa.Array, width: int) -> NDArray[np.float32]:
    values: NDArray[np.float32] = lists.flatten().to_numpy()
    return values.reshape(-1, width)


def own_part(part: Part, meta: LedgerMeta) -> Part:
    """Return the part if it belongs to this evaluation; DataError, saying what is different, where it does not."""
    try:
        found = LedgerMeta.from_json(part.table.schema.metadata[_META_KEY])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{part.path}: not a part of a ledger ({error}); evaluate again") from error
    if found != meta:
        other = [
            item.name for item in fields(meta) if item.compare and getattr(found, item.name) != getattr(meta, item.name)
        ]
        raise DataError(
            f"{part.path}: holds no predictions of this evaluation, but of an earlier one"
            f" (other {', '.join(other)}); evaluate again"
        )
    return part


def _merged_block(
    parts: Sequence[Part], meta: LedgerMeta, schema: pa.Schema, keys: pa.Array, rows: NDArray[np.int64]
) -> pa.Table:
    """Gather rows, given by their position in the parts laid end to end, and check them."""
    ends = np.cumsum([len(part.table) for part in parts])
    owners = np.searchsorted(ends, rows, side="right")
    picks = []  # of each part: where its rows go in the block, and which rows of the part they are
    for number, part in enumerate(parts):
        places = np.flatnonzero(owners == number)
        if len(places):
            picks.append((part, places, rows[places] - (ends[number] - len(part.table))))
    single = meta.task == "multiclass"
    shape = (len(rows),) if single else (len(rows), len(meta.classes))
    labels = np.empty(shape, dtype=np.int64 if single else np.float32)
    for part, places, local in picks:
        labels[places] = _label_array(meta, part.column("label"))[local]
    _check_labels(labels, meta, keys)
    columns = [keys, _label_column(meta, labels)]
    for name in meta.columns:
        values = np.empty((len(rows), len(meta.classes)), dtype=np.float32)
        for part, places, local in picks:
            values[places] = _as_array(part.column(name), len(meta.classes))[local]
        check_predictions(values, meta.task, name, keys)
        columns.append(_as_lists(values))
    for name in map(features_of, meta.columns if meta.features else ()):
        few = np.empty((len(rows), meta.features), dtype=np.float16)
        for part, places, local in picks:
            few[places] = _as_array(part.column(name), meta.features)[local]
        check_predictions(few, "regression", name, keys)
        columns.append(_as_lists(few))
    return pa.Table.from_arrays(columns, schema=schema)


def _check_labels(labels: NDArray[Any], meta: LedgerMeta, keys: pa.Array) -> None:
    if meta.task == "multiclass":
        good, expected = (labels >= 0) & (labels < len(meta.classes)), f"0 to {len(meta.classes) - 1}"
    elif meta.task == "multilabel":
        good, expected = ((labels == 0) | (labels == 1)).all(axis=1), "0 or 1 for each"
    else:
        good, expected = np.isfinite(labels).all(axis=1), "finite numbers"
    if not good.all():
        row = int(np.flatnonzero(~good)[0])
        raise DataError(f"sample {keys[row].as_py()!r}: label {labels[row]}, expected {expected}; evaluate again")


def check_predictions(values: NDArray[np.floating], task: str, name: str, keys: pa.Array) -> None:
    """Check (n, classes) predictions called `name`; DataError naming the first sample whose are none of the task."""
    good = np.isfinite(values).all(axis=1)
    if task == "multiclass":
        with np.errstate(invalid="ignore"):  # infinities of both signs
            sums = values.sum(axis=1, dtype=np.float64)
        good &= (values >= 0).all(axis=1) & (np.abs(sums - 1) <= _SUM_TOLERANCE)
    elif task == "multilabel":
        good &= ((values >= 0) & (values <= 1)).all(axis=1)
    if good.all():
        return
    row = int(np.flatnonzero(~good)[0])
    found = f"smallest {values[row].min():.6g}, largest {values[row].max():.6g}"
    if task == "multiclass":
        problem = f"is no probability distribution (sum {sums[row]:.6g}, {found}"
    else:
        problem = f"holds no {'probabilities' if task == 'multilabel' else 'finite numbers'} ({found}"
    raise DataError(
        f"sample {keys[row].as_py()!r}: {name} {problem}; {int((~good).sum())} such samples nearby){NETWORK_HINT}"
    )
