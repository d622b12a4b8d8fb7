"""Existing WebDataset tars: only indexed where they lie, by their headers and the small label files."""

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
from choral.core.files import sha256_of
from choral.data.packing.options import PackOptions
from choral.data.packing.sources.base import (
    SPLIT_NAMES,
    metadata_name,
    read_classes,
    resolve_label_sets,
    resolve_labels,
)
from choral.data.shards.index import EXT_TYPE, LABEL_IDS, Shard
from choral.data.shards.tar import Member, TarSample, group, scan

_MAX_LABEL_BYTES = 1 << 20
_SPLIT_PREFIX = re.compile(r"(?P<name>[a-z]+)(?:[-_.0-9]|$)")


@dataclass(frozen=True)
class TarSource:
    """Tars to be indexed: absolute paths, the split that each name gives (all or none), class names if known."""

    name: str
    paths: tuple[Path, ...]
    splits: tuple[str, ...] | None
    classes: tuple[str, ...] | None
    provenance: dict[str, Any]
    val: float = 0.1
    test: float = 0.1
    stratify: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Listing:
    """What one tar holds: the shard, and one entry a sample in each list."""

    shard: Shard
    keys: list[str]
    offsets: list[int]
    lengths: list[int]
    exts: list[str]
    labels: list[str]
    label_offsets: list[int]
    metadata: list[dict[str, Any]]


def find_tars(spec: str) -> list[Path]:
    """Return the tars that a folder (and its folders), a glob, a brace expression or a file name means, sorted."""
    path = Path(spec).expanduser().absolute()
    if path.is_dir():
        return sorted(p for pattern in ("*.tar", "*/*.tar") for p in path.glob(pattern) if not p.name.startswith("."))
    if path.exists():
        return [path]
    patterns = braceexpand.braceexpand(str(path)) if "{" in spec else [str(path)]
    found = [sorted(glob.glob(pattern, recursive=True)) or [pattern] for pattern in patterns]  # noqa: PTH207 - absolute
    return [Path(name) for names in found for name in names]


