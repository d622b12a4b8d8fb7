"""Opens every image of a data set once: measures, hashes, and thumbnails for the search of near-duplicates.

The survey is stored beside the shards, SHARDS/.health/SPLIT-FINGERPRINT.arrow, one row a sample in the order of the index. It
does not depend on the run, so the second analysis of the same data opens no image.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from choral.core import worker_processes as parallel
from choral.core.errors import ChoralError, DataError
from choral.core.files import atomic_file
from choral.data.loading.decode import MAX_PIXELS, Pixels, decode
from choral.data.shards.index import Dataset, Index
from choral.data.shards.store import LocalStore

_log = logging.getLogger(__name__)

FORMAT = "choral-survey-2"  # change it when any value of any image changes
SURVEY_DIR = ".health"
SIDE = 128
"""Pixels of the square in which images are compared in detail."""
CELLS = 12
"""Side of a thumbnail, in cells."""
CROP_SCALE = 0.95
"""Of the sides, that the nine crops keep."""
CROPS = ((1.0, 0.0, 0.0), *((CROP_SCALE, y, x) for y in (0.0, 0.5, 1.0) for x in (0.0, 0.5, 1.0)))
"""Crops with a thumbnail each: share of the sides, and position from 0 (top, left) to 1. The first is the whole image."""
MEASURES = ("height", "width", "aspect", "brightness", "contrast", "saturation", "sharpness")
_ROWS_PER_TASK = 256
_MIN_PARALLEL = 1024  # samples: starting a process costs a second
_BLUR = 2.0
_FLAT = 1e-3  # standard deviation of a thumbnail, in grey levels: below it, there is nothing to compare
_MAX_MEASURED_SIDE = 512  # pixels of the longer side, to which images are scaled down before they are measured

Progress = Callable[[int, int], None]
"""Called with what is done, and the total."""


@dataclass(frozen=True)
class Survey:
    """Measures of the n images of one split, in the order of its index.

    Attributes:
        index: of the split.
        reasons: (n,) why an image cannot be decoded; "" where it can.
        measures: name from `MEASURES` to (n,) float64; NaN where the image cannot be decoded.
        grey, constant: (n,) bool, whether the three channels, or all pixels, are the same.
        file_hash, pixel_hash: (n,) "S16" of the stored bytes, and of the decoded pixels.
        thumbnails: (n, crops, CELLS^2) float16 of mean 0 and length 1; all 0 where the image is flat.
    """

    index: Index
    reasons: list[str]
    measures: dict[str, NDArray[np.float64]]
    grey: NDArray[np.bool_]
    constant: NDArray[np.bool_]
    file_hash: NDArray[np.bytes_]
    pixel_hash: NDArray[np.bytes_]
    thumbnails: NDArray[np.float16]

    def __len__(self) -> int:
        """Return n."""
        return len(self.reasons)


@dataclass(frozen=True)
class _Task:
    index: Index
    first: int
    stop: int


def survey_images(
    dataset: Dataset, *, processes: int | None = None, progress: Progress | None = None
) -> dict[str, Survey]:
    """Return the survey of each split, read from disk where it is stored, else by opening all images.

    Args:
        dataset: packed.
        processes: worker processes that decode; None: one a core, a single one for small data.
        progress: called as images are opened, with their number and the total.

    Raises:
        DataError: a shard is missing or truncated.
    """
    indices = {name: Index.open(dataset, name) for name in dataset.splits}
    surveys = {name: _read_survey(index) for name, index in indices.items()}
    missing = [name for name, survey in surveys.items() if survey is None]
    total, done = sum(len(indices[name]) for name in missing), 0
    workers = processes or (len(os.sched_getaffinity(0)) if total >= _MIN_PARALLEL else 1)
    for name in missing:
        index = indices[name]
        tasks = [
            _Task(index, row, min(row + _ROWS_PER_TASK, len(index))) for row in range(0, len(index), _ROWS_PER_TASK)
        ]
        parts: list[pa.Table | None] = [None] * len(tasks)
        for number, part in parallel.map_unordered(_survey_rows, tasks, workers):
            parts[number] = part
            done += len(part)
            if progress is not None:
                progress(done, total)
        table = pa.concat_tables(parts) if parts else _schema().empty_table()
        _write_survey(index, table)
        surveys[name] = _survey_from_table(index, table)
    return {name: survey for name, survey in surveys.items() if survey is not None}


def find_rows(survey: Survey, keys: list[str]) -> NDArray[np.int64]:
    """Return the (N,) rows of samples of the split by their keys."""
    rows = {key: row for row, key in enumerate(survey.index.keys(np.arange(len(survey))))}
    return np.array([rows[key] for key in keys], np.int64)


def order_splits(surveys: dict[str, Survey]) -> Iterator[tuple[str, Survey]]:
    """Yield splits in the usual order: train, val, test, then others by name."""
    usual = ("train", "val", "test")
    for name in sorted(surveys, key=lambda split: (usual.index(split) if split in usual else len(usual), split)):
        yield name, surveys[name]


def read_image(index: Index, store: LocalStore, row: int) -> Pixels:
    """Return the decoded image of a row; DataError says why it cannot be decoded."""
    record = index.row(row)
    return decode(store.read(record.shard, record.offset, record.length), max_pixels=MAX_PIXELS)


def to_grey_square(image: Pixels) -> NDArray[np.float32]:
    """Return an image as a slightly smoothed grey square of SIDE pixels, in which details are compared."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    interpolation = cv2.INTER_AREA if min(grey.shape) >= SIDE else cv2.INTER_LINEAR
    square = cv2.resize(grey, (SIDE, SIDE), interpolation=interpolation).astype(np.float32)
    smooth: NDArray[np.float32] = np.asarray(cv2.GaussianBlur(square, (0, 0), 1.0), np.float32)
    return smooth


