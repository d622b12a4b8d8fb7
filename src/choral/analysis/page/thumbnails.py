"""Chooses the samples that the page shows as images, and encodes them: small JPEGs in base64, within a budget of bytes.

First come the samples that every section opens with, then those that a click leads to, then the rest by loss. All samples of
a small data set are shown.
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

from choral.analysis.page.stored_images import ImageFinder, SampleId
from choral.analysis.results import Analysis
from choral.core.errors import DataError
from choral.data.loading.decode import decode

Thumbnails = dict[str, dict[str, str]]
"""Split to key to a JPEG in base64."""

MAX_BYTES = 11_000_000  # of base64
_MAX_IMAGES = 2_400  # decoding more would take minutes
_SIZES = ((256, 20_000), (192, 11_000), (144, 0))  # (longer side in pixels, least budget in bytes per image)
_CHUNK = 64  # images between two checks of the budget
_PER_LIST = 96  # what the first pages of a list show
_PER_CELL, _PER_SLICE, _PER_CLASS = 12, 24, 12


def rank_samples(analysis: Analysis) -> list[SampleId]:
    """Return the samples to show, without repetition, most important first."""
    samples = analysis.samples
    by_loss = np.argsort(-samples.loss, kind="stable")
    errors = np.flatnonzero(~samples.right)
    confident_errors = errors[np.argsort(-samples.confidence[errors], kind="stable")]

    def ids(rows: NDArray[np.int64]) -> Iterator[SampleId]:
        return ((analysis.split, samples.keys[row]) for row in rows.tolist())

    parts = [
        ids(by_loss[:_PER_LIST]),
        ids(confident_errors[:_PER_LIST]),
        ((one.split, one.key) for one in analysis.label_errors.suspects),
        ((one.split, one.key) for group in analysis.duplicates.groups for one in group.samples[:4]),
        ((one.split, one.key) for one in analysis.health.outliers),
        ((one.split, one.key) for one in analysis.health.constant),
        ids(_disagreements(analysis)[:_PER_LIST]),
        ids(np.argsort(samples.confidence, kind="stable")[:_PER_LIST]),
        *(ids(rows) for rows in _linked_rows(analysis, by_loss)),
        ids(by_loss),
    ]
    return list(dict.fromkeys(itertools.chain.from_iterable(parts)))


def make_thumbnails(
    samples: Sequence[SampleId], find: ImageFinder, max_pixels: int, max_bytes: int = MAX_BYTES
) -> Thumbnails:
    """Return thumbnails of as many samples as the budget allows, in their order.

    An image that cannot be decoded is left out; data health lists it.

    Args:
        samples: most important first, see `rank_samples`.
        find: finds stored images.
        max_pixels: images with more pixels are not decoded.
        max_bytes: of all thumbnails together, in base64.
    """
    candidates = list(samples[:_MAX_IMAGES])
    read = find(candidates)
    side = next(side for side, least in _SIZES if max_bytes >= least * len(candidates))
    thumbnails: Thumbnails = {}
    remaining = max_bytes

    def encode(sample: SampleId) -> str:
        try:
            return encode_thumbnail(read(*sample), side, max_pixels)
        except DataError:
            return ""

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for start in range(0, len(candidates), _CHUNK):
            chunk = candidates[start : start + _CHUNK]
            for (split, key), text in zip(chunk, pool.map(encode, chunk), strict=True):
                remaining -= len(text)
                if remaining < 0:
                    return thumbnails
                if text:
                    thumbnails.setdefault(split, {})[key] = text
    return thumbnails


def encode_thumbnail(data: bytes, side: int, max_pixels: int) -> str:
    """Return an image as JPEG in base64, scaled down to at most `side` pixels in width and height.

    Raises:
        DataError: the image cannot be decoded.
    """
    pixels = decode(data, max_pixels=max_pixels, min_size=(side, side))
    image = Image.fromarray(pixels)
    if (pixels == pixels[..., :1]).all():
        image = image.convert("L")  # chroma would be a third of the bytes
    image.thumbnail((side, side), Image.Resampling.BOX if side * 8 < min(image.size) else Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=78, optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def _disagreements(analysis: Analysis) -> NDArray[np.int64]:
    """Return the rows on which members disagree, highest loss first."""
    votes = analysis.samples.votes
    if votes.shape[1] < 2:
        return np.empty(0, dtype=np.int64)
    rows = np.flatnonzero((votes != votes[:, :1]).reshape(len(votes), -1).any(axis=1))
    return rows[np.argsort(-analysis.samples.loss[rows], kind="stable")]


def _linked_rows(analysis: Analysis, by_loss: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Yield the worst rows of everything that a click leads to: slices, cells of the confusion matrix, classes."""
    samples = analysis.samples
    for column in samples.slices.values():
        yield _first_per_group(column.codes.astype(np.int64), by_loss, _PER_SLICE)
    if analysis.task != "multiclass":
        return
    errors = by_loss[~samples.right[by_loss]]
    cells = samples.labels.astype(np.int64) * len(analysis.classes) + samples.predicted
    yield _first_per_group(cells, errors, _PER_CELL)
    yield _first_per_group(samples.labels.astype(np.int64), by_loss, _PER_CLASS)
    yield _first_per_group(samples.predicted.astype(np.int64), by_loss, _PER_CLASS)


def _first_per_group(groups: NDArray[np.int64], rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the first `count` rows of each group, interleaved: the first row of every group, then the second, and so on.

    Args:
        groups: (N,) the group of each sample.
        rows: (n,) samples in order of preference.
        count: rows of a group at most.
    """
    group_of_row = groups[rows]
    by_group = np.argsort(group_of_row, kind="stable")
    starts = np.flatnonzero(np.diff(group_of_row[by_group], prepend=-1))
    sizes = np.diff(np.append(starts, len(rows)))
    rank = np.empty(len(rows), dtype=np.int64)
    rank[by_group] = np.arange(len(rows)) - np.repeat(starts, sizes)
    kept = np.flatnonzero(rank < count)
    chosen: NDArray[np.int64] = rows[kept[np.argsort(rank[kept], kind="stable")]]
    return chosen
