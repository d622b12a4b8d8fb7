"""Packs a source of labelled images into a directory of shards with an index.

`layout` decides everything first: splits and shards depend on the keys and the seed alone, so the output is bitwise the
same for any number of processes and after any interruption. Then worker processes write the shards (`write_shard`).
`dataset.json` is written last and marks the directory as complete.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from choral.core import worker_processes as parallel
from choral.core.errors import ConfigError, DataError
from choral.data.packing.image_files import ImageEncoding
from choral.data.packing.layout import Layout, assign_splits, build_layout, hash_tar_plan, metadata_columns
from choral.data.packing.options import PackOptions
from choral.data.packing.output_dir import OutputDir, lock_output_dir, open_if_complete
from choral.data.packing.sources import ImageSource, TarSource, open_source
from choral.data.packing.sources.tars import index_tars
from choral.data.packing.write_shard import BadImage, ShardTask, write_shard
from choral.data.shards.index import (
    CORE_COLUMNS,
    EXT_TYPE,
    LABEL_IDS,
    SPLITS,
    Dataset,
    Shard,
    Split,
    compute_fingerprint,
    count_classes,
    write_index,
)

__all__ = ["PackOptions", "pack"]

_MAX_BAD_IMAGES = 100  # stop after more than this: probably the whole source is wrong
_LISTED_IMAGES = 5
_UNRECORDED_OPTIONS = ("processes", "force", "root")  # they do not change what is packed

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class _PackedSamples:
    """What goes into the indexes and the description of a packed directory."""

    classes: tuple[str, ...]
    shards: list[Shard]
    table: pa.Table  # (n rows) columns of the index
    splits: NDArray[np.int8]  # (n,) positions in SPLITS
    plan_hash: str


def pack(spec: str, out: str | Path, options: PackOptions | None = None, progress: Progress | None = None) -> Dataset:
    """Pack the source `spec` into the directory `out`; return at once if that is done, continue if it was interrupted.

    Args:
        spec: a source, as for `open_source`.
        out: a new or empty directory, or one with a complete or partial pack of the same source and options.
        options: see `PackOptions`.
        progress: called in this process with (samples done, total samples); for tars indexed in place, with tars.

    Raises:
        ConfigError: the source or the options are invalid, or `out` holds something else.
        DataError: the source is missing or damaged. The message counts the bad images and lists the first ones; what was
            written is removed.
    """
    options = options or PackOptions()
    out = Path(os.path.abspath(Path(out).expanduser()))  # noqa: PTH100 - no dots, but links stay
    source = open_source(spec, options)
    if isinstance(source, TarSource):
        return _index_tars_in_place(source, out, options, progress)
    if source.provenance["kind"] == "folder" and out.is_relative_to(source.provenance["path"]):
        raise ConfigError(f"{out}: is inside the source: choose a directory outside of it")
    layout = build_layout(source, options)
    if (complete := open_if_complete(out, layout.plan_hash, options.force)) is not None:
        return complete
    with lock_output_dir(out, layout.plan_hash, layout.names, options.force) as output:
        try:
            bad = _write_shards(source, layout, output, options, progress)
        except OSError as error:
            raise DataError(f"{out}: cannot be written ({error.strerror}); run again to continue") from error
        if bad:
            output.discard()
            raise DataError(_describe_bad_images(bad))
        shards, table = _read_records(layout, output)
        packed = _PackedSamples(source.classes, shards, table, layout.splits, layout.plan_hash)
        return _write_dataset(output, source, packed, options)


def _index_tars_in_place(source: TarSource, out: Path, options: PackOptions, progress: Progress | None) -> Dataset:
    """Write the indexes of all splits over tars, which stay where they are; return at once if that is done.

    Raises:
        ConfigError: options that would change images.
    """
    if options.max_size is not None or options.quality is not None:
        raise ConfigError(
            f"{source.name}: tars are indexed in place and their images not changed; remove max_size and quality"
        )
    plan_hash = hash_tar_plan(source, options)
    if (complete := open_if_complete(out, plan_hash, options.force)) is not None:
        return complete
    classes, shards, table = index_tars(source, options, progress)
    splits = assign_splits(table, source, classes, options)
    with lock_output_dir(out, plan_hash, (), options.force) as output:
        packed = _PackedSamples(classes, shards, table, splits, plan_hash)
        return _write_dataset(output, source, packed, options)


def _write_shards(
    source: ImageSource, layout: Layout, output: OutputDir, options: PackOptions, progress: Progress | None
) -> list[BadImage]:
    encoding = ImageEncoding(options.max_size, options.quality)
    rows = {name: (layout.starts[i], layout.starts[i + 1]) for i, name in enumerate(layout.names)}
    todo = [name for name in layout.names if output.read_record(name) is None]
    done = layout.samples.num_rows - sum(rows[name][1] - rows[name][0] for name in todo)
    tasks = [
        ShardTask(
            output.folder,
            name,
            layout.samples.take(pa.array(np.arange(*rows[name]))),  # a copy: a slice would pickle the whole table
            source.reader,
            encoding,
            options.task,
            source.classes,
        )
        for name in todo
    ]
    if progress is not None:
        progress(done, layout.samples.num_rows)
    bad: list[BadImage] = []
    for number, result in parallel.map_unordered(write_shard, tasks, options.processes):
        bad += result
        if len(bad) > _MAX_BAD_IMAGES:
            break
        done += tasks[number].samples.num_rows
        if progress is not None:
            progress(done, layout.samples.num_rows)
    return sorted(bad, key=lambda image: image.location)


def _describe_bad_images(bad: Sequence[BadImage]) -> str:
    first = f"{bad[0].location}: {bad[0].reason}"
    if len(bad) == 1:
        return first
    others = ", ".join(image.location for image in bad[1:_LISTED_IMAGES])
    others += ", ..." if len(bad) > _LISTED_IMAGES else ""
    count = f"more than {_MAX_BAD_IMAGES}" if len(bad) > _MAX_BAD_IMAGES else len(bad)
    return f"{first}\n{count} images cannot be packed, also {others}"


def _read_records(layout: Layout, output: OutputDir) -> tuple[list[Shard], pa.Table]:
    """Return the shards, and the samples joined with the positions that the workers recorded in the same order."""
    shards: list[Shard] = []
    offsets: list[int] = []
    lengths: list[int] = []
    exts: list[str] = []
    for name in layout.names:
        record = output.read_record(name)
        assert record is not None, f"{name} was written but not recorded"
        shards.append(Shard(f"{name}.tar", record["bytes"], record["sha256"], len(record["offsets"])))
        offsets += record["offsets"]
        lengths += record["lengths"]
        exts += record["exts"]
    positions = {
        "shard": pa.array(np.repeat(np.arange(len(shards), dtype=np.int32), np.diff(layout.starts))),
        "offset": pa.array(offsets, pa.int64()),
        "length": pa.array(lengths, pa.int64()),
        "ext": pa.array(exts, pa.string()).cast(EXT_TYPE),
    }
    samples = layout.samples
    return shards, pa.table({**{name: samples[name] for name in samples.column_names}, **positions})


def _write_dataset(
    output: OutputDir, source: ImageSource | TarSource, packed: _PackedSamples, options: PackOptions
) -> Dataset:
    """Write an index for each split that has samples, then the description."""
    table = packed.table
    extra = [name for name in ("group", LABEL_IDS) if name in table.column_names]
    columns = [*CORE_COLUMNS, *extra, *metadata_columns(table)]
    splits: dict[str, Split] = {}
    for number, name in enumerate(SPLITS):
        rows = (
            table.filter(pa.array(packed.splits == number))
            .select(columns)
            .sort_by([("shard", "ascending"), ("offset", "ascending")])
        )
        if rows.num_rows == 0:
            continue
        splits[name] = Split(
            samples=rows.num_rows,
            index=f"{name}.arrow",
            index_sha256=write_index(output.folder / f"{name}.arrow", rows),
            shards=tuple(np.unique(rows["shard"].to_numpy()).tolist()),
            class_counts=count_classes(rows, options.task, len(packed.classes)),
        )
    recorded: dict[str, Any] = {k: v for k, v in dataclasses.asdict(options).items() if k not in _UNRECORDED_OPTIONS}
    recorded["stratify"] = list(options.stratify)  # JSON has no tuples
    if recorded.pop("targets"):
        recorded["targets"] = list(options.targets)
    dataset = Dataset(
        folder=output.folder,
        name=source.name,
        task=options.task,
        classes=packed.classes,
        shards=tuple(packed.shards),
        splits=splits,
        fingerprint=compute_fingerprint(packed.classes, packed.shards, splits),
        plan_hash=packed.plan_hash,
        source={**source.provenance, "options": recorded},
        columns={name: str(table.schema.field(name).type) for name in columns},
    )
    output.finalize(dataset)
    return dataset
