"""A CSV or Parquet file that lists images: path, label, optionally split and group, and any metadata columns."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable
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
    make_sample_key,
    metadata_column_name,
    read_class_names,
    resolve_label_sets,
    resolve_labels,
)
from choral.data.shards.index import LABEL_IDS

MANIFEST_SUFFIXES = (".csv", ".tsv", ".parquet")


def open_manifest(path: Path, options: PackOptions) -> ImageSource:
    """Return the images that a manifest lists; relative paths start at the folder of the manifest.

    Messages count rows from 1, without the header. Class names come from the labels, or from classes.txt beside the
    manifest. For multilabel the label column holds any number of labels, separated by `;` or `|` (in Parquet also lists).
    For regression it is an ordinary column. All other columns become metadata; a column NAME that the index itself has
    becomes `meta_NAME`.

    Raises:
        ConfigError: a column of the options does not exist.
        DataError: with the row: no such image, an image listed twice, or an empty or invalid label or split.
    """
    table = _read(path, options)
    labelled = options.task != "regression"
    for column in (options.image_column, *([options.label_column] if labelled else [])):
        if column not in table.column_names:
            hint = did_you_mean(column, table.column_names)
            raise ConfigError(
                f"{path}: no column {column!r}; available: {', '.join(table.column_names)}.{hint} Set image_column "
                "and label_column"
            )
    if table.num_rows == 0:
        raise DataError(f"{path}: lists no images")

    def locate(number: int) -> str:
        return f"{path}: row {number + 1}"

    paths = [_check_path(value, locate(i)) for i, value in enumerate(table[options.image_column].to_pylist())]
    columns: dict[str, Any] = {
        "key": pa.array(_make_keys(paths, path.parent, locate), pa.string()),
        "location": pa.array(paths, pa.string()),
        "size": pa.array([_file_size(path.parent, image, locate(i)) for i, image in enumerate(paths)], pa.int64()),
    }
    classes, labels = _label_columns(table, path, options, locate)
    columns |= labels
    columns["path"] = pa.array(paths, pa.string())
    if options.split_column in table.column_names:
        splits = [_parse_split(value, locate(i)) for i, value in enumerate(_texts(table[options.split_column]))]
        columns["split"] = pa.array(splits, pa.string())
    if options.group_column in table.column_names:
        groups = [value or None for value in _texts(table[options.group_column])]
        columns["group"] = pa.array(groups, pa.string())
    used = {options.image_column, options.split_column, options.group_column}
    used |= {options.label_column} if labelled else set()
    for name in table.column_names:
        if name not in used and not name.startswith("__"):  # pandas stores its row index under such a name
            column = table[name]
            decoded = column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
            columns[metadata_column_name(name)] = decoded
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
            delimiter = max(b",;\t", key=lambda mark: header.count(mark))  # some locales write semicolons
            text = [options.image_column, options.split_column, options.group_column]
            text += [options.label_column] if options.task != "regression" else []
            table = pa.csv.read_csv(
                path,
                parse_options=pa.csv.ParseOptions(delimiter=chr(delimiter), newlines_in_values=True),
                convert_options=pa.csv.ConvertOptions(column_types=dict.fromkeys(text, pa.string())),
            )
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from error
    repeated = {name for name in table.column_names if table.column_names.count(name) > 1}
    if repeated:
        raise DataError(f"{path}: column {min(repeated)!r} occurs twice")
    return table


def _label_columns(
    table: pa.Table, path: Path, options: PackOptions, locate: Callable[[int], str]
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return the names of the classes, labels or targets, and the label columns of the index."""
    zeros = pa.array([0] * table.num_rows, pa.int64())
    if options.task == "regression":
        return tuple(metadata_column_name(name) for name in options.targets), {"label": zeros}
    column, names = table[options.label_column], read_class_names([path.parent])
    if options.task == "multilabel":
        lists = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
        texts = [";".join(map(str, value or [])) for value in column.to_pylist()] if lists else _texts(column)
        names, sets = resolve_label_sets(texts, names, locate)
        return names, {"label": zeros, LABEL_IDS: sets}
    names, ids = resolve_labels(_texts(column), names, locate, numbers_are_ids=False)
    return names, {"label": pa.array(ids)}


def _texts(column: pa.ChunkedArray) -> list[str]:
    """Return values as text: null and NaN as "", integral floats, which pandas writes for integers, without ".0"."""
    values = (str(int(v)) if isinstance(v, float) and v.is_integer() else v for v in column.to_pylist())
    return ["" if value is None or value != value else str(value).strip() for value in values]


def _check_path(value: object, location: str) -> str:
    if not isinstance(value, str) or not value:
        raise DataError(f"{location}: the image is {value!r}, expected a path")
    return value


def _file_size(folder: Path, path: str, location: str) -> int:
    try:
        status = (folder / path).stat()
    except (OSError, ValueError):
        raise DataError(f"{location}: no such image: {path} (relative paths start at {folder})") from None
    if not os.path.isfile(folder / path):  # noqa: PTH113 - the same call as above, cached by the system
        raise DataError(f"{location}: not a file: {path}")
    return status.st_size


def _make_keys(paths: list[str], folder: Path, locate: Callable[[int], str]) -> list[str]:
    first: dict[str, int] = {}
    keys = []
    for number, path in enumerate(paths):
        relative = posixpath.normpath(path)
        if relative.startswith("/"):  # a file has the same key by its absolute and its relative path
            relative = posixpath.relpath(relative, folder)
        if relative in first:
            raise DataError(f"{locate(number)}: {path} is already listed in row {first[relative] + 1}")
        first[relative] = number
        keys.append(make_sample_key(relative))
    return keys


def _parse_split(value: str, location: str) -> str:
    if value.lower() not in SPLIT_NAMES:
        raise DataError(f"{location}: the split is {value!r}, expected train, val or test")
    return SPLIT_NAMES[value.lower()]
