"""Pairs of images that show the same picture: saved again, resized, cut a little, lit otherwise, mirrored or turned.

Candidates are neighbours from afar: grids of 12 x 12 cells, whitened by the principal components of the data, so that what
all images have in common (the busbars of solar cells, the frame of a scanner) tells nothing; of each image also its nine cuts
of 95 % and its seven mirror images and turns are looked for. All pairs are compared, block by block, as products of
matrices.

Each candidate is then held against its partner in detail: aligned (Evangelidis and Psarakis 2008, "Parametric image alignment
using enhanced correlation coefficient maximization"), and compared by fine detail, which is weighed alike everywhere. What
both share with look-alikes that are no twins of them is taken out first, by least squares: two cells of one make resemble
each other in all but what makes each of them that cell. The correlation of what is left decides.
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

from choral.analysis.image_survey import CELLS, CUTS, SIDE, Survey, squared, stored_image
from choral.core import worker_processes as parallel
from choral.core.errors import DataError
from choral.data.shards.index import Index
from choral.data.shards.store import LocalStore

FARTHEST = 0.4
"""Of one minus the correlation of details: where twins end."""
_ALIKE = 0.8  # from afar, of candidates
_CANDIDATES = (5, 20)
"""Of an image: of 2,624 solar cells, a cut one has the whole among its 5 nearest in 90 %, among its 20 nearest always."""
_AFFORDED = 100_000  # candidates of all images together, beyond the least of each: minutes
_PARTS = 64  # principal components
_BASIS = 20_000  # images that these are of, at most
_WHITENED = 200  # images: of fewer, components are those of twins rather than of the data
_BLOCK = 256  # images that are compared with all others at a time
_PAIRS = 64  # a task
_LOOKALIKES = 12
_NO_COPY = 0.97  # from afar: where copies begin that are not cut
_LEAST_SEEN = 0.6  # of the square, that both images show
_FINE, _NORMED, _FLOOR = 2.0, 4.0, 0.05  # pixels, pixels, grey levels
_HELD = 4096  # squares in memory: 128 MiB
_TURNS = tuple((turns, flipped) for flipped in (False, True) for turns in range(4))[1:]
_UPRIGHT = len(CUTS)
_START = {
    (scale, y, x): np.array(
        [[scale, 0, (1 - scale) * SIDE * x + (scale - 1) / 2], [0, scale, (1 - scale) * SIDE * y + (scale - 1) / 2]],
        np.float32,
    )
    for scale, y, x in CUTS
}
"""Maps from pixels of a cut to those of the whole."""
Float = NDArray[np.float32]


@dataclass(frozen=True)
class Pair:
    """Two images, by their places in what was searched, and what tells them apart: 0 to `FARTHEST`."""

    one: int
    other: int
    difference: float
    turned: bool


@dataclass(frozen=True)
class _Candidate:
    template: int  # the image that is as it is
    moved: int  # of which a cut or a turn resembles it
    way: int  # of CUTS, then of _TURNS
    alike: float


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


def near_pairs(
    surveys: Sequence[Survey],
    chosen: Sequence[NDArray[np.int64]],
    processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[Pair]:
    """Return the pairs of images that show the same, ordered by their places.

    Args:
        surveys: of splits.
        chosen: rows of each that are searched, none of them flat; places count through them, split by split.
        processes: that search and compare.
        progress: of candidates compared, and all.

    Raises:
        DataError: a shard cannot be read.
    """
    thumbnails = np.concatenate([own.thumbnails[rows] for own, rows in zip(surveys, chosen, strict=True)])
    if len(thumbnails) < 2:
        return []
    with tempfile.TemporaryDirectory(prefix="choral-near-") as name:
        folder = Path(name)
        np.save(folder / "looks.npy", thumbnails)
        basis = _Basis.of(thumbnails[:, 0].astype(np.float32))
        np.save(folder / "mean.npy", basis.mean)
        np.save(folder / "parts.npy", basis.parts)
        np.save(folder / "seen.npy", basis.seen(thumbnails[:, 0]))
        splits = np.concatenate([np.full(len(rows), number) for number, rows in enumerate(chosen)])
        np.save(folder / "where.npy", np.stack([splits, np.concatenate(chosen)], axis=1))
        searches = [
            _SearchTask(folder, row, min(row + _BLOCK, len(thumbnails))) for row in range(0, len(thumbnails), _BLOCK)
        ]
        found: dict[tuple[int, int], _Candidate] = {}
        for _, part in parallel.run(_search, searches, processes):
            for own in part:
                pair = min(own.template, own.moved), max(own.template, own.moved)
                if pair not in found or (own.alike, -own.way, own.template) > (
                    found[pair].alike,
                    -found[pair].way,
                    found[pair].template,
                ):
                    found[pair] = own
        candidates = [found[pair] for pair in sorted(found)]
        indices = tuple(own.index for own in surveys)
        checks = [
            _CheckTask(folder, indices, tuple(candidates[start : start + _PAIRS]))
            for start in range(0, len(candidates), _PAIRS)
        ]
        pairs: list[Pair] = []
        done = 0
        for number, part_pairs in parallel.run(_check, checks, processes):
            pairs += part_pairs
            done += len(checks[number].candidates)
            if progress is not None:
                progress(done, len(candidates))
    return sorted(pairs, key=lambda own: (own.one, own.other))


@dataclass(frozen=True)
class _Basis:
    """What grids are compared in: principal components of the data, drawn towards equal weight."""

    mean: Float
    parts: Float

    @classmethod
    def of(cls, grids: Float) -> _Basis:
        if len(grids) < _WHITENED:
            return cls(np.zeros(grids.shape[1], np.float32), np.eye(grids.shape[1], dtype=np.float32))
        own = grids[np.linspace(0, len(grids) - 1, min(len(grids), _BASIS)).astype(np.int64)].astype(np.float64)
        mean = own.mean(axis=0)
        own -= mean
        values, vectors = np.linalg.eigh(own.T @ own / len(own))
        values, vectors = values[::-1][:_PARTS], vectors[:, ::-1][:, :_PARTS]
        scale = np.maximum(values, values[0] * 1e-6) ** -0.25
        return cls(mean.astype(np.float32), (vectors * scale).astype(np.float32))

    def seen(self, grids: NDArray[np.floating]) -> Float:
        """Return (n, parts) float32 of length 1."""
        found = (grids.astype(np.float32) - self.mean) @ self.parts
        unit: Float = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)
        return unit


def _loaded(folder: Path, name: str) -> NDArray[np.generic]:
    array: NDArray[np.generic] = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    return array


def _search(task: _SearchTask) -> list[_Candidate]:
    """Return the nearest neighbours of consecutive images, cut or turned, among all as they are."""
    thumbnails, seen = _loaded(task.folder, "looks"), np.asarray(_loaded(task.folder, "seen"), np.float32)
    basis = _Basis(np.asarray(_loaded(task.folder, "mean")), np.asarray(_loaded(task.folder, "parts")))
    own = np.asarray(thumbnails[task.first : task.stop], np.float32)
    places = np.arange(len(own))
    best = np.full((len(own), len(seen)), -1, np.float32)
    ways = np.zeros(best.shape, np.int8)
    upright = [own[:, number] for number in range(len(CUTS))]
    grids = own[:, 0].reshape(-1, CELLS, CELLS)
    for number, view in enumerate([*upright, *(_turned(grids, *way).reshape(len(own), -1) for way in _TURNS)]):
        alike = basis.seen(view) @ seen.T
        better = alike > best
        np.copyto(best, alike, where=better)
        np.copyto(ways, np.int8(number), where=better)
    best[places, task.first + places] = -1
    least, most = _CANDIDATES
    count = min(max(least, min(most, _AFFORDED // len(seen))), best.shape[1])
    nearest = np.argpartition(-best, count - 1, axis=1)[:, :count]
    return [
        _Candidate(int(other), task.first + place, int(ways[place, other]), float(best[place, other]))
        for place in places.tolist()
        for other in nearest[place].tolist()
        if best[place, other] >= _ALIKE
    ]


def _turned(grids: NDArray[np.floating], turns: int, flipped: bool) -> NDArray[np.floating]:
    """Return (n, side, side) squares mirrored left to right, then turned by quarters."""
    found = grids[:, :, ::-1] if flipped else grids
    return np.ascontiguousarray(np.rot90(found, turns, axes=(1, 2)))


def _check(task: _CheckTask) -> list[Pair]:
    """Return the candidates that are twins, compared in detail."""
    cv2.setNumThreads(1)
    squares = _Squares(task)
    seen = np.asarray(_loaded(task.folder, "seen"), np.float32)
    pairs = []
    for own in task.candidates:
        if parallel.stopping():
            raise DataError("stopped")
        moved = squares.get(own.moved)
        turned = own.way >= _UPRIGHT
        if turned:
            moved = _turned(moved[None], *_TURNS[own.way - _UPRIGHT])[0].astype(np.float32)
        correlation = _correlation(own, squares, moved, seen)
        if 1 - correlation <= FARTHEST:
            one, other = sorted((own.template, own.moved))
            pairs.append(Pair(one, other, round(max(0.0, 1 - correlation), 4), turned))
    return pairs


def _correlation(own: _Candidate, squares: _Squares, moved: Float, seen: Float) -> float:
    """Return the correlation of the details of two images, less what look-alikes explain; 0 where they do not align."""
    template = squares.get(own.template)
    cut = CUTS[own.way] if own.way < _UPRIGHT else CUTS[0]
    placed = _aligned(template, moved, cut)
    if placed is None:
        return 0.0
    image, mask, matrix = placed
    one, other = _details(template)[mask], _details(image)[mask]
    if _plain_correlation(one, other) < 1 - FARTHEST:
        return 0.0
    upright = own.way < _UPRIGHT
    squares_of = (squares.get(place) for place in _lookalikes(own, seen, own.moved if upright else own.template))
    lookalikes = [_details(_laid(square, matrix) if upright else square)[mask] for square in squares_of]
    columns = np.stack([*lookalikes, np.ones_like(one)], axis=1).astype(np.float64)
    return _plain_correlation(_unexplained(one, columns), _unexplained(other, columns))


def _unexplained(values: Float, columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what is left of (n,) values after a least-squares fit of (n, k) columns."""
    among = columns.T @ columns
    fit = np.linalg.solve(among + 1e-6 * np.trace(among) * np.eye(len(among)), columns.T @ values)
    return np.asarray(values, np.float64) - np.asarray(columns @ fit, np.float64)