def crop_square(square: NDArray[np.float32], scale: float, y: float, x: float) -> NDArray[np.float32]:
    """Return a crop of a square, resized to the square's size; see `CROPS`."""
    if scale == 1.0:
        return square
    margin = (1 - scale) * SIDE
    shift = (scale - 1) / 2  # of pixel centres
    matrix = np.array([[scale, 0, margin * x + shift], [0, scale, margin * y + shift]], np.float32)
    return _as_float32(cv2.warpAffine(square, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP))


def compute_thumbnails(square: NDArray[np.float32]) -> NDArray[np.float16]:
    """Return the (crops, CELLS^2) thumbnails of a square, each of mean 0 and length 1, or 0 where it is flat."""
    smooth = _as_float32(cv2.GaussianBlur(square, (0, 0), _BLUR))
    thumbnails = np.stack(
        [
            cv2.resize(crop_square(smooth, *crop), (CELLS, CELLS), interpolation=cv2.INTER_AREA).reshape(-1)
            for crop in CROPS
        ]
    )
    thumbnails -= thumbnails.mean(axis=1, keepdims=True)
    length = np.linalg.norm(thumbnails, axis=1, keepdims=True)
    return np.where(length > _FLAT * CELLS, thumbnails / np.maximum(length, 1e-9), 0).astype(np.float16)


def _survey_rows(task: _Task) -> pa.Table:
    """Survey consecutive rows; runs in a worker process."""
    cv2.setNumThreads(1)
    store = LocalStore(task.index.dataset)
    rows: list[dict[str, Any]] = []
    for row in range(task.first, task.stop):
        if parallel.stop_requested():
            raise DataError("stopped")
        record = task.index.row(row)
        data = store.read(record.shard, record.offset, record.length)
        file_hash: dict[str, Any] = {"file_hash": _hash(data)}
        try:
            image = decode(data, max_pixels=MAX_PIXELS)
        except DataError as error:
            rows.append({**file_hash, **_unreadable_row(str(error))})
            continue
        rows.append({**file_hash, **_measure(image)})
    return pa.Table.from_pylist(rows, schema=_schema())


def _unreadable_row(reason: str) -> dict[str, Any]:
    return {
        "reason": reason,
        **dict.fromkeys(MEASURES, float("nan")),
        "grey": False,
        "constant": False,
        "pixel_hash": bytes(16),
        "thumbnails": np.zeros(len(CROPS) * CELLS**2, np.float16),
    }


