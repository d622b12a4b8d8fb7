"""A CSV or Parquet file that lists images: path, label, perhaps split and group, and any metadata columns."""

from __future__ import annotations

import os
import posixpath
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from choral.core.errors import ConfigError, DataError, did_you_mean
from choral.data.packing.options import PackOptions
from choral.data.packing.sources.base import (
    SPLIT_NAMES,
    FileReader,
    ImageSource,
    key_of,
    metadata_name,
    read_classes,
    resolve_label_sets,
    resolve_labels,
)
from choral.data.shards.index import LABEL_IDS

MANIFEST_SUFFIXES = (".csv", ".tsv", ".parquet")


def open_manifest(path: Path, options: PackOptions) -> ImageSource:
    """Return the images that a manifest lists; relative paths start at the manifest's folder.

    Rows are counted from 1, without the header. Class names come from the labels, or from classes.txt beside the
    manifest. With task multilabel the label column holds any number of labels, separated by `;` or `|` (in Parquet also
    lists); with regression it is a column as any other. Other columns are kept as metadata, as `meta_NAME` where NAME has
    a meaning in the index.

    Raises:
        ConfigError: a column that the options name is not there.
        DataError: naming the row: no such image, listed twice, an empty or impossible label or split.
    """
    table = _read(path, options)
    labelled = options.task != "regression"
    for column in (options.image_column, *([options.label_column] if labelled else [])):
        if column not in table.column_names:
            near = did_you_mean(column, table.column_names)
            raise ConfigError(
                f"{path}: no column {column!r}; there are: {', '.join(table.column_names)}.{near} Set image_column "
                "and label_column"
            )
    if table.num_rows == 0:
        raise DataError(f"{path}: lists no images")

    def row(number: int) -> str:
        return f"{path}: row {number + 1}"

    locations = [_location(value, row(i)) for i, value in enumerate(table[options.image_column].to_pylist())]
    columns: dict[str, Any] = {
        "key": pa.array(_keys(locations, path.parent, row), pa.string()),
        "location": pa.array(locations, pa.string()),
        "size": pa.array([_size(path.parent, location, row(i)) for i, location in enumerate(locations)], pa.int64()),
    }
    classes, labels = _labels(table, path, options, row)
    columns |= labels
    columns["path"] = pa.array(locations, pa.string())
    if options.split_column in table.column_names:
        splits = [_split(value, row(i)) for i, value in enumerate(_texts(table[options.split_column]))]
        columns["split"] = pa.array(splits, pa.string())
    if options.group_column in table.column_names:
        groups = [value or None for value in _texts(table[options.group_column])]
        columns["group"] = pa.array(groups, pa.string())
    named = {options.image_column, options.split_column, options.group_column}
    named |= {options.label_column} if labelled else set()
    for name in table.column_names:
        if name not in named and not name.startswith("__"):  # pandas stores its row index under such a name
            column = table[name]
            plain = column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
            columns[metadata_name(name)] = plain
    return ImageSource(
        name=path.stem,
        classes=classes,
        samples=pa.table(columns),
        reader=FileReader(str(path.parent)),
        provenance={"kind": "manifest", "path": str(path)},
    )


def _read(path: Path, options: PackOptions) -> pa.Table:
    try:
        if path.suffix.lower() == ".parquet":
            table = pa.parquet.read_table(path)
        else:
            with path.open("rb") as file:
                header = file.readline(65536)
            delimiter = max(
                b",;\t", key=lambda mark: header.count(mark)
            )  # spreadsheets of some countries write semicolons
            text = [options.image_column, options.split_column, options.group_column]
            text += [options.label_column] if options.task != "regression" else []
            table = pa.csv.read_csv(
                path,
                parse_options=pa.csv.ParseOptions(delimiter=chr(delimiter), newlines_in_values=True),
                convert_options=pa.csv.ConvertOptions(column_types=dict.fromkeys(text, pa.string())),
            )
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from error
    doubles = {name for name in table.column_names if table.column_names.count(name) > 1}
    if doubles:
        raise DataError(f"{path}: column {min(doubles)!r} occurs twice")
    return table


def _labels(table: pa.Table, path: Path, options: PackOptions, row: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return the names of the classes, labels or targets, and the columns of the index that say which apply."""
    nothing = pa.array([0] * table.num_rows, pa.int64())
    if options.task == "regression":
        return tuple(metadata_name(name) for name in options.targets), {"label": nothing}
    column, names = table[options.label_column], read_classes([path.parent])
    if options.task == "multilabel":
        lists = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
        texts = [";".join(map(str, value or [])) for value in column.to_pylist()] if lists else _texts(column)
        names, sets = resolve_label_sets(texts, names, row)
        return names, {"label": nothing, LABEL_IDS: sets}
    names, ids = resolve_labels(_texts(column), names, row, numbers_are_ids=False)
    return names, {"label": pa.array(ids)}


def _texts(column: pa.ChunkedArray) -> list[str]:
    """Return values as text, missing ones as ""; whole numbers stored as floats (as pandas does) without their .0."""
    values = (str(int(v)) if isinstance(v, float) and v.is_integer() else v for v in column.to_pylist())
    return ["" if value is None or value != value else str(value).strip() for value in values]


def _location(value: object, row: str) -> str:
    if not isinstance(value, str) or not value:
        raise DataError(f"{row}: the image is {value!r}, expected a path")
    return value


def _size(folder: Path, location: str, row: str) -> int:
    try:
        status = (folder / location).stat()
    except (OSError, ValueError):
        raise DataError(f"{row}: no such image: {location} (relative paths start at {folder})") from None
    if not os.path.isfile(folder / location):  # noqa: PTH113 - the same call as above, cached by the system
        raise DataError(f"{row}: not a file: {location}")
    return status.st_size


def _keys(locations: list[str], folder: Path, row: Any) -> list[str]:
    first: dict[str, int] = {}
    keys = []
    for number, location in enumerate(locations):
        plain = posixpath.normpath(location)
        if plain.startswith("/"):  # the same file, however it is named, has the same key
            plain = posixpath.relpath(plain, folder)
        if plain in first:
            raise DataError(f"{row(number)}: {location} is already listed in row {first[plain] + 1}")
        first[plain] = number
        keys.append(key_of(plain))
    return keys


def _split(value: str, row: str) -> str:
    if value.lower() not in SPLIT_NAMES:
        raise DataError(f"{row}: the split is {value!r}, expected train, val or test")
    return SPLIT_NAMES[value.lower()]
