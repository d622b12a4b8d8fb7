"""Finds pairs of images that show the same picture: saved again, resized, cropped a little, relit, mirrored or rotated.

1. Search. Each image has a thumbnail of 12 x 12 cells, whitened by the principal components of the data, so that what all
   images have in common (the busbars of solar cells, the frame of a scanner) does not count. The nine 95 % crops of each
   image, its mirror image and its quarter-turn rotations are compared with the thumbnails of all images, block by block, as
   matrix products. The nearest neighbours are candidates.
2. Check. The two images of a candidate pair are aligned (Evangelidis and Psarakis 2008, "Parametric image alignment using
   enhanced correlation coefficient maximization") and compared by their fine detail, normalised locally. First, what both
   share with similar images that are not duplicates is removed by least squares: two solar cells of one make resemble each
   other in everything except what is specific to each. The correlation of the residuals decides.
"""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from choral.analysis.image_survey import CELLS, CROPS, SIDE, Survey, read_image, to_grey_square
from choral.core import worker_processes as parallel
from choral.core.errors import DataError
from choral.data.shards.index import Index
from choral.data.shards.store import LocalStore

MAX_DIFFERENCE = 0.4
"""One minus the correlation of details, up to which two images are near-duplicates."""
_MIN_SIMILARITY = 0.8  # of the thumbnails of a candidate pair
_NEIGHBOURS = (5, 20)
"""Candidates per image, at least and at most. Of 2,624 solar cells, a cropped image has the whole one among its 5 nearest in
90 % of cases, among its 20 nearest always."""
_MAX_CANDIDATES = 100_000  # of all images together, beyond the least of each: minutes
_COMPONENTS = 64
_MAX_BASIS_IMAGES = 20_000
_MIN_WHITENED = 200  # images: components of fewer would describe duplicates rather than the data
_BLOCK = 256  # images that are compared with all others at a time
_PAIRS_PER_TASK = 64
_SIMILAR_IMAGES = 12  # whose shared detail is removed
_COPY_SIMILARITY = 0.97  # of thumbnails: above it, an image may be an uncropped copy
_MIN_OVERLAP = 0.6  # share of the square that both images cover
_DETAIL_SIGMA, _NORM_SIGMA, _NOISE_FLOOR = 2.0, 4.0, 0.05  # pixels, pixels, grey levels
_MAX_SQUARES = 4096  # in memory: 128 MiB
_TURNS = tuple((turns, flipped) for flipped in (False, True) for turns in range(4))[1:]
_UPRIGHT_VIEWS = len(CROPS)
_INITIAL_MATRICES = {
    (scale, y, x): np.array(
        [[scale, 0, (1 - scale) * SIDE * x + (scale - 1) / 2], [0, scale, (1 - scale) * SIDE * y + (scale - 1) / 2]],
        np.float32,
    )
    for scale, y, x in CROPS
}
"""Affine maps from the pixels of a crop to those of the whole image."""
Float = NDArray[np.float32]


@dataclass(frozen=True)
class Pair:
    """Two near-duplicates by position among the searched images; difference 0 to `MAX_DIFFERENCE`."""

    one: int
    other: int
    difference: float
    turned: bool  # mirrored or rotated by quarter turns


@dataclass(frozen=True)
class _Candidate:
    template: int  # position of the image that is compared as it is
    moved: int  # position of the image of which a crop or a turn is similar
    view: int  # index into CROPS, then into _TURNS
    similarity: float

    @property
    def pair(self) -> tuple[int, int]:
        return min(self.template, self.moved), max(self.template, self.moved)

    @property
    def preference(self) -> tuple[float, int, int]:
        return self.similarity, -self.view, self.template


@dataclass(frozen=True)
class _SearchTask:
    folder: Path
    first: int
    stop: int


@dataclass(frozen=True)
class _CheckTask:
    folder: Path
    indices: tuple[Index, ...]
    candidates: tuple[_Candidate, ...]


