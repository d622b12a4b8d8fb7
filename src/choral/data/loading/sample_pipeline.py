"""One sample, from its row in the index to its pixels: the same bits in any thread or process, cached or not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from choral.core.errors import ConfigError, DataError
from choral.data.augment.host_transforms import HostTransforms
from choral.data.loading.crop import Box, Crop
from choral.data.loading.decode import MAX_PIXELS, decode, full_size, grey_to_rgb
from choral.data.loading.decoded_cache import DecodedCache
from choral.data.loading.input_spec import ImageSpec
from choral.data.loading.resize import Resize, resize_into
from choral.data.shards.index import Index
from choral.data.shards.store import LocalStore


class Unreadable(NamedTuple):
    """A sample of a batch that could not be read: its position in the batch, and why."""

    position: int
    reason: str


class SamplePipeline:
    """How the rows of an index become images; may be used by several threads, and be pickled.

    Each row is read and decoded once for all forms.

    Raises:
        ConfigError: a crop that shrinks in the decoder beside a decoded cache, or beside other forms.
    """

    def __init__(
        self,
        index: Index,
        store: LocalStore,
        cache: DecodedCache | None,
        forms: Sequence[ImageSpec],
        max_pixels: int,
        host: HostTransforms | None = None,
    ) -> None:
        shrinks = any(form.crop.shrink for form in forms)
        if cache is not None and shrinks:
            raise ConfigError("crop.shrink and a decoded cache exclude each other: the cache would change the samples")
        if len(forms) > 1 and shrinks:
            raise ConfigError("crop.shrink and several forms exclude each other: one decode serves all of them")
        self._arguments = (index, store, cache, forms, max_pixels, host)
        self._store, self._cache, self._max_pixels, self._host = store, cache, max_pixels, host
        self.forms = tuple(forms)
        self._shards, self._offsets, self._lengths = (index.column(name) for name in ("shard", "offset", "length"))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what it was made of, each of which opens its files again."""
        return (SamplePipeline, self._arguments)

    def fill(
        self,
        rows: NDArray[np.int64],
        epoch: int,
        images: Sequence[NDArray[np.uint8]],
        starting: Callable[[int], None],
    ) -> list[Unreadable]:
        """Make the images of some rows.

        Args:
            rows: (b,) int64, of an `Order`: repetitions of a row lie beyond the length of the index.
            epoch: what random crops and host transforms depend on, beside their seed and the row.
            images: for each form (b, size, size, 3) uint8, to be filled; zeros where a sample cannot be read.
            starting: called with the position of each sample before it is read.

        Returns:
            the samples that could not be read.
        """
        bad = []
        draws = [form.crop.draws(epoch, rows).tolist() for form in self.forms]
        seeds = self._host.seeds(epoch, rows) if self._host is not None else []
        for position, row in enumerate(rows.tolist()):
            starting(position)
            try:
                own = [drawn[position] for drawn in draws]
                self._fill_one(row % len(self._offsets), own, [out[position] for out in images])
            except DataError as error:
                for out in images:
                    out[position] = 0
                bad.append(Unreadable(position, str(error)))
                continue
            if self._host is not None:
                for out in images:
                    self._host.apply(out[position], seeds[position])
        return bad

    def _fill_one(self, row: int, draws: list[list[float]], outs: list[NDArray[np.uint8]]) -> None:
        image = None
        if self._cache is not None:
            with contextlib.suppress(DataError):  # when the cache was made; a disk may have failed for a moment only
                image = self._cache.get(row)
        if image is None:
            data = self._store.read(int(self._shards[row]), int(self._offsets[row]), int(self._lengths[row]))
            whole = full_size(data) if self.forms[0].crop.shrink else None
            if whole is not None:
                self._fill_shrunk(data, whole, draws[0], outs[0])
                return
            image = decode(data, max_pixels=self._max_pixels)
        for form, own, out in zip(self.forms, draws, outs, strict=True):
            part = _part_of(image, form.crop.box(image.shape[0], image.shape[1], own))
            # Grey is cached once: three channels again, so that it is resized by the arithmetic of any other image.
            place(grey_to_rgb(part) if part.shape[2] == 1 else part, form.crop, form.resize, out)

    def _fill_shrunk(self, data: bytes, whole: tuple[int, int], draws: list[float], out: NDArray[np.uint8]) -> None:
        """Make an image of the given full size, letting the decoder shrink it; there is one form."""
        (form,) = self.forms
        box = form.crop.box(*whole, draws)
        target = form.crop.resized_shape(box, form.size)
        min_size = (-(-whole[0] * target[0] // box.height), -(-whole[1] * target[1] // box.width))
        image = decode(data, max_pixels=self._max_pixels, min_size=min_size)
        place(_part_of(image, _scaled(box, whole, image.shape)), form.crop, form.resize, out)


def place(part: NDArray[np.uint8], crop: Crop, how: Resize, out: NDArray[np.uint8]) -> None:
    """Resize what a crop's box cut out of an image, and put its centre into a square.

    Args:
        part: (H, W, 3) uint8 RGB.
        crop: whose `box` cut it out.
        how: antialiased or fast.
        out: (S, S, 3) uint8, to be filled.

    Raises:
        DataError: so thin an image that its short side cannot be resized without its long side taking gigabytes.
    """
    size = out.shape[0]
    height, width = crop.resized_shape(Box(0, 0, *part.shape[:2]), size)
    if height * width > max(MAX_PIXELS, size * size):
        raise DataError(
            f"{part.shape[1]} x {part.shape[0]} pixels, of which a central square of {size} x {size} would be cut out of "
            f"{width} x {height}, more than {MAX_PIXELS:,} pixels: too thin an image"
        )
    if (height, width) == (size, size):
        resize_into(part, out, how)
        return
    resized = np.empty((height, width, 3), np.uint8)
    resize_into(part, resized, how)
    np.copyto(out, _part_of(resized, Box(round((height - size) / 2), round((width - size) / 2), size, size)))


def _part_of(image: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    return image[box.top : box.top + box.height, box.left : box.left + box.width]


def _scaled(box: Box, whole: tuple[int, int], shape: tuple[int, ...]) -> Box:
    """Return where a box of the whole image lies in the image that the decoder shrank."""
    by_height, by_width = shape[0] / whole[0], shape[1] / whole[1]
    top, left = round(box.top * by_height), round(box.left * by_width)
    bottom, right = round((box.top + box.height) * by_height), round((box.left + box.width) * by_width)
    return Box(top, left, max(1, bottom - top), max(1, right - left))
