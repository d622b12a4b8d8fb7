"""Where the pixels of a shifted, scaled or cropped image come from, along one axis. Rows and columns are independent.

A pixel is the weighted sum of a few pixels of the image, its taps: indices and weights, constants for an image size. So
these views are gathers, products and sums, which every backend has, and one image's pixels do not depend on its
neighbours in the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from choral.inference.views.definition import Step

_NOTHING = 1e-9  # of a weight


@dataclass(frozen=True)
class Taps:
    """Pixel i is the sum over k of weights[k, i] times the pixel at indices[k, i].

    Attributes:
        indices: (taps, size) int64 in [0, size).
        weights: (taps, size) float32, summing to 1 over the taps.
    """

    indices: NDArray[np.int64]
    weights: NDArray[np.float32]


def taps_of(step: Step, size: int, axis: str) -> Taps | None:
    """Return the taps of a shift, scale or crop along an axis; None where it changes nothing there.

    Args:
        step: of one of these kinds.
        size: of the image along the axis, in pixels, and of the result.
        axis: "rows" (the height) or "columns" (the width).
    """
    if step.kind == "shift":
        fraction = _number(step, 0 if axis == "columns" else 1)
        pixels = round(fraction * size)
        places = _reflected(np.arange(size) - pixels, size)
        return Taps(places[None], np.ones((1, size), np.float32)) if pixels else None
    if step.kind == "scale":
        factor = _number(step, 0)
        centres = (np.arange(size) + 0.5 - size / 2) / factor + size / 2 - 0.5
        return _triangle(centres, 1 / factor, lambda places: _reflected(places, size))
    assert step.kind == "crop", step
    start, side = crop_window(step, size, axis)
    centres = (np.arange(size) + 0.5) * side / size - 0.5 + start
    return _triangle(centres, side / size, lambda places: places.clip(start, start + side - 1))


def crop_window(step: Step, size: int, axis: str) -> tuple[int, int]:
    """Return the first pixel of a crop along an axis, and how many there are, as torchvision's five_crop has them."""
    corner, side = str(step.values[0]), max(1, round(_number(step, 1) * size))
    if corner == "centre":
        return round((size - side) / 2), side
    at_end = corner.startswith("bottom") if axis == "rows" else corner.endswith("right")
    return size - side if at_end else 0, side


def _triangle(
    centres: NDArray[np.floating], stride: float, within: Callable[[NDArray[np.int64]], NDArray[np.int64]]
) -> Taps:
    """Return the taps of linear interpolation, of the triangle filter as wide as the stride where that is above 1.

    Args:
        centres: (size,) where each pixel looks, in pixels of the image.
        stride: of neighbouring pixels, in pixels of the image; above 1, they have several pixels between them.
        within: from places that may lie beyond the border to pixels that exist.
    """
    reach = max(1.0, stride)
    first = np.floor(centres - reach).astype(np.int64) + 1
    places = first + np.arange(int(np.ceil(2 * reach)))[:, None]
    weights = np.maximum(0.0, 1 - np.abs(places - centres) / reach)
    weights /= weights.sum(axis=0)
    used = (weights > _NOTHING).any(axis=1)
    return Taps(within(places[used]), weights[used].astype(np.float32))


def _reflected(places: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Return places mirrored at the border pixels, as often as needed: -1 is 1, and `size` is `size - 2`."""
    period = max(2 * size - 2, 1)
    places = places % period
    found: NDArray[np.int64] = np.minimum(places, period - places) if size > 1 else places
    return found


def _number(step: Step, position: int) -> float:
    value = step.values[position]
    assert isinstance(value, float), step
    return value
