"""Where labelled images come from: folders, manifests, WebDataset tars, torchvision, and the demo's package."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pyarrow as pa

from choral.core.errors import ConfigError, DataError, did_you_mean
from choral.core.files import local_only
from choral.data.packing.options import PackOptions
from choral.data.packing.sources.base import IMAGE_SUFFIXES, ImageSource
from choral.data.packing.sources.elpv import open_elpv
from choral.data.packing.sources.folder import open_folder
from choral.data.packing.sources.label_column import labelled_by
from choral.data.packing.sources.manifest import MANIFEST_SUFFIXES, open_manifest
from choral.data.packing.sources.tars import TarSource, find_tars, open_tars
from choral.data.packing.sources.torchvision_dataset import PREFIX, open_torchvision
from choral.data.shards.index import DATASET_FILE

__all__ = ["ImageSource", "TarSource", "open_source"]


def open_source(spec: str, options: PackOptions) -> ImageSource | TarSource:
    """Return the source that `spec` names; nothing is written, and no image is read.

    Args:
        spec: "elpv", "torchvision:NAME", a manifest (.csv, .tsv, .parquet), tars (a folder, a glob, a brace expression
            or a file), or a folder of class folders. A folder called elpv is named ./elpv.
        options: column names and the like.

    Raises:
        ConfigError: a source that cannot be opened as it is named, or has no labels of the task.
        DataError: it is not there, or not what it should be.
    """
    if spec == "elpv":
        return _with_task(open_elpv(), options)
    if spec.startswith(PREFIX):
        return _with_task(open_torchvision(spec, options), options)
    path = Path(os.path.abspath(Path(local_only(spec)).expanduser()))  # noqa: PTH100 - no dots, but links stay
    if path.suffix.lower() == ".tar" or (not path.exists() and "*" in spec):
        return open_tars(spec)
    if path.suffix.lower() in MANIFEST_SUFFIXES and path.is_file():
        return open_manifest(path, options)
    if path.is_dir():
        if (path / DATASET_FILE).is_file():
            raise ConfigError(f"{spec}: is already a packed folder, ready to be used")
        return open_tars(spec) if _holds_tars(path) else _with_task(open_folder(path), options)
    if path.exists():
        raise ConfigError(
            f"{spec}: expected a folder, a manifest (.csv, .tsv, .parquet), tars, torchvision:NAME or elpv"
        )
    near = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    raise DataError(f"{spec}: no such folder or file.{did_you_mean(path.name, [*near, 'elpv'])}")


def _with_task(source: ImageSource, options: PackOptions) -> ImageSource:
    """Return a source whose images have one class each as one of another task, which only its metadata can serve."""
    if options.task == "multilabel":
        raise ConfigError(
            f"{source.name}: its images have one class each; several labels come from a manifest (.csv, .parquet) or from "
            "the .json files in tars"
        )
    if options.task == "multiclass":
        return source if options.label_column == PackOptions.label_column else labelled_by(source, options.label_column)
    number = source.samples.column_names.index("label")
    nothing = pa.array([0] * source.samples.num_rows, pa.int64())
    samples = source.samples.set_column(number, "label", nothing)
    return dataclasses.replace(source, classes=options.targets, samples=samples)


def _holds_tars(folder: Path) -> bool:
    """Tell a folder of tars from class folders among whose images somebody left an archive."""
    parents = {path.parent for path in find_tars(str(folder))}
    images = (entry for parent in parents for entry in parent.iterdir() if entry.name.lower().endswith(IMAGE_SUFFIXES))
    return bool(parents) and next(images, None) is None