def open_tars(spec: str) -> TarSource:
    """Return the tars that `spec` means; contents are read by `index_tars`.

    The split is taken from file names (train-000000.tar) or from the folder (train/000000.tar), where all of them tell
    one. Class names are taken from classes.txt or classnames.txt beside the tars or one folder up.

    Raises:
        DataError: no tars, one that is missing, or one that is listed twice.
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
        raise DataError(f"{spec}: no tars there")
    folders = sorted({path.parent for path in paths})
    given = [_split_of(path) for path in paths]
    splits = tuple(split for split in given if split is not None)
    if 0 < len(splits) < len(paths):
        odd = paths[given.index(None)]
        raise DataError(
            f"{odd}: its name tells no split, but those of other tars do: expected train-, val- or test- at its "
            "beginning"
        )
    top = folders[0] if len(folders) == 1 else Path(os.path.commonpath(folders))
    return TarSource(
        name=top.name,
        paths=tuple(paths),
        splits=splits or None,
        classes=read_classes([*folders, *sorted({folder.parent for folder in folders})]),
        provenance={"kind": "tars", "path": spec},
    )


def index_tars(
    source: TarSource, options: PackOptions, progress: Callable[[int, int], None] | None = None
) -> tuple[tuple[str, ...], list[Shard], pa.Table]:
    """Scan the tars, in parallel, and return class names, shards and the table of all samples.

    The table has the columns of the index, and split where given. Each tar is read once for its checksum.

    Raises:
        DataError: a damaged tar, a sample that is not whole, a key that occurs twice, or an impossible label.
    """
    found: dict[int, _Listing] = {}
    tasks = [(path, options.label_column, options.task) for path in source.paths]
    for number, listing in parallel.run(_list_tar, tasks, options.processes):
        found[number] = listing
        if progress is not None:
            progress(len(found), len(tasks))
    listings = [found[number] for number in range(len(tasks))]
    counts = [len(listing.keys) for listing in listings]
    shard = np.repeat(np.arange(len(listings), dtype=np.int32), counts)
    first_row = np.cumsum(counts) - counts

    def where(row: int) -> str:
        listing, i = listings[shard[row]], row - int(first_row[shard[row]])
        return f"{listing.shard.path}: sample {listing.keys[i]!r} at byte {listing.label_offsets[i]}"

    labels = [label for listing in listings for label in listing.labels]
    classes, label_columns = _label_columns(labels, source.classes, where, options)
    columns: dict[str, Any] = {
        "key": pa.array([key for listing in listings for key in listing.keys], pa.string()),
        "shard": pa.array(shard),
        "offset": pa.array([offset for listing in listings for offset in listing.offsets], pa.int64()),
        "length": pa.array([length for listing in listings for length in listing.lengths], pa.int64()),
        "ext": pa.array([ext for listing in listings for ext in listing.exts], pa.string()).cast(EXT_TYPE),
        **label_columns,
    }
    metadata = _metadata_columns([entry for listing in listings for entry in listing.metadata], options)
    if source.splits is not None:
        metadata["split"] = pa.array(np.repeat(np.array(source.splits), counts), pa.string())
    return classes, [listing.shard for listing in listings], pa.table({**columns, **metadata})


def _label_columns(
    labels: list[str], classes: tuple[str, ...] | None, where: Callable[[int], str], options: PackOptions
) -> tuple[tuple[str, ...], dict[str, pa.Array]]:
    """Return the names of the classes, labels or targets, and the columns of the index that say which apply."""
    if options.task == "multiclass":
        names, ids = resolve_labels(labels, classes, where, numbers_are_ids=True)
        return names, {"label": pa.array(ids)}
    nothing = {"label": pa.array([0] * len(labels), pa.int64())}
    if options.task == "regression":
        return tuple(metadata_name(name) for name in options.targets), nothing
    names, sets = resolve_label_sets(labels, classes, where)
    return names, {**nothing, LABEL_IDS: sets}


def _list_tar(task: tuple[Path, str, str]) -> _Listing:
    path, label_field, kind = task
    samples = group(path, scan(path))
    keys, offsets, lengths, exts, labels, label_offsets, metadata = [], [], [], [], [], [], []
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for sample in samples:
            ext, image = sample.image(path)
            fields = _json_fields(path, sample, descriptor)
            label, offset = _label(path, sample, descriptor, fields, label_field, kind)
            keys.append(sample.key)
            offsets.append(image.data)
            lengths.append(image.size)
            exts.append(ext)
            labels.append(label)
            label_offsets.append(offset)
            metadata.append({k: v for k, v in fields.items() if k != label_field and isinstance(v, str | int | float)})
    finally:
        os.close(descriptor)
    shard = Shard(str(path), path.stat().st_size, sha256_of(path), len(samples))
    return _Listing(shard, keys, offsets, lengths, exts, labels, label_offsets, metadata)


def _json_fields(path: Path, sample: TarSample, descriptor: int) -> dict[str, Any]:
    member = sample.parts.get("json")
    if member is None:
        return {}
    try:
        fields = json.loads(_contents(path, member, descriptor))
    except ValueError as error:
        raise DataError(f"{path}: {member.name!r} at byte {member.data} is not JSON ({error})") from error
    return fields if isinstance(fields, dict) else {}


def _label(
    path: Path, sample: TarSample, descriptor: int, fields: dict[str, Any], label_field: str, task: str
) -> tuple[str, int]:
    """Return the label as text, and where it stands: KEY.cls, or a field of KEY.json, or KEY.txt.

    Several labels stand in KEY.json alone, as a list or separated by `;` or `|`; regression needs none.
    """
    start = min(part.header for part in sample.parts.values())
    if task == "regression":
        return "", start
    if task == "multilabel":
        if label_field not in fields:
            raise DataError(
                f"{path}: sample {sample.key!r} at byte {start} has no labels: expected .json with the field "
                f"{label_field!r}, a list (perhaps an empty one)"
            )
        value = fields[label_field]
        return ";".join(map(str, value)) if isinstance(value, list) else str(value or ""), sample.parts["json"].data
    for ext in ("cls", "json", "txt"):
        member = sample.parts.get(ext)
        if member is None or (ext == "json" and label_field not in fields):
            continue
        if ext == "json":
            value = fields[label_field]
            text = "" if value is None else str(value).strip()
        else:
            text = _contents(path, member, descriptor).decode(errors="replace").strip()
        if not text:
            raise DataError(
                f"{path}: sample {sample.key!r}: the label in {member.name!r} at byte {member.data} is empty"
            )
        return text, member.data
    raise DataError(
        f"{path}: sample {sample.key!r} at byte {start} has no label: expected .cls, .txt, or .json with the field "
        f"{label_field!r}"
    )


def _contents(path: Path, member: Member, descriptor: int) -> bytes:
    if member.size > _MAX_LABEL_BYTES:
        raise DataError(f"{path}: {member.name!r} at byte {member.data} has {member.size} bytes, too much for a label")
    return os.pread(descriptor, member.size, member.data)


def _metadata_columns(entries: list[dict[str, Any]], options: PackOptions) -> dict[str, pa.Array]:
    """Gather the fields of all .json files; a field whose types differ becomes text."""
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
                columns["path" if name == "path" else metadata_name(name)] = pa.array(values)
            except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
                columns["path" if name == "path" else metadata_name(name)] = pa.array(texts, pa.string())
    return columns


def _split_of(path: Path) -> str | None:
    prefix = _SPLIT_PREFIX.match(path.stem.lower())
    named = SPLIT_NAMES.get(prefix["name"]) if prefix else None
    return named or SPLIT_NAMES.get(path.parent.name.lower())  # a folder's whole name: test-machine-7/ is no split
