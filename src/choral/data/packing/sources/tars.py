"""Existing WebDataset tars, indexed in place: only headers and the small label files are read."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import braceexpand
import numpy as np
import pyarrow as pa

from choral.core import worker_processes as parallel
from choral.core.errors import DataError
from choral.core.files import compute_sha256
from choral.data.packing.options import PackOptions
from choral.data.packing.sources.base import (
    SPLIT_NAMES,
    metadata_column_name,
    read_class_names,
    resolve_label_sets,
    resolve_labels,
)
from choral.data.shards.index import EXT_TYPE, LABEL_IDS, Shard
from choral.data.shards.tar import TarMember, TarSample, group_by_key, read_headers

_MAX_LABEL_BYTES = 1 << 20
_SPLIT_PREFIX = re.compile(r"(?P<name>[a-z]+)(?:[-_.0-9]|$)")


@dataclass(frozen=True)
class TarSource:
    """Tars to index: absolute paths, the split of each tar (or None: not in the names), class names if there is a file."""

    name: str
    paths: tuple[Path, ...]
    splits: tuple[str, ...] | None
    classes: tuple[str, ...] | None
    provenance: dict[str, Any]
    val: float = 0.1
    test: float = 0.1
    stratify: tuple[str, ...] = ()


@dataclass(frozen=True)
class _IndexTask:
    """A tar to index."""

    path: Path
    label_field: str  # of the .json files
    task: str  # multiclass, multilabel or regression


@dataclass(frozen=True)
class _TarIndex:
    """The contents of one tar: the shard, and in each list one entry per sample."""

    shard: Shard
    keys: list[str]
    offsets: list[int]
    lengths: list[int]
    exts: list[str]
    labels: list[str]
    label_offsets: list[int]
    metadata: list[dict[str, Any]]


def find_tars(spec: str) -> list[Path]:
    """Return the tars in a folder and its subfolders, or those that a glob, a brace expression or a file name matches."""
    path = Path(spec).expanduser().absolute()
    if path.is_dir():
        return sorted(p for pattern in ("*.tar", "*/*.tar") for p in path.glob(pattern) if not p.name.startswith("."))
    if path.exists():
        return [path]
    patterns = braceexpand.braceexpand(str(path)) if "{" in spec else [str(path)]
    found = [sorted(glob.glob(pattern, recursive=True)) or [pattern] for pattern in patterns]  # noqa: PTH207 - absolute
    return [Path(name) for names in found for name in names]


def open_tars(spec: str) -> TarSource:
    """Return the source of the tars that `spec` specifies; `index_tars` reads their contents.

    The splits come from the file names (train-000000.tar) or folder names (train/000000.tar), if all tars have one. Class
    names come from classes.txt or classnames.txt beside the tars or in the parent folder.

    Raises:
        DataError: no tars, a missing tar, one that is listed twice, or a split in the names of some tars only.
    """
    paths = find_tars(spec)
    seen: dict[str, Path] = {}
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path}: no such tar")
        if (real := os.path.realpath(path)) in seen:
            raise DataError(f"{path}: listed twice (also as {seen[real]})")
        seen[real] = path
    if not paths:
        raise DataError(f"{spec}: no tars found")
    folders = sorted({path.parent for path in paths})
    in_names = [_parse_split(path) for path in paths]
    splits = tuple(split for split in in_names if split is not None)
    if 0 < len(splits) < len(paths):
        without = paths[in_names.index(None)]
        raise DataError(
            f"{without}: its name does not contain a split, but the names of other tars do: expected it to begin with "
            "train-, val- or test-"
        )
    top = folders[0] if len(folders) == 1 else Path(os.path.commonpath(folders))
    return TarSource(
        name=top.name,
        paths=tuple(paths),
        splits=splits or None,
        classes=read_class_names([*folders, *sorted({folder.parent for folder in folders})]),
        provenance={"kind": "tars", "path": spec},
    )


def index_tars(
    source: TarSource, options: PackOptions, progress: Callable[[int, int], None] | None = None
) -> tuple[tuple[str, ...], list[Shard], pa.Table]:
    """Read all tars in worker processes; return the class names, the shards and the table of all samples.

    The table has the columns of the index, and `split` if the tars give one. Each tar is read once for its checksum.

    Raises:
        DataError: a damaged tar, an incomplete sample, a key that occurs twice, or an invalid label.
    """
    finished: dict[int, _TarIndex] = {}
    tasks = [_IndexTask(path, options.label_column, options.task) for path in source.paths]
    for number, tar in parallel.map_unordered(_index_tar, tasks, options.processes):
        finished[number] = tar
        if progress is not None:
            progress(len(finished), len(tasks))
    tars = [finished[number] for number in range(len(tasks))]
    counts = [len(tar.keys) for tar in tars]
    shard = np.repeat(np.arange(len(tars), dtype=np.int32), counts)
    first_row = np.cumsum(counts) - counts

    def locate(row: int) -> str:
        tar, i = tars[shard[row]], row - int(first_row[shard[row]])
        return f"{tar.shard.path}: sample {tar.keys[i]!r} at byte {tar.label_offsets[i]}"

    labels = [label for tar in tars for label in tar.labels]
    classes, label_columns = _label_columns(labels, source.classes, locate, options)
    columns: dict[str, Any] = {
        "key": pa.array([key for tar in tars for key in tar.keys], pa.string()),
        "shard": pa.array(shard),
        "offset": pa.array([offset for tar in tars for offset in tar.offsets], pa.int64()),
        "length": pa.array([length for tar in tars for length in tar.lengths], pa.int64()),
        "ext": pa.array([ext for tar in tars for ext in tar.exts], pa.string()).cast(EXT_TYPE),
        **label_columns,
    }
    metadata = _metadata_columns([entry for tar in tars for entry in tar.metadata], options)
    if source.splits is not None:
        metadata["split"] = pa.array(np.repeat(np.array(source.splits), counts), pa.string())
    return classes, [tar.shard for tar in tars], pa.table({**columns, **metadata})


def _label_columns(
    labels: list[str], classes: tuple[str, ...] | None, locate: Callable[[int], str], options: PackOptions
) -> tuple[tuple[str, ...], dict[str, pa.Array]]:
    """Return the names of the classes, labels or targets, and the label columns of the index."""
    if options.task == "multiclass":
        names, ids = resolve_labels(labels, classes, locate, numbers_are_ids=True)
        return names, {"label": pa.array(ids)}
    zeros = {"label": pa.array([0] * len(labels), pa.int64())}
    if options.task == "regression":
        return tuple(metadata_column_name(name) for name in options.targets), zeros
    names, sets = resolve_label_sets(labels, classes, locate)
    return names, {**zeros, LABEL_IDS: sets}


def _index_tar(task: _IndexTask) -> _TarIndex:
    path = task.path
    samples = group_by_key(path, read_headers(path))
    keys, offsets, lengths, exts, labels, label_offsets, metadata = [], [], [], [], [], [], []
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        reader = _LabelReader(task, descriptor)
        for sample in samples:
            ext, image = sample.image(path)
            fields = reader.read_fields(sample)
            label, offset = reader.read_label(sample, fields)
            keys.append(sample.key)
            offsets.append(image.data)
            lengths.append(image.size)
            exts.append(ext)
            labels.append(label)
            label_offsets.append(offset)
            metadata.append(
                {k: v for k, v in fields.items() if k != task.label_field and isinstance(v, str | int | float)}
            )
    finally:
        os.close(descriptor)
    shard = Shard(str(path), path.stat().st_size, compute_sha256(path), len(samples))
    return _TarIndex(shard, keys, offsets, lengths, exts, labels, label_offsets, metadata)


class _LabelReader:
    """Reads labels and metadata of samples from an open tar.

    Args:
        task: which tar, and which labels.
        descriptor: of the open file.
    """

    def __init__(self, task: _IndexTask, descriptor: int) -> None:
        self._task, self._descriptor = task, descriptor

    def read_fields(self, sample: TarSample) -> dict[str, Any]:
        """Return the contents of KEY.json; {} if there is none or it is not an object."""
        member = sample.members.get("json")
        if member is None:
            return {}
        try:
            fields = json.loads(self._read(member))
        except ValueError as error:
            raise DataError(
                f"{self._task.path}: {member.name!r} at byte {member.data} is not JSON ({error})"
            ) from error
        return fields if isinstance(fields, dict) else {}

    def read_label(self, sample: TarSample, fields: dict[str, Any]) -> tuple[str, int]:
        """Return the label as text, from KEY.cls, a field of KEY.json or KEY.txt, and its byte offset.

        Multilabel: only from KEY.json, a list or text separated by `;` or `|`. Regression: "".
        """
        name, prefix = self._task.label_field, f"{self._task.path}: sample {sample.key!r}"
        if self._task.task == "regression":
            return "", sample.offset
        if self._task.task == "multilabel":
            if name not in fields:
                raise DataError(
                    f"{prefix} at byte {sample.offset} has no labels: expected .json with the field {name!r}, a list "
                    "(which may be empty)"
                )
            value = fields[name]
            text = ";".join(map(str, value)) if isinstance(value, list) else str(value or "")
            return text, sample.members["json"].data
        for ext in ("cls", "json", "txt"):
            member = sample.members.get(ext)
            if member is None or (ext == "json" and name not in fields):
                continue
            if ext == "json":
                text = "" if fields[name] is None else str(fields[name]).strip()
            else:
                text = self._read(member).decode(errors="replace").strip()
            if not text:
                raise DataError(f"{prefix}: the label in {member.name!r} at byte {member.data} is empty")
            return text, member.data
        raise DataError(
            f"{prefix} at byte {sample.offset} has no label: expected .cls, .txt, or .json with the field {name!r}"
        )

    def _read(self, member: TarMember) -> bytes:
        if member.size > _MAX_LABEL_BYTES:
            raise DataError(
                f"{self._task.path}: {member.name!r} at byte {member.data} has {member.size} bytes, too many for a label"
            )
        return os.pread(self._descriptor, member.size, member.data)


def _metadata_columns(entries: list[dict[str, Any]], options: PackOptions) -> dict[str, pa.Array]:
    """Return the fields of all .json files as columns; a field with values of several types becomes text."""
    columns = {}
    for name in dict.fromkeys(name for entry in entries for name in entry):
        values = [entry.get(name) for entry in entries]
        texts = [None if value is None else str(value) for value in values]
        if name == options.group_column:
            columns["group"] = pa.array(texts, pa.string())
        elif name == options.split_column and all(text in SPLIT_NAMES for text in texts):
            columns["split"] = pa.array([SPLIT_NAMES[str(text)] for text in texts], pa.string())
        else:
            try:
                columns["path" if name == "path" else metadata_column_name(name)] = pa.array(values)
            except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
                columns["path" if name == "path" else metadata_column_name(name)] = pa.array(texts, pa.string())
    return columns


def _parse_split(path: Path) -> str | None:
    prefix = _SPLIT_PREFIX.match(path.stem.lower())
    split = SPLIT_NAMES.get(prefix["name"]) if prefix else None
    return split or SPLIT_NAMES.get(path.parent.name.lower())  # the whole folder name: test-machine-7/ is not a split
