"""Every image of a data set looked at once: what it measures, and what it looks like from afar.

What is found is kept beside the shards, SHARDS/.health/SPLIT-FINGERPRINT.arrow, a row a sample in the order of the index, and
is the same whoever looks: the second analysis of the same data opens no image.
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
from choral.core.files import written_aside
from choral.data.loading.decode import MAX_PIXELS, Pixels, decode
from choral.data.shards.index import Dataset, Index
from choral.data.shards.store import LocalStore

_log = logging.getLogger(__name__)

FORMAT = "choral-survey-1"  # another number when any figure of any image changes
FOLDER = ".health"
SIDE = 128
"""Pixels of the square in which images are compared with each other."""
CELLS = 12
"""Of the grid that an image is from afar, on a side."""
CUT = 0.95
"""Of the sides, that is left of an image in the nine cuts that are looked at, too."""
CUTS = ((1.0, 0.0, 0.0), *((CUT, y, x) for y in (0.0, 0.5, 1.0) for x in (0.0, 0.5, 1.0)))
"""What is looked at of each image: part of the sides, and where it lies, from 0 (top, left) to 1."""
MEASURES = ("height", "width", "aspect", "brightness", "contrast", "saturation", "sharpness")
_ROWS = 256  # a task
_WORTH_A_PROCESS = 1024  # samples: starting one costs a second
_BLUR = 2.0
_FLAT = 1e-3  # standard deviation of a grid, in grey levels: nothing to be told from afar
_AT_MOST = 512  # pixels of the longer side that are measured

Progress = Callable[[int, int], None]
"""Of images looked at, and all."""


@dataclass(frozen=True)
class Survey:
    """What was found in the n images of one split, in the order of its index.

    Attributes:
        index: of the split.
        reasons: (n,) why an image cannot be decoded; "" where it can.
        measures: name of `MEASURES` to (n,) float64; NaN where it cannot be decoded.
        grey, constant: (n,) bool whether the three channels, or all pixels, are alike.
        file_hash, pixel_hash: (n,) "S16" of the bytes as stored, and of what they decode to.
        looks: (n, cuts, CELLS^2) float16 grids of mean 0 and length 1, all 0 where there is nothing to see.
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


def survey(dataset: Dataset, *, processes: int | None = None, progress: Progress | None = None) -> dict[str, Survey]:
    """Return what is found in each split, read from where it is kept or, of splits that are new, by opening all images.

    Args:
        dataset: packed.
        processes: that decode; None: one a core, one for small data.
        progress: called as images are looked at, not where nothing is.

    Raises:
        DataError: a shard is missing or cut short.
    """
    indices = {name: Index.open(dataset, name) for name in dataset.splits}
    found = {name: _kept(index) for name, index in indices.items()}
    missing = [name for name, own in found.items() if own is None]
    total, done = sum(len(indices[name]) for name in missing), 0
    workers = processes or (len(os.sched_getaffinity(0)) if total >= _WORTH_A_PROCESS else 1)
    for name in missing:
        index = indices[name]
        tasks = [_Task(index, row, min(row + _ROWS, len(index))) for row in range(0, len(index), _ROWS)]
        parts: list[pa.Table | None] = [None] * len(tasks)
        for number, part in parallel.run(_look, tasks, workers):
            parts[number] = part
            done += len(part)
            if progress is not None:
                progress(done, total)
        table = pa.concat_tables(parts) if parts else _schema().empty_table()
        _keep(index, table)
        found[name] = _of_table(index, table)
    return {name: own for name, own in found.items() if own is not None}


def stored_image(index: Index, store: LocalStore, row: int) -> Pixels:
    """Return the decoded image of a row; DataError says why not."""
    record = index.row(row)
    return decode(store.read(record.shard, record.offset, record.length), max_pixels=MAX_PIXELS)


