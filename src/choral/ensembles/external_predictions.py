"""Predictions of other tools on the same samples: CSV and Parquet files, and ledgers of other choral runs.

A file has a column `key` and one prediction column for each class (label, target), named like it; other columns are
ignored. The keys must be those of the run's own ledger, in any order.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from choral.config.fields import NAME_PATTERN
from choral.core.errors import ConfigError, DataError, did_you_mean
from choral.core.files import check_local_path, compute_sha256
from choral.ensembles.rules import average_views
from choral.inference.ledger import Ledger
from choral.inference.prediction_checks import NAN_HINT, check_predictions

KEY = "key"
_MAX_LISTED_COLUMNS = 8
_COLUMN_KIND = {"multiclass": "class", "multilabel": "label", "regression": "target"}
_EXPECTED = {
    "multiclass": "probabilities of all classes, 0 or more and summing to 1 to within 0.001 (not logits or percentages; if "
    "they are rounded, write more digits)",
    "multilabel": "probabilities, 0 to 1",
    "regression": "finite numbers",
}


@dataclass(frozen=True)
class ExternalPredictions:
    """Predictions of another tool, as a member.

    Attributes:
        name: of the member.
        path, sha256: of the file that was read.
        predictions: (N, classes) float32, in the order of the run's ledger.
    """

    name: str
    path: Path
    sha256: str
    predictions: NDArray[np.float32]


def read_external_predictions(
    argument: str, ledger: Ledger, views: Sequence[str], view_weights: Sequence[float] = ()
) -> list[ExternalPredictions]:
    """Read predictions to be combined with those of a ledger.

    Args:
        argument: FILE, or NAME=FILE; the default name is the file's stem. Members of a choral ledger are called NAME, or
            NAME.MEMBER if there are several.
        ledger: whose samples and classes the file must have.
        views: averaged if the file is a choral ledger; predictions of other tools have no views.
        view_weights: of these views; empty: equal.

    Raises:
        ConfigError: an invalid name, or another kind of file.
        DataError: names the file and the column, row or keys: other keys or classes, duplicate keys, values that are not
            numbers, or no valid predictions of the task.
    """
    name, path = _parse_argument(argument)
    checksum = compute_sha256(path)
    if path.suffix == ".csv":
        predictions = _predictions_from_table(path, _read_csv(path, ledger), ledger)
        return [ExternalPredictions(name, path, checksum, predictions)]
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {_first_line(error)}") from error
    if b"choral" in (schema.metadata or {}):
        return [
            ExternalPredictions(member, path, checksum, predictions)
            for member, predictions in _read_ledger(name, path, ledger, views, view_weights)
        ]
    _check_columns(path, schema.names, ledger)
    table = pq.read_table(path, columns=[KEY, *ledger.classes])
    return [ExternalPredictions(name, path, checksum, _predictions_from_table(path, table, ledger))]


def parse_predictions_path(argument: str) -> Path:
    """Return the file of FILE or NAME=FILE."""
    name, separator, file = argument.partition("=")
    return Path(file if separator and "/" not in name else argument)


def _parse_argument(argument: str) -> tuple[str, Path]:
    path = parse_predictions_path(argument)
    name = argument.partition("=")[0] if str(path) != str(Path(argument)) else ""
    check_local_path(str(path))
    if path.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"{path}: expected a .csv or .parquet file of predictions")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    name = name or path.stem
    if NAME_PATTERN.fullmatch(name) is None:
        raise ConfigError(
            f"{path}: '{name}' is not a valid member name: use letters, digits, '.', '_' and '-', or choose one with "
            f"NAME={path}"
        )
    return name, path


def _read_csv(path: Path, ledger: Ledger) -> pa.Table:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header = next(csv.reader(file), [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    _check_columns(path, header, ledger)
    types = {KEY: pa.string(), **dict.fromkeys(ledger.classes, pa.float32())}
    try:
        return pa.csv.read_csv(
            path,
            read_options=pa.csv.ReadOptions(use_threads=False),  # with threads, errors do not name the row
            parse_options=pa.csv.ParseOptions(newlines_in_values=True),
            convert_options=pa.csv.ConvertOptions(column_types=types, include_columns=list(types)),
        )
    except (pa.ArrowException, OSError) as error:
        message = re.sub(r"In CSV column #(\d+)", lambda m: f"column {header[int(m[1])]!r}", _first_line(error))
        raise DataError(f"{path}: cannot be read: {message}") from error


def _check_columns(path: Path, names: Sequence[str], ledger: Ledger) -> None:
    for name in (KEY, *ledger.classes):
        if name not in names:
            kind = "with the samples' keys" if name == KEY else f"for {_COLUMN_KIND[ledger.meta.task]} {name!r}"
            near = did_you_mean(name, names)
            listed = ", ".join(names[:_MAX_LISTED_COLUMNS]) or "none"
            raise DataError(f"{path}: no column {name!r} {kind}.{near} It has: {listed}")
        if list(names).count(name) > 1:
            raise DataError(f"{path}: column {name!r} occurs twice")


def _predictions_from_table(path: Path, table: pa.Table, ledger: Ledger) -> NDArray[np.float32]:
    """Return the (n, classes) predictions of a table, one row per sample of the ledger and in its order.

    Raises:
        DataError: a key or a value is missing, a column is not numeric, or the values are not predictions of the task.
    """
    if table.column(KEY).null_count:
        raise DataError(f"{path}: {table.column(KEY).null_count} rows have no key")
    keys = [str(key) for key in table.column(KEY).to_pylist()]
    rows = _find_rows(path, keys, ledger.keys)
    values = np.empty((len(keys), len(ledger.classes)), dtype=np.float32)
    for number, name in enumerate(ledger.classes):
        column = table.column(name)
        if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
            raise DataError(f"{path}: column {name!r} is {column.type}, expected numbers")
        if column.null_count:
            row = int(np.flatnonzero(column.is_null().to_numpy())[0])
            raise DataError(f"{path}: column {name!r} has no value for sample {keys[row]!r}")
        values[:, number] = column.to_numpy()
    values = values[rows]
    try:
        check_predictions(values, ledger.meta.task, "the prediction", pa.array(ledger.keys, pa.string()))
    except DataError as error:
        message = str(error).removesuffix(NAN_HINT)
        raise DataError(f"{path}: {message}; expected {_EXPECTED[ledger.meta.task]}") from None
    return values


def _read_ledger(
    name: str, path: Path, ledger: Ledger, views: Sequence[str], view_weights: Sequence[float]
) -> list[tuple[str, NDArray[np.float32]]]:
    """Return name and predictions of each member of another run's ledger, in the order of the run's own."""
    other = Ledger.open(path)
    kinds = (other.meta.task, sorted(other.classes)), (ledger.meta.task, sorted(ledger.classes))
    if kinds[0] != kinds[1]:
        raise DataError(f"{path}: holds predictions of other classes, or of another task, than {ledger.path}")
    for view in views:
        if view not in other.views:
            raise DataError(f"{path}: no view {view!r}, it has {', '.join(other.views)}; choose one with --views")
    rows = _find_rows(path, other.keys, ledger.keys)
    classes = np.array([other.classes.index(label) for label in ledger.classes])
    _check_labels(path, other, ledger, rows, classes)
    members = []
    for member in other.members:
        values = average_views((other.predictions(member, view) for view in views), view_weights)
        member_name = name if len(other.members) == 1 else f"{name}.{member}"
        members.append((member_name, values[rows][:, classes]))
    return members


def _check_labels(
    path: Path, other: Ledger, ledger: Ledger, rows: NDArray[np.int64], classes: NDArray[np.int64]
) -> None:
    labels: NDArray[Any] = other.labels[rows]
    if ledger.meta.task == "multiclass":
        same = np.argsort(classes)[labels] == ledger.labels
    else:
        same = (labels[:, classes] == ledger.labels).all(axis=1)
    if not same.all():
        key = ledger.keys[int(np.flatnonzero(~same)[0])]
        raise DataError(f"{path}: {int((~same).sum())} samples have another label than in {ledger.path}, first {key!r}")


def _find_rows(path: Path, keys: Sequence[str], ledger_keys: Sequence[str]) -> NDArray[np.int64]:
    """Return the row of each of the ledger's keys; DataError if the two sets of keys differ."""
    rows = {key: row for row, key in enumerate(keys)}
    if len(rows) < len(keys):
        duplicate = next(key for row, key in enumerate(keys) if rows[key] != row)
        raise DataError(f"{path}: key {duplicate!r} occurs more than once")
    missing = [key for key in ledger_keys if key not in rows]
    if missing:
        raise DataError(f"{path}: {len(missing)} of {len(ledger_keys)} samples are missing: {_list_keys(missing)}")
    if len(keys) > len(ledger_keys):
        expected = set(ledger_keys)
        unexpected = [key for key in keys if key not in expected]
        raise DataError(f"{path}: {len(unexpected)} keys are not in this split: {_list_keys(unexpected)}")
    return np.array([rows[key] for key in ledger_keys], dtype=np.int64)


def _list_keys(keys: Sequence[str]) -> str:
    listed = ", ".join(map(repr, keys[:3]))
    return listed if len(keys) <= 3 else f"{listed} and {len(keys) - 3} more"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