def _aligned(
    template: Float, image: Float, cut: tuple[float, float, float]
) -> tuple[Float, NDArray[np.bool_], Float] | None:
    """Return an image laid onto another, where it covers that, and by which map; None where it does not find its place."""
    try:
        matrix = _found(template, image, _START[cut], shrink=2, steps=30)
        matrix = _found(template, image, matrix, shrink=1, steps=12)
    except cv2.error:  # it does not converge
        return None
    size, inverse = (SIDE, SIDE), cv2.WARP_INVERSE_MAP
    covered = cv2.warpAffine(np.ones(size, np.uint8), matrix, size, flags=cv2.INTER_NEAREST | inverse)
    inner = cv2.erode(covered, np.ones((7, 7), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0
    return (_laid(image, matrix), inner, matrix) if inner.mean() >= _LEAST_SEEN else None


def _laid(image: Float, matrix: Float) -> Float:
    """Return what an image shows at the places that a map gives to the pixels of another."""
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return np.asarray(
        cv2.warpAffine(image, matrix, (SIDE, SIDE), flags=flags, borderMode=cv2.BORDER_REPLICATE), np.float32
    )


def _found(template: Float, image: Float, matrix: Float, shrink: int, steps: int) -> Float:
    """Return the affine map from pixels of one image to those of another, better than `matrix` is.

    Both are made smaller and smoothed first, so that what lies some pixels apart still finds together.
    """
    side, blur = SIDE // shrink, 1.5 if shrink > 1 else 1.0
    one, other = (
        cv2.GaussianBlur(cv2.resize(own, (side, side), interpolation=cv2.INTER_AREA), (0, 0), blur)
        for own in (template, image)
    )
    enough = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, steps, 1e-4)
    start = matrix * np.array([1, 1, 1 / shrink], np.float32)
    _, found = cv2.findTransformECC(one, other, start, cv2.MOTION_AFFINE, enough, None, 1)
    return np.asarray(found * np.array([1, 1, shrink]), np.float32)


def _details(square: Float) -> Float:
    """Return what is finer than some pixels, divided by how much of that there is around."""
    fine = np.asarray(square - cv2.GaussianBlur(square, (0, 0), _FINE), np.float32)
    around = np.asarray(cv2.GaussianBlur(fine * fine, (0, 0), _NORMED), np.float32)
    return np.asarray(fine / (np.sqrt(around) + _FLOOR), np.float32)


def _lookalikes(own: _Candidate, seen: Float, of: int) -> list[int]:
    """Return neighbours of one of two candidates: of those clearly farther from it than the other one is.

    Nearer ones may be further twins, which would explain all. Where few are farther, since all images of a small data set are
    about as alike, nearer ones count that are no copies by far.
    """
    alike = seen @ seen[of]
    alike[[own.template, own.moved]] = 1
    farther = 1 - alike > 1.5 * (1 - own.alike) + 0.01
    if farther.sum() < _LOOKALIKES:
        farther |= alike < _NO_COPY
    places = np.flatnonzero(farther)
    nearest: list[int] = places[np.argsort(-alike[places], kind="stable")[:_LOOKALIKES]].tolist()
    return nearest


def _plain_correlation(one: NDArray[Any], other: NDArray[Any]) -> float:
    left, right = one - one.mean(), other - other.mean()
    length = float(np.sqrt((left**2).sum() * (right**2).sum()))
    return float((left * right).sum()) / length if length > 0 else 0.0


class _Squares:
    """Images as `squared` makes them, by their places; the last ones used stay in memory."""

    def __init__(self, task: _CheckTask) -> None:
        self._indices = task.indices
        self._store = LocalStore(task.indices[0].dataset)
        self._where = np.asarray(_loaded(task.folder, "where"))
        self._held: OrderedDict[int, NDArray[np.float16]] = OrderedDict()

    def get(self, place: int) -> Float:
        """Return the square of an image."""
        if place in self._held:
            self._held.move_to_end(place)
        else:
            split, row = (int(number) for number in self._where[place])
            square = squared(stored_image(self._indices[split], self._store, row))
            self._held[place] = square.astype(np.float16)
            if len(self._held) > _HELD:
                self._held.popitem(last=False)
        return self._held[place].astype(np.float32)
