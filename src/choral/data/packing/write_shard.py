"""Writes one shard in a worker process: to a temporary file that is verified, synced, renamed and recorded."""

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
from choral.core.files import fsync_path, write_atomic
from choral.data.packing.image_files import ImageEncoding, verify_image
from choral.data.packing.layout import metadata_columns
from choral.data.packing.output_dir import WORK_DIR
from choral.data.packing.sources.base import ImageReader
from choral.data.shards.index import LABEL_IDS
from choral.data.shards.tar import group_by_key, read_headers

_OWNER, _MODE = "choral", 0o644  # constant, as the mtime of 0: equal samples give equal bytes


@dataclass(frozen=True)
class ShardTask:
    """A shard to write to `folder`/`name`.tar."""

    folder: Path
    name: str
    samples: pa.Table
    reader: ImageReader
    encoding: ImageEncoding
    task: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class BadImage:
    """An image that cannot be packed, and the reason."""

    location: str
    reason: str


def write_shard(task: ShardTask) -> list[BadImage]:
    """Write the shard and its record. If there are bad images, write nothing and return all of them.

    The record OUT/.packing/NAME.json holds bytes, sha256, and the offsets, lengths and exts of the images in order.

    Raises:
        OSError: the shard cannot be written, for example because the disk is full.
    """
    # The process id makes the name unique: a worker of a killed pack may still write the same shard for milliseconds.
    aside = task.folder / WORK_DIR / f"{task.name}.{os.getpid()}.tar.tmp"
    try:
        with aside.open("wb") as file:
            hashed = _HashingFile(file)
            exts, bad = _write_samples(task, hashed)
            if bad:
                return bad
            file.flush()
            os.fsync(file.fileno())
        samples = group_by_key(aside, read_headers(aside))
        images = [sample.image(aside)[1] for sample in samples]
        keys = task.samples["key"].to_pylist()
        assert [sample.key for sample in samples] == keys, "the tar does not contain the samples that were written"
        aside.rename(task.folder / f"{task.name}.tar")
    finally:
        aside.unlink(missing_ok=True)
    fsync_path(task.folder)
    record = {
        "bytes": hashed.bytes,
        "sha256": hashed.digest.hexdigest(),
        "offsets": [image.data for image in images],
        "lengths": [image.size for image in images],
        "exts": exts,
    }
    write_atomic(task.folder / WORK_DIR / f"{task.name}.json", json.dumps(record).encode())
    return []


class _HashingFile:
    """A binary file that tracks the size and SHA-256 of what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.bytes = 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.bytes += len(data)
        return self._file.write(data)


def _write_samples(task: ShardTask, file: _HashingFile) -> tuple[list[str], list[BadImage]]:
    writer_type = _tar_writer()
    exts: list[str] = []
    bad: list[BadImage] = []
    metadata = [*(["group"] if "group" in task.samples.column_names else []), *metadata_columns(task.samples)]
    with writer_type(file, user=_OWNER, group=_OWNER, mode=_MODE, mtime=0, compress=False, encoder=False) as writer:
        for row in task.samples.to_pylist():
            if parallel.stop_requested():
                raise Stopped("packing was stopped: run again to continue")
            try:
                data = task.reader.read(row["location"])
                data, ext = task.encoding.apply(data, verify_image(data))
            except (OSError, DataError) as error:
                reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
                bad.append(BadImage(task.reader.describe(row["location"]), reason))
                continue
            sample: dict[str, Any] = {"__key__": row["key"], ext: data}
            values = {name: row[name] for name in metadata}
            if task.task == "multiclass":
                sample["cls"] = str(row["label"]).encode()
            elif task.task == "multilabel":  # names, so that other readers, and `sources.tars`, understand them
                values["label"] = [task.classes[number] for number in row[LABEL_IDS]]
            if values:
                sample["json"] = _json(values)
            writer.write(sample)
            exts.append(ext)
    return exts, bad


def _tar_writer() -> Any:
    """Return webdataset's TarWriter; worker processes import it without torch, which only webdataset's loaders need.

    That takes 0.4 s instead of 2.7 s per process. The main process imports all of webdataset: other code may need its
    loaders.
    """
    hide = parallel.is_worker_process() and "webdataset" not in sys.modules and "torch" not in sys.modules
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
