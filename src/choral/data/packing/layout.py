"""Assigns every sample to a split and a shard, before anything is written."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from choral.core.errors import ConfigError, DataError, did_you_mean
from choral.data.packing.options import PackOptions
from choral.data.packing.sources import ImageSource, TarSource
from choral.data.packing.sources.base import check_targets
from choral.data.shards.index import LABEL_IDS, SPLITS, count_classes
from choral.data.shards.splits import hash_keys, split_sizes, stratified_split
from choral.data.shards.strata import compute_strata, encode_groups

_MIN_SAMPLES_PER_SHARD = 64
_SHARDS_OF_SMALL_SPLITS = 8  # so that small data sets, too, are packed in parallel and resumed
_NOT_METADATA = (LABEL_IDS, "key", "location", "size", "label", "split", "group", "shard", "offset", "length", "ext")


@dataclass(frozen=True)
class Layout:
    """Samples in the order in which they are stored; shard names[i] holds rows starts[i] up to starts[i + 1]."""

    samples: pa.Table
    splits: NDArray[np.int8]  # (n,) positions in SPLITS
    names: tuple[str, ...]
    starts: tuple[int, ...]
    plan_hash: str  # of everything that decides what is written


def metadata_columns(samples: pa.Table) -> list[str]:
    """Return the names of the metadata columns, which choral stores but does not interpret."""
    return [name for name in samples.column_names if name not in _NOT_METADATA]


def build_layout(source: ImageSource, options: PackOptions) -> Layout:
    """Return the layout of a source; each split is shuffled by a hash of seed and key, so that shards mix classes.

    Raises:
        ConfigError, DataError: as `assign_splits`.
    """
    samples = source.samples.sort_by("key")  # from here on nothing depends on the order of files
    splits = assign_splits(samples, source, source.classes, options)
    hashes = hash_keys(samples["key"].to_pylist(), options.seed, "shard")
    order = np.lexsort((hashes, splits))
    names: list[str] = []
    starts = [0]
    for number, split in enumerate(SPLITS):
        count = int((splits == number).sum())
        limit = max(_MIN_SAMPLES_PER_SHARD, math.ceil(count / _SHARDS_OF_SMALL_SPLITS))
        limit = min(options.samples_per_shard, limit)
        shards = math.ceil(count / limit)
        names += [f"{split}-{shard:06d}" for shard in range(shards)]
        first = starts[-1]
        starts.extend(first + count * (shard + 1) // shards for shard in range(shards))
    samples = samples.take(pa.array(order))
    plan_hash = _hash_plan(samples, source, options, [*names, *map(str, starts)])
    return Layout(samples, splits[order], tuple(names), tuple(starts), plan_hash)


def _hash_plan(samples: pa.Table, source: ImageSource, options: PackOptions, shards: list[str]) -> str:
    settings = [
        source.name,
        source.provenance["kind"],
        source.classes,
        options.task,
        options.max_size,
        options.quality,
        shards,
    ]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for name in samples.column_names:
        digest.update(
            json.dumps([name, str(samples.schema.field(name).type), samples[name].to_pylist()], default=str).encode()
        )
    return digest.hexdigest()


def hash_tar_plan(source: TarSource, options: PackOptions) -> str:
    """Return the plan hash of an index over tars: of their paths, sizes and mtimes, and of the options."""
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in source.paths]
    names = (options.label_column, options.split_column, options.group_column)
    settings = [
        source.classes,
        source.splits,
        stats,
        options.val,
        options.test,
        options.seed,
        options.stratify,
        names,
        options.task,
        *options.targets,
    ]
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()


def assign_splits(
    samples: pa.Table, source: ImageSource | TarSource, classes: Sequence[str], options: PackOptions
) -> NDArray[np.int8]:
    """Return the (n,) int8 split of each sample, as positions in SPLITS.

    Splits that the source defines are kept. A missing validation split is taken from the training samples; a missing
    test split only if the options ask for one or the source defines neither. Keys must be unique within a split, a group
    must not be in two splits, and a class or label with samples must have some in training. Regression targets must be
    finite numbers.

    Raises:
        ConfigError: a fraction for a split that the source defines, or an unknown column in `stratify` or `targets`.
        DataError: an invalid target, a key that occurs twice, a group in two splits, a class without training samples,
            or too few samples.
    """
    if options.task == "regression":
        check_targets(samples, classes, metadata_columns(samples), source.name)
    given = samples["split"].to_pylist() if "split" in samples.column_names else None
    position = {name: number for number, name in enumerate(SPLITS)}
    if given is None:
        result = np.zeros(samples.num_rows, dtype=np.int8)
    else:
        result = np.array([position[name] for name in given], dtype=np.int8)
    _check_groups(samples, result)
    _check_classes(samples, result, classes, options)
    val, test = _split_fractions(set(given or ()), source, options)
    strata = _strata(samples, options.stratify or source.stratify, options.task, classes)
    groups = encode_groups(samples)
    if val or test:
        pool = np.flatnonzero(result == 0)
        counts = split_sizes(samples.num_rows, val, test)
        keys = samples["key"].take(pa.array(pool)).to_pylist()
        pool_groups = None if groups is None else np.unique(groups[1][pool], return_inverse=True)[1]
        pool_strata = np.unique(strata[pool], return_inverse=True)[1]
        result[pool] = stratified_split(keys, pool_strata, *counts, options.seed, pool_groups)
        _check_classes(samples, result, classes, options)
    _check_keys(samples, result, source)
    return result


def _split_fractions(given: set[str], source: ImageSource | TarSource, options: PackOptions) -> tuple[float, float]:
    """Return the fractions of all samples for validation and test; 0 for splits that the source defines."""
    for name, fraction in (("val", options.val), ("test", options.test)):
        if fraction and (name in given or (given and "train" not in given)):
            raise ConfigError(
                f"{source.name}: already has the splits {', '.join(sorted(given))}: remove the option {name}"
            )
    if given and "train" not in given:
        return 0.0, 0.0
    val = source.val if options.val is None else options.val
    default_test = 0.0 if "val" in given else source.test
    test = default_test if options.test is None else options.test
    return 0.0 if "val" in given else val, 0.0 if "test" in given else test


def _strata(samples: pa.Table, columns: Sequence[str], task: str, classes: Sequence[str]) -> NDArray[np.int64]:
    """Return the (n,) int64 strata: combinations of the label's stratum (`compute_strata`) and the values of `columns`."""
    available = metadata_columns(samples)
    strata: NDArray[np.int64] = compute_strata(samples, task, classes)
    for name in columns:
        if name not in available:
            hint = did_you_mean(name, available)
            raise ConfigError(f"stratify: no column {name!r}; available: {', '.join(available)}.{hint}")
        values = samples[name].combine_chunks()
        if pa.types.is_floating(values.type):
            raise ConfigError(f"stratify: column {name!r} is continuous; choose a column with few distinct values")
        ranks = np.unique(np.array([str(value) for value in values.to_pylist()]), return_inverse=True)[1]
        strata = np.unique(strata * (int(ranks.max()) + 1) + ranks, return_inverse=True)[1]
    return strata


