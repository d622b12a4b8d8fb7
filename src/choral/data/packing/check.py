"""Verifies a packed directory: checksums, the tars against the index, and that every image decodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from choral.core import worker_processes as parallel
from choral.core.errors import DataError
from choral.core.files import compute_sha256
from choral.data.packing.image_files import verify_image
from choral.data.packing.options import PackOptions
from choral.data.shards.index import Dataset, Index, Record, compute_fingerprint
from choral.data.shards.store import LocalStore
from choral.data.shards.tar import TarMember, group_by_key, read_headers

_MAX_PROBLEMS = 20  # listed per shard
_BYTES_PER_PROCESS = 64 << 20  # below this, starting another process costs more than it saves


@dataclass(frozen=True)
class CheckReport:
    """What was checked, and the problems found: one line each, starting with the file; empty if there are none."""

    samples: int
    shards: int
    problems: list[str]


@dataclass(frozen=True)
class _ShardTask:
    dataset: Dataset
    shard: int
    splits: tuple[str, ...]


def check_dataset(
    folder: str | Path, progress: Callable[[int, int], None] | None = None, processes: int | None = None
) -> CheckReport:
    """Verify a packed directory: checksums of shards and indexes, tar headers against the index, every image.

    Args:
        folder: a packed directory.
        progress: called in this process with (shards done, total shards).
        processes: number of worker processes; None: one per core, fewer for small data.

    Raises:
        DataError: not a packed directory, or its description is damaged. Damaged shards are reported, not raised.
    """
    dataset = Dataset.open(folder)
    problems = _check_description(dataset)
    readable = []
    for name in dataset.splits:
        if wrong := _check_index(dataset, name):
            problems += wrong
        else:
            readable.append(name)
    tasks = [
        _ShardTask(dataset, shard, tuple(name for name in readable if shard in dataset.splits[name].shards))
        for shard in range(len(dataset.shards))
    ]
    if processes is None:
        useful = sum(shard.bytes for shard in dataset.shards) // _BYTES_PER_PROCESS
        processes = max(1, min(PackOptions().processes, useful))
    by_shard: dict[int, list[str]] = {}
    for number, found in parallel.map_unordered(_check_shard, tasks, processes):
        by_shard[number] = found
        if progress is not None:
            progress(len(by_shard), len(tasks))
    problems += [problem for number in sorted(by_shard) for problem in by_shard[number]]
    return CheckReport(sum(split.samples for split in dataset.splits.values()), len(dataset.shards), problems)


def _check_description(dataset: Dataset) -> list[str]:
    problems = []
    if compute_fingerprint(dataset.classes, dataset.shards, dataset.splits) != dataset.fingerprint:
        problems.append(f"{dataset.folder}: the fingerprint does not match the description: dataset.json was modified")
    listed = sum(shard.samples for shard in dataset.shards)
    indexed = sum(split.samples for split in dataset.splits.values())
    if listed != indexed:
        problems.append(f"{dataset.folder}: the shards hold {listed} samples, the splits {indexed}")
    return problems


def _check_index(dataset: Dataset, split: str) -> list[str]:
    """Return the problems of a split's index; an index with problems is not used to check shards."""
    entry = dataset.splits[split]
    path = dataset.folder / entry.index
    try:
        if compute_sha256(path) != entry.index_sha256:
            return [f"{path}: the checksum of the index differs from the recorded one: pack again with --force"]
        index = Index.open(dataset, split)
    except (OSError, DataError) as error:
        return [str(error)]
    problems = []
    if index.class_counts != entry.class_counts:
        problems.append(f"{path}: class counts are {list(index.class_counts)}, expected {list(entry.class_counts)}")
    if pc.count_distinct(index.column("key")).as_py() != len(index):
        problems.append(f"{path}: a key occurs twice")
    return problems


def _check_shard(task: _ShardTask) -> list[str]:
    shard = task.dataset.shards[task.shard]
    path = task.dataset.shard_path(task.shard)
    try:
        size = path.stat().st_size
        if size != shard.bytes:
            return [f"{path}: {size} bytes, expected {shard.bytes}: truncated or modified"]
        problems = (
            [] if compute_sha256(path) == shard.sha256 else [f"{path}: the checksum differs: the file was modified"]
        )
        samples = {sample.key: sample for sample in group_by_key(path, read_headers(path))}
    except OSError as error:
        return [f"{path}: shard is missing ({error.strerror})"]
    except DataError as error:
        return [str(error)]
    if len(samples) != shard.samples:
        problems.append(f"{path}: contains {len(samples)} samples, expected {shard.samples}")
    store = LocalStore(task.dataset)
    for split in task.splits:
        index = Index.open(task.dataset, split)
        first, end = np.searchsorted(index.column("shard"), [task.shard, task.shard + 1])  # rows are sorted by shard
        for row in range(first, end):
            record = index.row(row)
            sample = samples.get(record.key)
            try:
                if sample is None:
                    raise DataError("is in the index, but not in the shard")
                _check_sample(record, sample.image(path)[1], store)
            except DataError as error:
                problems.append(f"{path}: sample {record.key!r} at byte {record.offset}: {error}")
            if parallel.stop_requested():
                return problems
    more = len(problems) - _MAX_PROBLEMS
    return problems if more <= 0 else [*problems[:_MAX_PROBLEMS], f"{path}: and {more} more"]


def _check_sample(record: Record, image: TarMember, store: LocalStore) -> None:
    if (image.data, image.size) != (record.offset, record.length):
        raise DataError(f"its image has {image.size} bytes at byte {image.data}, expected {record.length} by the index")
    ext = verify_image(store.read(record.shard, record.offset, record.length))
    if ext != record.ext:
        raise DataError(f"is {ext}, expected {record.ext} by the index")