def squared(image: Pixels) -> NDArray[np.float32]:
    """Return an image as a grey square of SIDE pixels, a little smoothed: what is compared in detail."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    way = cv2.INTER_AREA if min(grey.shape) >= SIDE else cv2.INTER_LINEAR
    square = cv2.resize(grey, (SIDE, SIDE), interpolation=way).astype(np.float32)
    smooth: NDArray[np.float32] = np.asarray(cv2.GaussianBlur(square, (0, 0), 1.0), np.float32)
    return smooth


def cut_out(square: NDArray[np.float32], scale: float, y: float, x: float) -> NDArray[np.float32]:
    """Return part of a square, as large as the square; see `CUTS`."""
    if scale == 1.0:
        return square
    away = (1 - scale) * SIDE
    shift = (scale - 1) / 2  # of centres of pixels
    matrix = np.array([[scale, 0, away * x + shift], [0, scale, away * y + shift]], np.float32)
    return _float32(cv2.warpAffine(square, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP))


def _look(task: _Task) -> pa.Table:
    """Look at consecutive rows; in a worker process."""
    cv2.setNumThreads(1)
    store = LocalStore(task.index.dataset)
    rows: list[dict[str, Any]] = []
    for row in range(task.first, task.stop):
        if parallel.stopping():
            raise DataError("stopped")
        record = task.index.row(row)
        data = store.read(record.shard, record.offset, record.length)
        own: dict[str, Any] = {"file_hash": _digest(data)}
        try:
            image = decode(data, max_pixels=MAX_PIXELS)
        except DataError as error:
            rows.append({**own, **_nothing(str(error))})
            continue
        rows.append({**own, **_measured(image)})
    return pa.Table.from_pylist(rows, schema=_schema())


def _nothing(reason: str) -> dict[str, Any]:
    thumbnails = np.zeros(len(CUTS) * CELLS**2, np.float16)
    return {
        "reason": reason,
        **dict.fromkeys(MEASURES, float("nan")),
        "grey": False,
        "constant": False,
        "pixel_hash": bytes(16),
        "looks": thumbnails,
    }


def _measured(image: Pixels) -> dict[str, Any]:
    height, width = image.shape[:2]
    low, high = image.min(axis=(0, 1)), image.max(axis=(0, 1))
    shrink = min(1.0, _AT_MOST / max(height, width))
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
        "pixel_hash": _digest(repr(image.shape).encode() + image.tobytes()),
        "looks": looks_of(squared(image)).reshape(-1),
    }


def looks_of(square: NDArray[np.float32]) -> NDArray[np.float16]:
    """Return the (cuts, CELLS^2) grids of a square: each of mean 0 and length 1, or 0 where it is flat."""
    smooth = _float32(cv2.GaussianBlur(square, (0, 0), _BLUR))
    grids = np.stack(
        [cv2.resize(cut_out(smooth, *cut), (CELLS, CELLS), interpolation=cv2.INTER_AREA).reshape(-1) for cut in CUTS]
    )
    grids -= grids.mean(axis=1, keepdims=True)
    length = np.linalg.norm(grids, axis=1, keepdims=True)
    return np.where(length > _FLAT * CELLS, grids / np.maximum(length, 1e-9), 0).astype(np.float16)


def _schema() -> pa.Schema:
    thumbnails = pa.list_(pa.field("element", pa.float16(), nullable=False), len(CUTS) * CELLS**2)
    columns = [("reason", pa.string()), *((name, pa.float64()) for name in MEASURES)]
    columns += [("grey", pa.bool_()), ("constant", pa.bool_())]
    columns += [("file_hash", pa.binary(16)), ("pixel_hash", pa.binary(16)), ("looks", thumbnails)]
    return pa.schema(columns)


def _path(index: Index) -> Path:
    return index.dataset.folder / FOLDER / f"{index.split}-{index.dataset.fingerprint[:16]}.arrow"


def _kept(index: Index) -> Survey | None:
    """Return what was found before; None where there is nothing, or something else."""
    path = _path(index)
    if not path.is_file():
        return None
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        table.validate(full=True)
    except (OSError, pa.ArrowException) as error:
        _log.warning("%s is made again: it is damaged (%s)", path, error)
        return None
    said = (table.schema.metadata or {}).get(b"choral")
    return _of_table(index, table) if said == _mark(index) and len(table) == len(index) else None


def _keep(index: Index, table: pa.Table) -> None:
    """Write what was found; where the shards' folder cannot be written, it is found again the next time, and that is said."""
    path = _path(index)
    try:
        path.parent.mkdir(exist_ok=True)
        schema = table.schema.with_metadata({b"choral": _mark(index)})
        with written_aside(path) as file, pa.ipc.new_file(file, schema) as writer:
            writer.write_table(table.cast(schema).combine_chunks())
    except (OSError, ChoralError) as error:
        _log.warning("what images look like is not kept in %s (%s): each analysis opens them all", path.parent, error)


def _mark(index: Index) -> bytes:
    return f"{FORMAT} {index.dataset.fingerprint}".encode()


def _of_table(index: Index, table: pa.Table) -> Survey:
    table = table.combine_chunks()

    def column(name: str) -> Any:
        return table[name].chunk(0) if table[name].num_chunks else pa.array([], table.schema.field(name).type)

    thumbnails = column("looks").flatten().to_numpy(zero_copy_only=False)
    return Survey(
        index=index,
        reasons=table["reason"].to_pylist(),
        measures={name: table[name].to_numpy() for name in MEASURES},
        grey=np.array(table["grey"].to_pylist(), np.bool_),
        constant=np.array(table["constant"].to_pylist(), np.bool_),
        file_hash=np.array(table["file_hash"].to_pylist(), "S16"),
        pixel_hash=np.array(table["pixel_hash"].to_pylist(), "S16"),
        thumbnails=thumbnails.reshape(len(table), len(CUTS), CELLS**2),
    )


def _digest(data: bytes) -> bytes:
    """Return 16 bytes without zeros, which NumPy would take off the end."""
    return bytes(max(1, byte) for byte in hashlib.blake2b(data, digest_size=16).digest())


def _float32(image: Any) -> NDArray[np.float32]:
    """OpenCV's type stubs promise integers or floats; what we pass in comes out as float32."""
    pixels: NDArray[np.float32] = image
    return pixels


def rows_of(found: Survey, keys: list[str]) -> NDArray[np.int64]:
    """Return the (N,) rows of samples of the split by their keys."""
    places = {key: row for row, key in enumerate(found.index.keys(np.arange(len(found))))}
    return np.array([places[key] for key in keys], np.int64)


def in_order(found: dict[str, Survey]) -> Iterator[tuple[str, Survey]]:
    """Yield splits as people name them: train, val, test, then others by name."""
    usual = ("train", "val", "test")
    for name in sorted(found, key=lambda own: (usual.index(own) if own in usual else len(usual), own)):
        yield name, found[name]