def _check_keys(samples: pa.Table, splits: NDArray[np.int8], source: ImageSource | TarSource) -> None:
    for number, split in enumerate(SPLITS):
        part = samples.filter(pa.array(splits == number))
        if part.num_rows == 0 or pc.count_distinct(part["key"]).as_py() == part.num_rows:
            continue
        counts = part["key"].value_counts()
        key = next(entry["values"].as_py() for entry in counts if entry["counts"].as_py() > 1)
        rows = part.filter(pc.equal(part["key"], key)).slice(0, 2)
        if isinstance(source, TarSource):
            locations = [f"{source.paths[r['shard']]} at byte {r['offset']}" for r in rows.to_pylist()]
        else:
            locations = [source.reader.describe(r["location"]) for r in rows.to_pylist()]
        raise DataError(f"key {key!r} occurs twice in {split}: {' and '.join(locations)}")


def _check_groups(samples: pa.Table, splits: NDArray[np.int8]) -> None:
    if "group" not in samples.column_names:
        return
    pairs = pa.table({"group": samples["group"], "split": pa.array(splits)}).filter(pc.is_valid(samples["group"]))
    pairs = pairs.group_by(["group", "split"]).aggregate([])
    if pc.count_distinct(pairs["group"]).as_py() != pairs.num_rows:
        counts = pairs["group"].value_counts()
        name = min(entry["values"].as_py() for entry in counts if entry["counts"].as_py() > 1)
        raise DataError(f"group {name!r} has samples in more than one split: assign all of them to the same split")


def _check_classes(samples: pa.Table, splits: NDArray[np.int8], classes: Sequence[str], options: PackOptions) -> None:
    if not (splits == 0).any() or options.task == "regression":
        return  # evaluation data without a training split, or a task without classes
    parts = (samples.filter(pa.array(splits == number)) for number in range(len(SPLITS)))
    counts = np.array([count_classes(part, options.task, len(classes)) for part in parts])
    for label in np.flatnonzero((counts[0] == 0) & (counts.sum(0) > 0)):
        split = SPLITS[int(np.argmax(counts[:, label]))]
        kind = "class" if options.task == "multiclass" else "label"
        raise DataError(
            f"{kind} {classes[int(label)]!r} has {counts[:, label].sum()} samples, in {split}, but none in train: "
            "the model could not learn it"
        )
