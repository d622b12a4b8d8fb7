"""One shard, written by a worker process: aside, verified, made durable, renamed, recorded."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from choral.core import worker_processes as parallel
from choral.core.errors import DataError, Stopped
from choral.core.files import sync, write_atomic
from choral.data.packing.image_files import Encoding, verify
from choral.data.packing.layout import metadata_columns
from choral.data.packing.output_dir import WORK_FOLDER
from choral.data.packing.sources.base import Reader
from choral.data.shards.index import LABEL_IDS
from choral.data.shards.tar import group, scan

_OWNER, _MODE = "choral", 0o644  # fixed, like the time of 0: the same samples give the same bytes


@dataclass(frozen=True)
class ShardTask:
    """A shard to be written to `folder`/`name`.tar."""

    folder: Path
    name: str
    samples: pa.Table
    reader: Reader
    encoding: Encoding
    task: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class BadImage:
    """An image that cannot be packed, and why."""

    place: str
    reason: str


def write_shard(task: ShardTask) -> list[BadImage]:
    """Write the shard and its record; where images are bad, nothing is left behind and all of them are returned.

    The record OUT/.packing/NAME.json holds bytes, sha256, and offsets, lengths and exts of the images in their order.

    Raises:
        OSError: the disk is full, or the like.
    """
    # Its own name: a worker of a run that was just killed may be writing the same shard for some milliseconds more.
    aside = task.folder / WORK_FOLDER / f"{task.name}.{os.getpid()}.tar.tmp"
    try:
        with aside.open("wb") as file:
            counted = _Checksummed(file)
            exts, bad = _write_samples(task, counted)
            if bad:
                return bad
            file.flush()
            os.fsync(file.fileno())
        samples = group(aside, scan(aside))
        images = [sample.image(aside)[1] for sample in samples]
        keys = task.samples["key"].to_pylist()
        assert [sample.key for sample in samples] == keys, "the tar does not hold what was written"
        aside.rename(task.folder / f"{task.name}.tar")
    finally:
        aside.unlink(missing_ok=True)
    sync(task.folder)
    record = {
        "bytes": counted.bytes,
        "sha256": counted.digest.hexdigest(),
        "offsets": [image.data for image in images],
        "lengths": [image.size for image in images],
        "exts": exts,
    }
    write_atomic(task.folder / WORK_FOLDER / f"{task.name}.json", json.dumps(record).encode())
    return []


class _Checksummed:
    """A file that knows size and checksum of what was written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.bytes = 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.bytes += len(data)
        return self._file.write(data)


def _write_samples(task: ShardTask, file: _Checksummed) -> tuple[list[str], list[BadImage]]:
    writer_type = _tar_writer()
    exts: list[str] = []
    bad: list[BadImage] = []
    metadata = [*(["group"] if "group" in task.samples.column_names else []), *metadata_columns(task.samples)]
    with writer_type(file, user=_OWNER, group=_OWNER, mode=_MODE, mtime=0, compress=False, encoder=False) as writer:
        for row in task.samples.to_pylist():
            if parallel.stopping():
                raise Stopped("packing was stopped: run again to continue")
            try:
                data = task.reader.read(row["location"])
                data, ext = task.encoding.apply(data, verify(data))
            except (OSError, DataError) as error:
                reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
                bad.append(BadImage(task.reader.describe(row["location"]), reason))
                continue
            sample: dict[str, Any] = {"__key__": row["key"], ext: data}
            values = {name: row[name] for name in metadata}
            if task.task == "multiclass":
                sample["cls"] = str(row["label"]).encode()
            elif task.task == "multilabel":  # by name, as other readers, and our own of tars, take them
                values["label"] = [task.classes[number] for number in row[LABEL_IDS]]
            if values:
                sample["json"] = _json(values)
            writer.write(sample)
            exts.append(ext)
    return exts, bad


def _tar_writer() -> Any:
    """Return webdataset's TarWriter; a worker process imports it without torch, which only webdataset's loaders need.

    That takes 0.4 s instead of 2.7 s a process. Elsewhere webdataset is imported whole: others may need its loaders.
    """
    hide = parallel.in_worker() and "webdataset" not in sys.modules and "torch" not in sys.modules
    if hide:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        from webdataset import TarWriter
    finally:
        if hide:
            del sys.modules["torch"]
    return TarWriter


def _json(values: dict[str, Any]) -> bytes:
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            values[name] = None  # JSON has no NaN
    return json.dumps(values, ensure_ascii=False, sort_keys=True, default=str).encode()
