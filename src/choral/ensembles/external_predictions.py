"""Predictions that other tools made of the same samples: CSV and Parquet files, and ledgers of other runs of choral.

A file has a column `key` and a column of predictions for each class (label, target), named as it is; further columns are
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

from choral.config.ensemble import LEGAL_NAME
from choral.core.errors import ConfigError, DataError, did_you_mean
from choral.core.files import local_only, sha256_of
from choral.ensembles.rules import over_views
from choral.inference.ledger import NETWORK_HINT, Ledger, check_predictions

KEY = "key"
_LISTED = 8  # columns in a message
_EXPECTED = {
    "multiclass": "probabilities of all classes, 0 or more and summing to 1 to within 0.001 (not logits or percentages; of "
    "rounded ones write more digits)",
    "multilabel": "probabilities, 0 to 1",
    "regression": "finite numbers",
}


@dataclass(frozen=True)
class ExternalPredictions:
    """A member from elsewhere.

    Attributes:
        name: by which it joins the others.
        path, sha256: where its predictions were read.
        predictions: (N, classes) float32, in the order of the ledger that they join.
    """

    name: str
    path: Path
    sha256: str
    predictions: NDArray[np.float32]


def read_external_predictions(
    asked: str, ledger: Ledger, views: Sequence[str], view_weights: Sequence[float] = ()
) -> list[ExternalPredictions]:
    """Read predictions that are to join those of a ledger.

    Args:
        asked: FILE, or NAME=FILE; without a name, the file's own without its ending is taken. The members of a ledger of
            choral are called NAME, or NAME.MEMBER where there are several.
        ledger: whose samples and classes it must have.
        views: that are averaged, of a ledger of choral; predictions of other tools have no views.
        view_weights: of these views; none: all alike.

    Raises:
        ConfigError: a name that is none, or a file of another kind.
        DataError: naming the file and the column, row or keys: other keys or classes, a key that occurs twice, something else
            than numbers, predictions that are none of the task.
    """
    name, path = _named(asked)
    checksum = sha256_of(path)
    if path.suffix == ".csv":
        return [ExternalPredictions(name, path, checksum, _from_table(path, _read_csv(path, ledger), ledger))]
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {_first_line(error)}") from error
    if b"choral" in (schema.metadata or {}):
        return _from_ledger(name, path, checksum, ledger, views, view_weights)
    _check_columns(path, schema.names, ledger)
    table = pq.read_table(path, columns=[KEY, *ledger.classes])
    return [ExternalPredictions(name, path, checksum, _from_table(path, table, ledger))]


def path_of(asked: str) -> Path:
    """Return the file of FILE or NAME=FILE."""
    name, named, place = asked.partition("=")
    return Path(place if named and "/" not in name else asked)


def _named(asked: str) -> tuple[str, Path]:
    path = path_of(asked)
    name = asked.partition("=")[0] if str(path) != str(Path(asked)) else ""
    local_only(str(path))
    if path.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"{path}: expected a .csv or .parquet file of predictions")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    name = name or path.stem
    if LEGAL_NAME.fullmatch(name) is None:
        raise ConfigError(
            f"{path}: '{name}' is no member name: use letters, digits, '.', '_' and '-', or give one with NAME={path}"
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
    for wanted in (KEY, *ledger.classes):
        if wanted not in names:
            kind = "of the samples' keys" if wanted == KEY else f"for {_KIND[ledger.meta.task]} {wanted!r}"
            near = did_you_mean(wanted, names)
            raise DataError(
                f"{path}: no column {wanted!r} {kind}.{near} It has: {', '.join(names[:_LISTED]) or 'none'}"
            )
        if list(names).count(wanted) > 1:
            raise DataError(f"{path}: column {wanted!r} occurs twice")


def _from_table(path: Path, table: pa.Table, ledger: Ledger) -> NDArray[np.float32]:
    """Return a table's predictions in the order of the ledger."""
    if table.column(KEY).null_count:
        raise DataError(f"{path}: {table.column(KEY).null_count} rows have no key")
    keys = [str(key) for key in table.column(KEY).to_pylist()]
    order = _order(path, keys, ledger.keys)
    values = np.empty((len(keys), len(ledger.classes)), dtype=np.float32)
    for number, name in enumerate(ledger.classes):
        column = table.column(name)
        if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
            raise DataError(f"{path}: column {name!r} is {column.type}, expected numbers")
        if column.null_count:
            row = int(np.flatnonzero(column.is_null().to_numpy())[0])
            raise DataError(f"{path}: column {name!r} has no value for sample {keys[row]!r}")
        values[:, number] = column.to_numpy()
    values = values[order]
    try:
        check_predictions(values, ledger.meta.task, "the prediction", pa.array(ledger.keys, pa.string()))
    except DataError as error:
        found = str(error).removesuffix(NETWORK_HINT)
        raise DataError(f"{path}: {found}; expected {_EXPECTED[ledger.meta.task]}") from None
    return values