def find_near_pairs(
    surveys: Sequence[Survey],
    rows: Sequence[NDArray[np.int64]],
    processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[Pair]:
    """Return the pairs of near-duplicates, ordered by position.

    Args:
        surveys: of splits.
        rows: of each split that are searched, none of them flat; positions count through them, split by split.
        processes: worker processes.
        progress: called with the number of candidate pairs compared, and their total.

    Raises:
        DataError: a shard cannot be read.
    """
    thumbnails = np.concatenate([survey.thumbnails[part] for survey, part in zip(surveys, rows, strict=True)])
    if len(thumbnails) < 2:
        return []
    with tempfile.TemporaryDirectory(prefix="choral-near-") as name:
        folder = Path(name)
        basis = _Basis.fit(thumbnails[:, 0].astype(np.float32))
        splits = np.concatenate([np.full(len(part), number) for number, part in enumerate(rows)])
        arrays = {
            "thumbnails": thumbnails,
            "mean": basis.mean,
            "components": basis.components,
            "embeddings": basis.embed(thumbnails[:, 0]),
            "rows": np.stack([splits, np.concatenate(rows)], axis=1),
        }
        for file, array in arrays.items():
            np.save(folder / f"{file}.npy", array)
        candidates = _search(folder, len(thumbnails), processes)
        indices = tuple(survey.index for survey in surveys)
        checks = [
            _CheckTask(folder, indices, tuple(candidates[start : start + _PAIRS_PER_TASK]))
            for start in range(0, len(candidates), _PAIRS_PER_TASK)
        ]
        pairs: list[Pair] = []
        done = 0
        for number, found in parallel.map_unordered(_check_candidates, checks, processes):
            pairs += found
            done += len(checks[number].candidates)
            if progress is not None:
                progress(done, len(candidates))
    return sorted(pairs, key=lambda pair: (pair.one, pair.other))


def _search(folder: Path, count: int, processes: int) -> list[_Candidate]:
    """Return the best candidate of each pair of images, ordered by position."""
    tasks = [_SearchTask(folder, row, min(row + _BLOCK, count)) for row in range(0, count, _BLOCK)]
    best: dict[tuple[int, int], _Candidate] = {}
    for _, candidates in parallel.map_unordered(_search_block, tasks, processes):
        for candidate in candidates:
            if candidate.pair not in best or candidate.preference > best[candidate.pair].preference:
                best[candidate.pair] = candidate
    return [best[pair] for pair in sorted(best)]


@dataclass(frozen=True)
class _Basis:
    """Principal components of thumbnails, partially whitened; similarity is the cosine in this basis."""

    mean: Float
    components: Float

    @classmethod
    def fit(cls, thumbnails: Float) -> _Basis:
        if len(thumbnails) < _MIN_WHITENED:
            return cls(np.zeros(thumbnails.shape[1], np.float32), np.eye(thumbnails.shape[1], dtype=np.float32))
        rows = np.linspace(0, len(thumbnails) - 1, min(len(thumbnails), _MAX_BASIS_IMAGES)).astype(np.int64)
        sample = thumbnails[rows].astype(np.float64)
        mean = sample.mean(axis=0)
        sample -= mean
        values, vectors = np.linalg.eigh(sample.T @ sample / len(sample))
        values, vectors = values[::-1][:_COMPONENTS], vectors[:, ::-1][:, :_COMPONENTS]
        scale = np.maximum(values, values[0] * 1e-6) ** -0.25
        return cls(mean.astype(np.float32), (vectors * scale).astype(np.float32))

    def embed(self, thumbnails: NDArray[np.floating]) -> Float:
        """Return (n, components) float32 of length 1."""
        embeddings = (thumbnails.astype(np.float32) - self.mean) @ self.components
        unit: Float = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-9)
        return unit


def _load(folder: Path, name: str) -> NDArray[np.generic]:
    array: NDArray[np.generic] = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    return array


