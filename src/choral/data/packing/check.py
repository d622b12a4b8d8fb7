"""Whether a packed folder still holds what was packed: checksums, tars against index, and that every image opens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from choral.core import worker_processes as parallel
from choral.core.errors import DataError
from choral.core.files import sha256_of
from choral.data.packing.image_files import verify
from choral.data.packing.options import PackOptions
from choral.data.shards.index import Dataset, Index, Record, fingerprint_of
from choral.data.shards.store import LocalStore
from choral.data.shards.tar import Member, group, scan

_NAMED_PROBLEMS = 20  # a shard
_BYTES_WORTH_A_PROCESS = 64 << 20


@dataclass(frozen=True)
class CheckReport:
    """How much was checked, and what was found to be wrong: one line each, naming the file; none if all is well."""

    samples: int
    shards: int
    problems: list[str]


@dataclass(frozen=True)
class _ShardTask:
    dataset: Dataset
    shard: int
    splits: tuple[str, ...]


def check(
    folder: str | Path, progress: Callable[[int, int], None] | None = None, processes: int | None = None
) -> CheckReport:
    """Verify a packed folder: checksum of each shard and index, the tars' headers against the index, every image.

    Args:
        folder: as packed.
        progress: called in this process with (shards done, shards in all).
        processes: None for as many as there are cores, but one for small data.

    Raises:
        DataError: not a packed folder, or its description is damaged. Damaged shards are not raised but reported.
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
        worth = sum(shard.bytes for shard in dataset.shards) // _BYTES_WORTH_A_PROCESS
        processes = max(1, min(PackOptions().processes, worth))
    found_in: dict[int, list[str]] = {}
    for number, found in parallel.run(_check_shard, tasks, processes):
        found_in[number] = found
        if progress is not None:
            progress(len(found_in), len(tasks))
    problems += [problem for number in sorted(found_in) for problem in found_in[number]]
    return CheckReport(sum(split.samples for split in dataset.splits.values()), len(dataset.shards), problems)


def _check_description(dataset: Dataset) -> list[str]:
    problems = []
    if fingerprint_of(dataset.classes, dataset.shards, dataset.splits) != dataset.fingerprint:
        problems.append(f"{dataset.folder}: the fingerprint does not fit the description: dataset.json was changed")
    listed = sum(shard.samples for shard in dataset.shards)
    indexed = sum(split.samples for split in dataset.splits.values())
    if listed != indexed:
        problems.append(f"{dataset.folder}: shards hold {listed} samples, splits {indexed}")
    return problems


def _check_index(dataset: Dataset, split: str) -> list[str]:
    """Return what is wrong with the index of a split; where something is, it is not used to check shards."""
    entry = dataset.splits[split]
    path = dataset.folder / entry.index
    try:
        if sha256_of(path) != entry.index_sha256:
            return [f"{path}: the index has another checksum than when it was written: pack again with --force"]
        index = Index.open(dataset, split)
    except (OSError, DataError) as error:
        return [str(error)]
    problems = []
    if index.class_counts != entry.class_counts:
        problems.append(f"{path}: samples a class are {list(index.class_counts)}, expected {list(entry.class_counts)}")
    if pc.count_distinct(index.column("key")).as_py() != len(index):
        problems.append(f"{path}: a key occurs twice")
    return problems


def _check_shard(task: _ShardTask) -> list[str]:
    shard = task.dataset.shards[task.shard]
    path = task.dataset.shard_path(task.shard)
    try:
        size = path.stat().st_size
        if size != shard.bytes:
            return [f"{path}: {size} bytes, expected {shard.bytes}: cut short or changed"]
        problems = [] if sha256_of(path) == shard.sha256 else [f"{path}: the checksum differs: its bytes have changed"]
        samples = {sample.key: sample for sample in group(path, scan(path))}
    except OSError as error:
        return [f"{path}: shard is missing ({error.strerror})"]
    except DataError as error:
        return [str(error)]
    if len(samples) != shard.samples:
        problems.append(f"{path}: holds {len(samples)} samples, expected {shard.samples}")
    store = LocalStore(task.dataset)
    for split in task.splits:
        index = Index.open(task.dataset, split)
        first, end = np.searchsorted(index.column("shard"), [task.shard, task.shard + 1])  # rows lie in order of shard
        for row in range(first, end):
            record = index.row(row)
            sample = samples.get(record.key)
            try:
                if sample is None:
                    raise DataError("is in the index, but not in the shard")
                _check_sample(record, sample.image(path)[1], store)
            except DataError as error:
                problems.append(f"{path}: sample {record.key!r} at byte {record.offset}: {error}")
            if parallel.stopping():
                return problems
    more = len(problems) - _NAMED_PROBLEMS
    return problems if more <= 0 else [*problems[:_NAMED_PROBLEMS], f"{path}: and {more} more"]


def _check_sample(record: Record, image: Member, store: LocalStore) -> None:
    if (image.data, image.size) != (record.offset, record.length):
        raise DataError(f"its image has {image.size} bytes at byte {image.data}, the index says {record.length}")
    ext = verify(store.read(record.shard, record.offset, record.length))
    if ext != record.ext:
        raise DataError(f"is {ext}, the index says {record.ext}")
