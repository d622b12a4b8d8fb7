"""One sample, from its index row to its pixels: the same bits in any thread or process, cached or not."""

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


class UnreadableSample(NamedTuple):
    """A sample of a batch that cannot be read."""

    position: int
    """In the batch."""
    reason: str


class SamplePipeline:
    """Reads, decodes, crops, resizes and transforms the samples of a split. Thread-safe and picklable.

    Each sample is read and decoded once, whatever the number of image specs.

    Args:
        index, store: the split.
        image_specs: the images to make of each sample; all different.
        cache: decoded images of the split, read instead of the store.
        max_pixels: as in `decode`; the same value as the cache was built with.
        transforms: applied to the resized images; None in evaluation.

    Raises:
        ConfigError: a crop with `shrink` is combined with a decoded cache or with several image specs.
    """

    def __init__(
        self,
        index: Index,
        store: LocalStore,
        image_specs: Sequence[ImageSpec],
        *,
        cache: DecodedCache | None = None,
        max_pixels: int = MAX_PIXELS,
        transforms: HostTransforms | None = None,
    ) -> None:
        shrinks = any(spec.crop.shrink for spec in image_specs)
        if cache is not None and shrinks:
            raise ConfigError("crop.shrink cannot be combined with a decoded cache, which would change the samples")
        if len(image_specs) > 1 and shrinks:
            raise ConfigError("crop.shrink cannot be combined with several image specs: they share one decoded image")
        self.index, self.image_specs = index, tuple(image_specs)
        self._store, self._cache, self._max_pixels, self._transforms = store, cache, max_pixels, transforms
        self._shards, self._offsets, self._lengths = (index.column(name) for name in ("shard", "offset", "length"))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the arguments; each of them opens its files again."""
        arguments = (self.index, self._store, self.image_specs, self._cache, self._max_pixels, self._transforms)
        return (_rebuild, arguments)

    def load(
        self,
        rows: NDArray[np.int64],
        epoch: int,
        images: Sequence[NDArray[np.uint8]],
        on_start: Callable[[int], None],
    ) -> list[UnreadableSample]:
        """Load the images of some rows.

        Args:
            rows: (b,) int64, as in `BatchRequest`: repetitions of a row lie beyond the length of the index.
            epoch: with the seed and the row, it determines random crops and host transforms.
            images: output, (b, size, size, 3) uint8 for each image spec; zeros where a sample cannot be read.
            on_start: called with the position of each sample before it is read.

        Returns:
            the samples that cannot be read.
        """
        unreadable = []
        draws = [spec.crop.draws(epoch, rows).tolist() for spec in self.image_specs]
        seeds = self._transforms.seeds(epoch, rows) if self._transforms is not None else []
        for position, row in enumerate(rows.tolist()):
            on_start(position)
            try:
                sample_draws = [spec_draws[position] for spec_draws in draws]
                self._load_sample(row % len(self._offsets), sample_draws, [out[position] for out in images])
            except DataError as error:
                for out in images:
                    out[position] = 0
                unreadable.append(UnreadableSample(position, str(error)))
                continue
            if self._transforms is not None:
                for out in images:
                    self._transforms.apply(out[position], seeds[position])
        return unreadable

    def _load_sample(self, row: int, draws: list[list[float]], outs: list[NDArray[np.uint8]]) -> None:
        image = None
        if self._cache is not None:
            # Unreadable when the cache was built: perhaps the disk failed only for a moment, so the shard is read
            # again.
            with contextlib.suppress(DataError):
                image = self._cache.get(row)
        if image is None:
            data = self._store.read(int(self._shards[row]), int(self._offsets[row]), int(self._lengths[row]))
            whole = full_size(data) if self.image_specs[0].crop.shrink else None
            if whole is not None:
                self._load_shrunk(data, whole, draws[0], outs[0])
                return
            image = decode(data, max_pixels=self._max_pixels)
        for spec, spec_draws, out in zip(self.image_specs, draws, outs, strict=True):
            part = _cut_out(image, spec.crop.box(image.shape[0], image.shape[1], spec_draws))
            # The cache stores one channel of a grey image. Three channels again, so that resizing does the same
            # arithmetic.
            resize_and_crop(grey_to_rgb(part) if part.shape[2] == 1 else part, spec.crop, spec.resize, out)

    def _load_shrunk(self, data: bytes, whole: tuple[int, int], draws: list[float], out: NDArray[np.uint8]) -> None:
        """Load a JPEG of the given full size, letting the decoder shrink it; there is one image spec."""
        (spec,) = self.image_specs
        box = spec.crop.box(*whole, draws)
        target = spec.crop.resized_shape(box, spec.size)
        min_size = (-(-whole[0] * target[0] // box.height), -(-whole[1] * target[1] // box.width))
        image = decode(data, max_pixels=self._max_pixels, min_size=min_size)
        resize_and_crop(_cut_out(image, _scale_box(box, whole, image.shape)), spec.crop, spec.resize, out)


def _rebuild(
    index: Index,
    store: LocalStore,
    image_specs: Sequence[ImageSpec],
    cache: DecodedCache | None,
    max_pixels: int,
    transforms: HostTransforms | None,
) -> SamplePipeline:
    return SamplePipeline(index, store, image_specs, cache=cache, max_pixels=max_pixels, transforms=transforms)


def resize_and_crop(part: NDArray[np.uint8], crop: Crop, resize: Resize, out: NDArray[np.uint8]) -> None:
    """Resize the part of an image that `crop.box` selects, and write its central square to `out`.

    Args:
        part: (H, W, 3) uint8 RGB.
        crop: gives the size that the part is resized to.
        resize: antialiased or fast.
        out: output, (S, S, 3) uint8.

    Raises:
        DataError: the image is so thin that resizing its short side would need gigabytes for its long side.
    """
    size = out.shape[0]
    height, width = crop.resized_shape(Box(0, 0, *part.shape[:2]), size)
    if height * width > max(MAX_PIXELS, size * size):
        raise DataError(
            f"image of {part.shape[1]} x {part.shape[0]} pixels is too thin: a central square of {size} x {size} would be "
            f"cut out of {width} x {height}, more than {MAX_PIXELS:,} pixels"
        )
    if (height, width) == (size, size):
        resize_into(part, out, resize)
        return
    resized = np.empty((height, width, 3), np.uint8)
    resize_into(part, resized, resize)
    np.copyto(out, _cut_out(resized, Box(round((height - size) / 2), round((width - size) / 2), size, size)))


def _cut_out(image: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    return image[box.top : box.top + box.height, box.left : box.left + box.width]


def _scale_box(box: Box, whole: tuple[int, int], shape: tuple[int, ...]) -> Box:
    """Return the box, given in the whole image, in the coordinates of the image that the decoder shrank."""
    by_height, by_width = shape[0] / whole[0], shape[1] / whole[1]
    top, left = round(box.top * by_height), round(box.left * by_width)
    bottom, right = round((box.top + box.height) * by_height), round((box.left + box.width) * by_width)
    return Box(top, left, max(1, bottom - top), max(1, right - left))
