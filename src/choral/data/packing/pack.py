"""A source of labelled images becomes a folder of shards, with an index of where everything lies.

Everything is decided first (`layout`): splits and shards depend on keys and the seed alone, so that the output has the
same bits however many processes write it and however often it was interrupted. Then shards are written in parallel
(`write`), and last `dataset.json`, which makes the folder complete.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from choral.core import worker_processes as parallel
from choral.core.errors import ConfigError, DataError
from choral.data.packing.image_files import Encoding
from choral.data.packing.layout import Layout, assign_splits, lay_out, metadata_columns, plan_of_tars
from choral.data.packing.options import PackOptions
from choral.data.packing.output_dir import Output, claim, finished
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
    count_classes,
    fingerprint_of,
    write_index,
)

__all__ = ["PackOptions", "pack"]

_BAD_IMAGES = 100  # after so many, something is wrong with all of them
_NAMED_IMAGES = 5
_NOT_STORED = ("processes", "force", "root")  # options that do not change what is packed

Progress = Callable[[int, int], None]


def pack(spec: str, out: str | Path, options: PackOptions | None = None, progress: Progress | None = None) -> Dataset:
    """Pack the source `spec` into the folder `out`; a finished one is returned at once, an interrupted one continued.

    Args:
        spec: as `open_source`.
        out: a new or empty folder, or one that was packed or begun from the same source with the same options.
        options: see `PackOptions`.
        progress: called in this process with (samples done, samples in all); for tars that are only indexed with tars.

    Raises:
        ConfigError: the source or the options cannot be used, or `out` holds something else.
        DataError: the source is missing or damaged. All bad images are looked for, the first are named, and what was
            written is removed.
    """
    options = options or PackOptions()
    out = Path(os.path.abspath(Path(out).expanduser()))  # noqa: PTH100 - no dots, but links stay
    source = open_source(spec, options)
    if isinstance(source, TarSource):
        return _index(source, out, options, progress)
    if source.provenance["kind"] == "folder" and out.is_relative_to(source.provenance["path"]):
        raise ConfigError(f"{out}: lies in the folder that is packed: choose one outside")
    layout = lay_out(source, options)
    if (done := finished(out, layout.plan, options.force)) is not None:
        return done
    with claim(out, layout.plan, layout.names, options.force) as output:
        try:
            bad = _write_shards(source, layout, output, options, progress)
        except OSError as error:
            raise DataError(f"{out}: cannot be written ({error.strerror}); run again to continue") from error
        if bad:
            output.discard()
            raise DataError(_describe(bad))
        shards, table = _gather(layout, output)
        return _complete(output, layout.plan, source, source.classes, shards, table, layout.splits, options)


def _index(source: TarSource, out: Path, options: PackOptions, progress: Progress | None) -> Dataset:
    """Write an index over tars that stay where they are."""
    if options.max_size is not None or options.quality is not None:
        raise ConfigError(
            f"{source.name}: tars are only indexed, their images stay as they are; leave out max_size and quality"
        )
    plan = plan_of_tars(source, options)
    if (done := finished(out, plan, options.force)) is not None:
        return done
    classes, shards, table = index_tars(source, options, progress)
    splits = assign_splits(table, source, classes, options)
    with claim(out, plan, (), options.force) as output:
        return _complete(output, plan, source, classes, shards, table, splits, options)


def _write_shards(
    source: ImageSource, layout: Layout, output: Output, options: PackOptions, progress: Progress | None
) -> list[BadImage]:
    encoding = Encoding(options.max_size, options.quality)
    rows = {name: (layout.starts[i], layout.starts[i + 1]) for i, name in enumerate(layout.names)}
    todo = [name for name in layout.names if output.record(name) is None]
    done = layout.samples.num_rows - sum(rows[name][1] - rows[name][0] for name in todo)
    tasks = [
        ShardTask(
            output.folder,
            name,
            layout.samples.take(pa.array(np.arange(*rows[name]))),
            source.reader,
            encoding,
            options.task,
            source.classes,
        )
        for name in todo
    ]  # take copies, a slice would travel to the workers with the whole table
    if progress is not None:
        progress(done, layout.samples.num_rows)
    bad: list[BadImage] = []
    for number, result in parallel.run(write_shard, tasks, options.processes):
        bad += result
        if len(bad) > _BAD_IMAGES:
            break
        done += tasks[number].samples.num_rows
        if progress is not None:
            progress(done, layout.samples.num_rows)
    return sorted(bad, key=lambda image: image.place)


def _describe(bad: Sequence[BadImage]) -> str:
    first = f"{bad[0].place}: {bad[0].reason}"
    if len(bad) == 1:
        return first
    others = ", ".join(image.place for image in bad[1:_NAMED_IMAGES]) + (", ..." if len(bad) > _NAMED_IMAGES else "")
    count = f"more than {_BAD_IMAGES}" if len(bad) > _BAD_IMAGES else len(bad)
    return f"{first}\n{count} images cannot be packed, also {others}"


def _gather(layout: Layout, output: Output) -> tuple[list[Shard], pa.Table]:
    """Join what the workers recorded with the samples, which lie in the same order."""
    shards: list[Shard] = []
    offsets: list[int] = []
    lengths: list[int] = []
    exts: list[str] = []
    for name in layout.names:
        record = output.record(name)
        assert record is not None, f"{name} was written but not recorded"
        shards.append(Shard(f"{name}.tar", record["bytes"], record["sha256"], len(record["offsets"])))
        offsets += record["offsets"]
        lengths += record["lengths"]
        exts += record["exts"]
    placing = {
        "shard": pa.array(np.repeat(np.arange(len(shards), dtype=np.int32), np.diff(layout.starts))),
        "offset": pa.array(offsets, pa.int64()),
        "length": pa.array(lengths, pa.int64()),
        "ext": pa.array(exts, pa.string()).cast(EXT_TYPE),
    }
    samples = layout.samples
    return shards, pa.table({**{name: samples[name] for name in samples.column_names}, **placing})


def _complete(
    output: Output,
    plan: str,
    source: ImageSource | TarSource,
    classes: Sequence[str],
    shards: Sequence[Shard],
    table: pa.Table,
    splits: NDArray[np.int8],
    options: PackOptions,
) -> Dataset:
    """Write an index for each split that has samples, then the description."""
    extra = [name for name in ("group", LABEL_IDS) if name in table.column_names]
    columns = [*CORE_COLUMNS, *extra, *metadata_columns(table)]
    described: dict[str, Split] = {}
    for number, name in enumerate(SPLITS):
        rows = (
            table.filter(pa.array(splits == number))
            .select(columns)
            .sort_by([("shard", "ascending"), ("offset", "ascending")])
        )
        if rows.num_rows == 0:
            continue
        described[name] = Split(
            samples=rows.num_rows,
            index=f"{name}.arrow",
            index_sha256=write_index(output.folder / f"{name}.arrow", rows),
            shards=tuple(np.unique(rows["shard"].to_numpy()).tolist()),
            class_counts=count_classes(rows, options.task, len(classes)),
        )
    asked: dict[str, Any] = {k: v for k, v in dataclasses.asdict(options).items() if k not in _NOT_STORED}
    asked["stratify"] = list(options.stratify)  # as it is read back
    if asked.pop("targets"):
        asked["targets"] = list(options.targets)
    dataset = Dataset(
        folder=output.folder,
        name=source.name,
        task=options.task,
        classes=tuple(classes),
        shards=tuple(shards),
        splits=described,
        fingerprint=fingerprint_of(classes, shards, described),
        plan=plan,
        source={**source.provenance, "options": asked},
        columns={name: str(table.schema.field(name).type) for name in columns},
    )
    output.complete(dataset)
    return dataset
