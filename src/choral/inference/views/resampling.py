"""Resampling of shifts, scales and crops along one axis; rows and columns are independent.

Each output pixel is a weighted sum of a few input pixels, its taps. Their indices and weights are constants of the image
size. So these views are gathers, products and sums, which every backend supports, and the result for one image does not
depend on the rest of the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from choral.inference.views.view import Step

_NEGLIGIBLE = 1e-9  # weight of a tap


@dataclass(frozen=True)
class Taps:
    """Output pixel i is the sum over k of weights[k, i] times the input pixel at indices[k, i].

    Attributes:
        indices: (taps, size) int64 in [0, size).
        weights: (taps, size) float32, summing to 1 over the taps.
    """

    indices: NDArray[np.int64]
    weights: NDArray[np.float32]


def compute_taps(step: Step, size: int, axis: str) -> Taps | None:
    """Return the taps of a shift, scale or crop along an axis; None if it changes nothing there.

    Args:
        step: of one of these kinds.
        size: of the image and of the result along the axis, in pixels.
        axis: "rows" (the height) or "columns" (the width).
    """
    if step.kind == "shift":
        fraction = _number(step, 0 if axis == "columns" else 1)
        pixels = round(fraction * size)
        places = _reflect(np.arange(size) - pixels, size)
        return Taps(places[None], np.ones((1, size), np.float32)) if pixels else None
    if step.kind == "scale":
        factor = _number(step, 0)
        centres = (np.arange(size) + 0.5 - size / 2) / factor + size / 2 - 0.5
        return _triangle(centres, 1 / factor, lambda places: _reflect(places, size))
    assert step.kind == "crop", step
    start, side = crop_window(step, size, axis)
    centres = (np.arange(size) + 0.5) * side / size - 0.5 + start
    return _triangle(centres, side / size, lambda places: places.clip(start, start + side - 1))


def crop_window(step: Step, size: int, axis: str) -> tuple[int, int]:
    """Return the first pixel and the number of pixels of a crop along an axis, as in torchvision's five_crop."""
    corner, side = str(step.values[0]), max(1, round(_number(step, 1) * size))
    if corner == "centre":
        return round((size - side) / 2), side
    at_end = corner.startswith("bottom") if axis == "rows" else corner.endswith("right")
    return size - side if at_end else 0, side


def _triangle(
    centres: NDArray[np.floating], stride: float, within: Callable[[NDArray[np.int64]], NDArray[np.int64]]
) -> Taps:
    """Return the taps of linear interpolation; for strides above 1, of a triangle filter as wide as the stride.

    Args:
        centres: (size,) position of each output pixel, in input pixels.
        stride: distance of adjacent output pixels, in input pixels.
        within: maps positions that may lie beyond the border to pixels that exist.
    """
    reach = max(1.0, stride)
    first = np.floor(centres - reach).astype(np.int64) + 1
    places = first + np.arange(int(np.ceil(2 * reach)))[:, None]
    weights = np.maximum(0.0, 1 - np.abs(places - centres) / reach)
    weights /= weights.sum(axis=0)
    used = (weights > _NEGLIGIBLE).any(axis=1)
    return Taps(within(places[used]), weights[used].astype(np.float32))


def _reflect(places: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Return positions reflected at the border pixels, repeatedly if needed: -1 becomes 1, `size` becomes `size - 2`."""
    period = max(2 * size - 2, 1)
    places = places % period
    reflected: NDArray[np.int64] = np.minimum(places, period - places) if size > 1 else places
    return reflected


def _number(step: Step, position: int) -> float:
    value = step.values[position]
    assert isinstance(value, float), step
    return value
