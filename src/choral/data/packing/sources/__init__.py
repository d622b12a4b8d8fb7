"""Sources of labelled images: class folders, manifests, WebDataset tars, torchvision data sets, and elpv.

To add a source, write `sources/NAME.py` with a function that returns an `ImageSource` (`base.py`):
  1. a table of samples: key (`make_sample_key`, unless names are known to be unique), location, size, label,
     optionally split and group, and any metadata columns;
  2. the class names, in the order of the label ids;
  3. a picklable `ImageReader` that returns the encoded bytes of a location (`FileReader` for files).
Then register it in `open_source` below, by its name, a prefix or a suffix, and in the messages there, the help of `pack`
(cli/data_verbs.py) and data/README.md. Wrap it in `_with_task` if it has one class per image.
`elpv.py` is the shortest example.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pyarrow as pa

from choral.core.errors import ConfigError, DataError, did_you_mean
from choral.core.files import check_local_path
from choral.data.packing.options import PackOptions
from choral.data.packing.sources.base import IMAGE_SUFFIXES, ImageSource
from choral.data.packing.sources.elpv import open_elpv
from choral.data.packing.sources.folder import open_folder
from choral.data.packing.sources.label_column import use_column_as_label
from choral.data.packing.sources.manifest import MANIFEST_SUFFIXES, open_manifest
from choral.data.packing.sources.tars import TarSource, find_tars, open_tars
from choral.data.packing.sources.torchvision_dataset import TORCHVISION_PREFIX, open_torchvision
from choral.data.shards.index import DATASET_FILE

__all__ = ["ImageSource", "TarSource", "open_source"]


def open_source(spec: str, options: PackOptions) -> ImageSource | TarSource:
    """Return the source that `spec` specifies; nothing is written, and no image is read.

    Args:
        spec: "elpv", "torchvision:NAME", a manifest (.csv, .tsv, .parquet), tars (a folder, a glob, a brace expression
            or a file), or a folder of class folders. Write ./elpv for a folder with that name.
        options: task, column names and so on.

    Raises:
        ConfigError: an unsupported source, or one without labels for the task.
        DataError: the source is missing or malformed.
    """
    if spec == "elpv":
        return _with_task(open_elpv(), options)
    if spec.startswith(TORCHVISION_PREFIX):
        return _with_task(open_torchvision(spec, options), options)
    path = Path(os.path.abspath(Path(check_local_path(spec)).expanduser()))  # noqa: PTH100 - no dots, but links stay
    if path.suffix.lower() == ".tar" or (not path.exists() and "*" in spec):
        return open_tars(spec)
    if path.suffix.lower() in MANIFEST_SUFFIXES and path.is_file():
        return open_manifest(path, options)
    if path.is_dir():
        if (path / DATASET_FILE).is_file():
            raise ConfigError(f"{spec}: is already a packed directory; use it as data.shards")
        return open_tars(spec) if _holds_tars(path) else _with_task(open_folder(path), options)
    if path.exists():
        raise ConfigError(
            f"{spec}: expected a folder, a manifest (.csv, .tsv, .parquet), tars, torchvision:NAME or elpv"
        )
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    raise DataError(f"{spec}: no such folder or file.{did_you_mean(path.name, [*siblings, 'elpv'])}")


def _with_task(source: ImageSource, options: PackOptions) -> ImageSource:
    """Adapt a source with one class per image to the task: other labels and targets come from its metadata columns."""
    if options.task == "multilabel":
        raise ConfigError(
            f"{source.name}: has one class per image; for several labels use a manifest (.csv, .parquet) or tars with "
            ".json files"
        )
    if options.task == "multiclass":
        return (
            source
            if options.label_column == PackOptions.label_column
            else use_column_as_label(source, options.label_column)
        )
    number = source.samples.column_names.index("label")
    zeros = pa.array([0] * source.samples.num_rows, pa.int64())
    samples = source.samples.set_column(number, "label", zeros)
    return dataclasses.replace(source, classes=options.targets, samples=samples)


def _holds_tars(folder: Path) -> bool:
    """Return whether `folder` holds tars, and no images beside them: class folders may contain a stray archive."""
    parents = {path.parent for path in find_tars(str(folder))}
    images = (entry for parent in parents for entry in parent.iterdir() if entry.name.lower().endswith(IMAGE_SUFFIXES))
    return bool(parents) and next(images, None) is None