def _measure(image: Pixels) -> dict[str, Any]:
    height, width = image.shape[:2]
    low, high = image.min(axis=(0, 1)), image.max(axis=(0, 1))
    shrink = min(1.0, _MAX_MEASURED_SIDE / max(height, width))
    size = max(1, round(width * shrink)), max(1, round(height * shrink))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if shrink < 1 else image
    levels = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    spread = (small.max(axis=2).astype(np.float32) - small.min(axis=2)) / 255
    grey = bool((image[..., 0] == image[..., 1]).all() and (image[..., 0] == image[..., 2]).all())
    return {
        "reason": "",
        "height": float(height),
        "width": float(width),
        "aspect": width / height,
        "brightness": float(levels.mean(dtype=np.float64)),
        "contrast": float(levels.std(dtype=np.float64)),
        "saturation": float(spread.mean(dtype=np.float64)),
        "sharpness": float(np.log10(cv2.Laplacian(levels, cv2.CV_32F).var(dtype=np.float64) + 1e-8)),
        "grey": grey,
        "constant": bool((low == high).all()),
        "pixel_hash": _hash(repr(image.shape).encode() + image.tobytes()),
        "thumbnails": compute_thumbnails(to_grey_square(image)).reshape(-1),
    }


def _schema() -> pa.Schema:
    thumbnails = pa.list_(pa.field("element", pa.float16(), nullable=False), len(CROPS) * CELLS**2)
    columns = [("reason", pa.string()), *((name, pa.float64()) for name in MEASURES)]
    columns += [("grey", pa.bool_()), ("constant", pa.bool_())]
    columns += [("file_hash", pa.binary(16)), ("pixel_hash", pa.binary(16)), ("thumbnails", thumbnails)]
    return pa.schema(columns)


def _survey_path(index: Index) -> Path:
    return index.dataset.folder / SURVEY_DIR / f"{index.split}-{index.dataset.fingerprint[:16]}.arrow"


def _read_survey(index: Index) -> Survey | None:
    """Return the stored survey; None where there is none, or it is damaged, or of other data or another format."""
    path = _survey_path(index)
    if not path.is_file():
        return None
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        table.validate(full=True)
    except (OSError, pa.ArrowException) as error:
        _log.warning("%s is damaged (%s); the images are opened again", path, error)
        return None
    is_current = (table.schema.metadata or {}).get(b"choral") == _format_tag(index) and len(table) == len(index)
    return _survey_from_table(index, table) if is_current else None


def _write_survey(index: Index, table: pa.Table) -> None:
    """Store a survey; where the shards' folder is not writable, log a warning instead."""
    path = _survey_path(index)
    try:
        path.parent.mkdir(exist_ok=True)
        schema = table.schema.with_metadata({b"choral": _format_tag(index)})
        with atomic_file(path) as file, pa.ipc.new_file(file, schema) as writer:
            writer.write_table(table.cast(schema).combine_chunks())
    except (OSError, ChoralError) as error:
        _log.warning("the survey cannot be stored in %s (%s); each analysis will open all images", path.parent, error)


def _format_tag(index: Index) -> bytes:
    return f"{FORMAT} {index.dataset.fingerprint}".encode()


def _survey_from_table(index: Index, table: pa.Table) -> Survey:
    table = table.combine_chunks()

    def column(name: str) -> Any:
        return table[name].chunk(0) if table[name].num_chunks else pa.array([], table.schema.field(name).type)

    thumbnails = column("thumbnails").flatten().to_numpy(zero_copy_only=False)
    return Survey(
        index=index,
        reasons=table["reason"].to_pylist(),
        measures={name: table[name].to_numpy() for name in MEASURES},
        grey=np.array(table["grey"].to_pylist(), np.bool_),
        constant=np.array(table["constant"].to_pylist(), np.bool_),
        file_hash=np.array(table["file_hash"].to_pylist(), "S16"),
        pixel_hash=np.array(table["pixel_hash"].to_pylist(), "S16"),
        thumbnails=thumbnails.reshape(len(table), len(CROPS), CELLS**2),
    )


def _hash(data: bytes) -> bytes:
    """Return 16 bytes without zeros, since NumPy strips trailing zeros."""
    return bytes(max(1, byte) for byte in hashlib.blake2b(data, digest_size=16).digest())


def _as_float32(image: Any) -> NDArray[np.float32]:
    """OpenCV's type stubs promise integers or floats; float32 input gives float32 output."""
    pixels: NDArray[np.float32] = image
    return pixels
