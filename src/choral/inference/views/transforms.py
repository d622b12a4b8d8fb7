"""The tensor operations of views."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, reduce
from operator import add

import torch
from torch import Tensor, nn

from choral.core.errors import ConfigError
from choral.inference.views.grammar import parse_view
from choral.inference.views.resampling import Taps, compute_taps
from choral.inference.views.view import SYMMETRIES, Step, View

_GREY = (0.2989, 0.587, 0.114)  # weights of red, green and blue: ITU-R BT.601, as in torchvision


class ViewModule(nn.Module):
    """A view as a module for one image size. Its constants are buffers, so it can be moved to a device and exported.

    Args:
        view: to apply.
        height, width: of the images, in pixels.
        mean, std: (3,) of the normalised images; brightness and contrast are defined on pixels in [0, 1].

    Raises:
        ConfigError: the view swaps height and width, but these differ.
    """

    def __init__(self, view: View, height: int, width: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if view.is_square and height != width:
            raise ConfigError(f"views: {view.name} needs square images, these are {height} x {width} (height x width)")
        self.view = view
        self.steps = nn.Sequential(*(_build_layer(step, height, width, mean, std) for step in view.steps))

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, 3, H, W) images of the same dtype; `identity` and `transpose` share memory with the input."""
        transformed: Tensor = self.steps(images)
        return transformed


def apply_view(images: Tensor, view: str, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Apply a view to images; `identity` and `transpose` share memory with the input.

    Args:
        images: (B, 3, H, W) normalised images on any device. Symmetries and shifts take any dtype; the other views take
            floats, and compute in float32 or higher.
        view: a name that `expand_views` returned.
        mean, std: (3,) of the normalised images.

    Returns:
        (B, 3, H, W), the same dtype and device.

    Raises:
        ConfigError: the view swaps height and width, but the images are not square.
    """
    height, width = images.shape[-2:]
    module = _build_module(view, height, width, tuple(mean), tuple(std), images.device)
    transformed: Tensor = module(images)
    return transformed


@lru_cache(maxsize=1024)
def _build_module(
    view: str, height: int, width: int, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> ViewModule:
    """Return the module of a view on a device. Cached, because copying its constants for every batch would synchronise."""
    with torch.inference_mode(False):  # inference tensors could not be used outside inference mode later
        return ViewModule(parse_view(view), height, width, mean, std).to(device)


def _build_layer(step: Step, height: int, width: int, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    if step.kind in SYMMETRIES:
        return _Symmetry(*SYMMETRIES[step.kind])
    if step.kind in ("brightness", "contrast"):
        (factor,) = step.values
        assert isinstance(factor, float)
        return _Photometric(factor, step.kind == "contrast", mean, std)
    assert step.kind in ("shift", "scale", "crop"), f"no layer for {step.kind}: add one here"
    return _Window(compute_taps(step, height, "rows"), compute_taps(step, width, "columns"))


class _Symmetry(nn.Module):
    def __init__(self, transposes: bool, reverses_rows: bool, reverses_columns: bool) -> None:
        super().__init__()
        self.transposes = transposes
        self.reversed = [axis for axis, is_so in ((-2, reverses_rows), (-1, reverses_columns)) if is_so]

    def forward(self, images: Tensor) -> Tensor:
        if self.transposes:
            images = images.transpose(-2, -1)
        return images.flip(self.reversed) if self.reversed else images


class _Window(nn.Module):
    """A shift, scale or crop: columns first, then rows."""

    rows_indices: Tensor | None
    rows_weights: Tensor | None
    columns_indices: Tensor | None
    columns_weights: Tensor | None

    def __init__(self, rows: Taps | None, columns: Taps | None) -> None:
        super().__init__()
        for name, taps in (("rows", rows), ("columns", columns)):
            indices = None if taps is None else torch.from_numpy(taps.indices)
            is_gather = taps is None or len(taps.indices) == 1
            weights = None if taps is None or is_gather else torch.from_numpy(taps.weights)
            self.register_buffer(f"{name}_indices", indices)
            self.register_buffer(f"{name}_weights", weights)

    def forward(self, images: Tensor) -> Tensor:
        resampled = _resample(images, -1, self.columns_indices, self.columns_weights)
        return _resample(resampled, -2, self.rows_indices, self.rows_weights).to(images.dtype)


def _resample(images: Tensor, axis: int, indices: Tensor | None, weights: Tensor | None) -> Tensor:
    if indices is None:
        return images
    if weights is None:
        return images.index_select(axis, indices[0])
    exact = images if images.dtype == torch.float64 else images.float()
    shape = (-1,) if axis == -1 else (-1, 1)
    pairs = zip(indices, weights, strict=True)
    total: Tensor = reduce(add, (exact.index_select(axis, places) * share.view(shape) for places, share in pairs))
    return total


class _Photometric(nn.Module):
    """Brightness or contrast, as torchvision's adjust_brightness and adjust_contrast compute them on floats."""

    mean: Tensor
    std: Tensor
    grey: Tensor

    def __init__(self, factor: float, is_contrast: bool, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.factor, self.is_contrast = factor, is_contrast
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("grey", torch.tensor(_GREY, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        pixels = images * self.std + self.mean  # float32 also for half-precision images, like the constants
        changed = pixels * self.factor
        if self.is_contrast:
            grey = (pixels * self.grey).sum(-3, keepdim=True).mean((-2, -1), keepdim=True)
            changed = changed + (1 - self.factor) * grey
        return ((changed.clamp(0, 1) - self.mean) / self.std).to(images.dtype)