def _from_ledger(
    name: str, path: Path, checksum: str, ledger: Ledger, views: Sequence[str], view_weights: Sequence[float]
) -> list[ExternalPredictions]:
    theirs = Ledger.open(path)
    kinds = (theirs.meta.task, sorted(theirs.classes)), (ledger.meta.task, sorted(ledger.classes))
    if kinds[0] != kinds[1]:
        raise DataError(f"{path}: holds predictions of other classes, or of another task, than {ledger.path}")
    for view in views:
        if view not in theirs.views:
            raise DataError(f"{path}: no view {view!r}, it has {', '.join(theirs.views)}; choose one with --views")
    order = _order(path, theirs.keys, ledger.keys)
    classes = np.array([theirs.classes.index(label) for label in ledger.classes])
    _check_labels(path, theirs, ledger, order, classes)
    joined = []
    for member in theirs.members:
        values = over_views((theirs.predictions(member, view) for view in views), view_weights)
        own = name if len(theirs.members) == 1 else f"{name}.{member}"
        joined.append(ExternalPredictions(own, path, checksum, values[order][:, classes]))
    return joined


def _check_labels(
    path: Path, theirs: Ledger, ledger: Ledger, order: NDArray[np.int64], classes: NDArray[np.int64]
) -> None:
    labels: NDArray[Any] = theirs.labels[order]
    if ledger.meta.task == "multiclass":
        same = np.argsort(classes)[labels] == ledger.labels
    else:
        same = (labels[:, classes] == ledger.labels).all(axis=1)
    if not same.all():
        key = ledger.keys[int(np.flatnonzero(~same)[0])]
        raise DataError(f"{path}: {int((~same).sum())} samples have another label than in {ledger.path}, first {key!r}")


def _order(path: Path, keys: Sequence[str], wanted: Sequence[str]) -> NDArray[np.int64]:
    """Return the row of each wanted key; DataError where the two are not the same keys."""
    rows = {key: row for row, key in enumerate(keys)}
    if len(rows) < len(keys):
        double = next(key for row, key in enumerate(keys) if rows[key] != row)
        raise DataError(f"{path}: key {double!r} occurs more than once")
    missing = [key for key in wanted if key not in rows]
    if missing:
        raise DataError(f"{path}: {len(missing)} of {len(wanted)} samples are missing: {_listing(missing)}")
    if len(keys) > len(wanted):
        known = set(wanted)
        foreign = [key for key in keys if key not in known]
        raise DataError(f"{path}: {len(foreign)} keys are not in this split: {_listing(foreign)}")
    return np.array([rows[key] for key in wanted], dtype=np.int64)


def _listing(keys: Sequence[str]) -> str:
    shown = ", ".join(map(repr, keys[:3]))
    return shown if len(keys) <= 3 else f"{shown} and {len(keys) - 3} more"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


_KIND = {"multiclass": "class", "multilabel": "label", "regression": "target"}
