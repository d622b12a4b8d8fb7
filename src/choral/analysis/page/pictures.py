"""Which samples are shown as pictures, and the pictures: small JPEGs in base64, within a budget of bytes.

First come those that every section opens with, then those that a click leads to, then the rest by loss: of a small data set
every sample is shown.
"""

from __future__ import annotations

import base64
import io
import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from choral.analysis.page.stored_images import Find, Place
from choral.analysis.results import Analysis
from choral.core.errors import DataError
from choral.data.loading.decode import decode

Pictures = dict[str, dict[str, str]]
"""Split to key to a JPEG in base64."""

BUDGET = 11_000_000  # bytes of base64
_MOST = 2_400  # pictures: beyond, decoding would take minutes
_SIZES = (
    (256, 20_000),
    (192, 11_000),
    (144, 0),
)  # pixels of the longer side, where the budget allows so many bytes each
_AT_ONCE = 64  # pictures that are made before the budget is looked at
_OPENED = 96  # of a list: what its first pages show
_OF_CELL, _OF_SLICE, _OF_CLASS = 12, 24, 12


def wanted_of(analysis: Analysis) -> list[Place]:
    """Return what should be shown, without repetition, most important first."""
    samples = analysis.samples
    worst = np.argsort(-samples.loss, kind="stable")
    sure = np.flatnonzero(~samples.right)
    sure = sure[np.argsort(-samples.confidence[sure], kind="stable")]

    def keys(rows: NDArray[np.int64]) -> Iterator[Place]:
        return ((analysis.split, samples.keys[row]) for row in rows.tolist())

    groups = [
        keys(worst[:_OPENED]),
        keys(sure[:_OPENED]),
        ((one.split, one.key) for one in analysis.label_errors.suspects),
        ((place.split, place.key) for twins in analysis.duplicates.twins for place in twins.places[:4]),
        ((one.split, one.key) for one in analysis.health.outliers),
        ((one.split, one.key) for one in analysis.health.constant),
        keys(_torn(analysis)[:_OPENED]),
        keys(np.argsort(samples.confidence, kind="stable")[:_OPENED]),
        *(keys(rows) for rows in _of_parts(analysis, worst)),
        keys(worst),
    ]
    return list(dict.fromkeys(itertools.chain.from_iterable(groups)))


def pictures_of(wanted: Sequence[Place], find: Find, max_pixels: int, budget: int = BUDGET) -> Pictures:
    """Return as many of the wanted pictures as the budget holds, in their order.

    An image that cannot be decoded is left out: the page has a section about those.

    Args:
        wanted: of `wanted_of`.
        find: what finds stored images.
        max_pixels: above which nothing is decoded.
        budget: bytes of all pictures together.
    """
    listed = list(wanted[:_MOST])
    read = find(listed)
    side = next(side for side, least in _SIZES if budget >= least * len(listed))
    found: Pictures = {}

    def shown(place: Place) -> str:
        try:
            return thumbnail(read(*place), side, max_pixels)
        except DataError:
            return ""

    threads = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(listed), _AT_ONCE):
            batch = listed[start : start + _AT_ONCE]
            for (split, key), text in zip(batch, pool.map(shown, batch), strict=True):
                budget -= len(text)
                if budget < 0:
                    return found
                if text:
                    found.setdefault(split, {})[key] = text
    return found


def thumbnail(data: bytes, side: int, max_pixels: int) -> str:
    """Return an image at most `side` pixels wide and high, never enlarged, as JPEG in base64.

    Raises:
        DataError: it cannot be decoded.
    """
    pixels = decode(data, max_pixels=max_pixels, min_size=(side, side))
    image = Image.fromarray(pixels)
    if (pixels == pixels[..., :1]).all():
        image = image.convert("L")  # a third of the bytes are chroma otherwise
    image.thumbnail((side, side), Image.Resampling.BOX if side * 8 < min(image.size) else Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=78, optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def _torn(analysis: Analysis) -> NDArray[np.int64]:
    """Return rows that members disagree about, those of the highest loss first."""
    votes = analysis.samples.votes
    if votes.shape[1] < 2:
        return np.empty(0, dtype=np.int64)
    apart = (votes != votes[:, :1]).reshape(len(votes), -1).any(axis=1)
    rows = np.flatnonzero(apart)
    return rows[np.argsort(-analysis.samples.loss[rows], kind="stable")]


def _of_parts(analysis: Analysis, worst: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Yield the worst rows of what a click leads to: slices, cells of the confusion matrix, classes."""
    samples = analysis.samples
    for slicing in samples.slices.values():
        yield _first_of_each(slicing.codes.astype(np.int64), worst, _OF_SLICE)
    if analysis.task != "multiclass":
        return
    wrong = worst[~samples.right[worst]]
    cells = samples.labels.astype(np.int64) * len(analysis.classes) + samples.predicted
    yield _first_of_each(cells, wrong, _OF_CELL)
    yield _first_of_each(samples.labels.astype(np.int64), worst, _OF_CLASS)
    yield _first_of_each(samples.predicted.astype(np.int64), worst, _OF_CLASS)


def _first_of_each(part: NDArray[np.int64], order: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the first rows of each part in an order: of all parts the first one, then of all the second one, and so on.

    Args:
        part: (N,) of each row.
        order: (n,) rows.
        count: of each part.
    """
    own = part[order]
    by_part = np.argsort(own, kind="stable")
    starts = np.flatnonzero(np.diff(own[by_part], prepend=-1))
    sizes = np.diff(np.append(starts, len(own)))
    rank = np.empty(len(own), dtype=np.int64)
    rank[by_part] = np.arange(len(own)) - np.repeat(starts, sizes)
    places = np.flatnonzero(rank < count)
    chosen: NDArray[np.int64] = order[places[np.argsort(rank[places], kind="stable")]]
    return chosen