def _search_block(task: _SearchTask) -> list[_Candidate]:
    """Return the nearest neighbours, among all upright images, of the crops and turns of consecutive images."""
    embeddings = np.asarray(_load(task.folder, "embeddings"), np.float32)
    basis = _Basis(np.asarray(_load(task.folder, "mean")), np.asarray(_load(task.folder, "components")))
    thumbnails = np.asarray(_load(task.folder, "thumbnails")[task.first : task.stop], np.float32)
    rows = np.arange(len(thumbnails))
    best = np.full((len(thumbnails), len(embeddings)), -1, np.float32)
    best_view = np.zeros(best.shape, np.int8)
    grids = thumbnails[:, 0].reshape(-1, CELLS, CELLS)
    crops = [thumbnails[:, number] for number in range(len(CROPS))]
    turns = (_turn(grids, *turn).reshape(len(thumbnails), -1) for turn in _TURNS)
    for number, view in enumerate([*crops, *turns]):
        similarity = basis.embed(view) @ embeddings.T
        better = similarity > best
        np.copyto(best, similarity, where=better)
        np.copyto(best_view, np.int8(number), where=better)
    best[rows, task.first + rows] = -1
    least, most = _NEIGHBOURS
    count = min(max(least, min(most, _MAX_CANDIDATES // len(embeddings))), best.shape[1])
    nearest = np.argpartition(-best, count - 1, axis=1)[:, :count]
    return [
        _Candidate(int(other), task.first + row, int(best_view[row, other]), float(best[row, other]))
        for row in rows.tolist()
        for other in nearest[row].tolist()
        if best[row, other] >= _MIN_SIMILARITY
    ]


def _turn(grids: NDArray[np.floating], turns: int, flipped: bool) -> NDArray[np.floating]:
    """Return (n, side, side) squares mirrored left to right if `flipped`, then rotated by quarter turns."""
    mirrored = grids[:, :, ::-1] if flipped else grids
    return np.ascontiguousarray(np.rot90(mirrored, turns, axes=(1, 2)))


def _check_candidates(task: _CheckTask) -> list[Pair]:
    """Return the candidates that are near-duplicates when compared in detail."""
    cv2.setNumThreads(1)
    squares = _SquareCache(task)
    embeddings = np.asarray(_load(task.folder, "embeddings"), np.float32)
    pairs = []
    for candidate in task.candidates:
        if parallel.stop_requested():
            raise DataError("stopped")
        moved = squares.get(candidate.moved)
        turned = candidate.view >= _UPRIGHT_VIEWS
        if turned:
            moved = _turn(moved[None], *_TURNS[candidate.view - _UPRIGHT_VIEWS])[0].astype(np.float32)
        difference = 1 - _detail_correlation(candidate, squares, moved, embeddings)
        if difference <= MAX_DIFFERENCE:
            pairs.append(Pair(*candidate.pair, round(max(0.0, difference), 4), turned))
    return pairs


def _detail_correlation(candidate: _Candidate, squares: _SquareCache, moved: Float, embeddings: Float) -> float:
    """Return the correlation of two images' details without what similar images explain; 0 where they do not align."""
    template = squares.get(candidate.template)
    upright = candidate.view < _UPRIGHT_VIEWS
    aligned = _align(template, moved, CROPS[candidate.view] if upright else CROPS[0])
    if aligned is None:
        return 0.0
    image, mask, matrix = aligned
    one, other = _normalized_detail(template)[mask], _normalized_detail(image)[mask]
    if _correlation(one, other) < 1 - MAX_DIFFERENCE:
        return 0.0
    reference = candidate.moved if upright else candidate.template
    similar = (squares.get(position) for position in _similar_images(candidate, embeddings, reference))
    details = [_normalized_detail(_warp(square, matrix) if upright else square)[mask] for square in similar]
    columns = np.stack([*details, np.ones_like(one)], axis=1).astype(np.float64)
    return _correlation(_residual(one, columns), _residual(other, columns))


def _residual(values: Float, columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the residual of a least-squares fit of (n, k) columns to (n,) values."""
    gram = columns.T @ columns
    weights = np.linalg.solve(gram + 1e-6 * np.trace(gram) * np.eye(len(gram)), columns.T @ values)
    return np.asarray(values, np.float64) - np.asarray(columns @ weights, np.float64)


def _align(
    template: Float, image: Float, crop: tuple[float, float, float]
) -> tuple[Float, NDArray[np.bool_], Float] | None:
    """Return an image warped onto a template, the mask of pixels that it covers, and the affine map.

    None where the alignment does not converge, or too little overlaps.
    """
    try:
        matrix = _refine_alignment(template, image, _INITIAL_MATRICES[crop], shrink=2, steps=30)
        matrix = _refine_alignment(template, image, matrix, shrink=1, steps=12)
    except cv2.error:  # it does not converge
        return None
    size, inverse = (SIDE, SIDE), cv2.WARP_INVERSE_MAP
    covered = cv2.warpAffine(np.ones(size, np.uint8), matrix, size, flags=cv2.INTER_NEAREST | inverse)
    inner = cv2.erode(covered, np.ones((7, 7), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0
    return (_warp(image, matrix), inner, matrix) if inner.mean() >= _MIN_OVERLAP else None


def _warp(image: Float, matrix: Float) -> Float:
    """Return an image sampled at the positions to which an affine map sends the pixels of the template."""
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return np.asarray(
        cv2.warpAffine(image, matrix, (SIDE, SIDE), flags=flags, borderMode=cv2.BORDER_REPLICATE), np.float32
    )


def _refine_alignment(template: Float, image: Float, matrix: Float, shrink: int, steps: int) -> Float:
    """Return the affine map from pixels of the template to those of the image, refined from `matrix`.

    Both are scaled down and smoothed first, so that details that lie some pixels apart still attract each other.
    """
    side, blur = SIDE // shrink, 1.5 if shrink > 1 else 1.0
    one, other = (
        cv2.GaussianBlur(cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA), (0, 0), blur)
        for square in (template, image)
    )
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, steps, 1e-4)
    start = matrix * np.array([1, 1, 1 / shrink], np.float32)
    _, refined = cv2.findTransformECC(one, other, start, cv2.MOTION_AFFINE, criteria, None, 1)
    return np.asarray(refined * np.array([1, 1, shrink]), np.float32)


def _normalized_detail(square: Float) -> Float:
    """Return what is finer than some pixels, divided by its local standard deviation."""
    detail = np.asarray(square - cv2.GaussianBlur(square, (0, 0), _DETAIL_SIGMA), np.float32)
    variance = np.asarray(cv2.GaussianBlur(detail * detail, (0, 0), _NORM_SIGMA), np.float32)
    return np.asarray(detail / (np.sqrt(variance) + _NOISE_FLOOR), np.float32)


def _similar_images(candidate: _Candidate, embeddings: Float, reference: int) -> list[int]:
    """Return the neighbours of `reference` that are clearly less similar to it than the candidate's other image.

    More similar ones may be further duplicates, which would explain everything. In a small data set, whose images are all
    about equally similar, too few are less similar; then all count that are clearly no copies.
    """
    similarity = embeddings @ embeddings[reference]
    similarity[[candidate.template, candidate.moved]] = 1
    farther = 1 - similarity > 1.5 * (1 - candidate.similarity) + 0.01
    if farther.sum() < _SIMILAR_IMAGES:
        farther |= similarity < _COPY_SIMILARITY
    positions = np.flatnonzero(farther)
    nearest: list[int] = positions[np.argsort(-similarity[positions], kind="stable")[:_SIMILAR_IMAGES]].tolist()
    return nearest


def _correlation(one: NDArray[Any], other: NDArray[Any]) -> float:
    left, right = one - one.mean(), other - other.mean()
    length = float(np.sqrt((left**2).sum() * (right**2).sum()))
    return float((left * right).sum()) / length if length > 0 else 0.0


class _SquareCache:
    """Images as `to_grey_square` makes them, by position; the most recently used stay in memory."""

    def __init__(self, task: _CheckTask) -> None:
        self._indices = task.indices
        self._store = LocalStore(task.indices[0].dataset)
        self._rows = np.asarray(_load(task.folder, "rows"))
        self._squares: OrderedDict[int, NDArray[np.float16]] = OrderedDict()

    def get(self, position: int) -> Float:
        """Return the square of an image."""
        if position in self._squares:
            self._squares.move_to_end(position)
        else:
            split, row = (int(number) for number in self._rows[position])
            square = to_grey_square(read_image(self._indices[split], self._store, row))
            self._squares[position] = square.astype(np.float16)
            if len(self._squares) > _MAX_SQUARES:
                self._squares.popitem(last=False)
        return self._squares[position].astype(np.float32)
