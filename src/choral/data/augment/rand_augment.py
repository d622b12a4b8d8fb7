"""RandAugment (Cubuk et al. 2020, "RandAugment: Practical automated data augmentation with a reduced search space") and
TrivialAugment (Müller and Hutter 2021, "TrivialAugment: Tuning-free yet state-of-the-art data augmentation").

Operations and ranges are those of torchvision's RandAugment and TrivialAugmentWide, with these differences: strengths
are continuous in RandAugment, pixels are interpolated linearly, pixels from outside the image have the mean colour (as
in timm), translations scale with the image, and results are rounded to the nearest level instead of down. Images stay
uint8 between operations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from choral.config import AugmentConfig
from choral.core.counter_rng import uniform
from choral.data.augment.colour import GREY_WEIGHTS, apply_colour_matrices, mean_grey
from choral.data.augment.geometry import warp_batch, warp_image

_STREAM = 47  # random stream of this augmentation
_DRAWS = 3  # per operation: kind, strength, sign
_RANDAUGMENT_BINS = 30


class _Operation(NamedTuple):
    """An operation and its largest strength in each policy."""

    name: str
    kind: str
    signed: bool
    randaugment: float
    trivialaugment: float


_OPERATIONS = (
    _Operation("Identity", "", False, 0, 0),
    _Operation("ShearX", "warp", True, 0.3, 0.99),  # tangent of the angle
    _Operation("ShearY", "warp", True, 0.3, 0.99),
    _Operation("TranslateX", "warp", True, 150 / 331, 32 / 224),  # share of the side
    _Operation("TranslateY", "warp", True, 150 / 331, 32 / 224),
    _Operation("Rotate", "warp", True, 30, 135),  # degrees
    _Operation("Brightness", "matrix", True, 0.9, 0.99),  # added to a factor of 1
    _Operation("Color", "matrix", True, 0.9, 0.99),
    _Operation("Contrast", "matrix", True, 0.9, 0.99),
    _Operation("Sharpness", "sharpen", True, 0.9, 0.99),
    _Operation("Posterize", "table", False, 4, 6),  # bits dropped
    _Operation("Solarize", "table", False, 255, 255),  # 255 minus the first level that is inverted
    _Operation("AutoContrast", "table", False, 0, 0),
    _Operation("Equalize", "table", False, 0, 0),
)
OPERATION_NAMES = tuple(operation.name for operation in _OPERATIONS)
_NUMBERS = {name: number for number, name in enumerate(OPERATION_NAMES)}
_KINDS = np.array([operation.kind for operation in _OPERATIONS])
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32)  # in thirteenths
_LEVELS = np.arange(256)


def draw_policy(
    config: AugmentConfig, seed: int, epoch: int, rows: NDArray[np.int64], size: int
) -> dict[str, NDArray[Any]]:
    """Return random parameters of samples: K operations, applied one after the other.

    Returns:
        "policy": (b, K) int64 positions in OPERATION_NAMES; "policy_strength": (b, K) float32, signed, in the unit of
        the operation; "policy_homography": (b, K, 3, 3) float64, identity where nothing moves; "policy_matrix": (b, K,
        3, 3) float32 and "policy_contrast": (b, K) float32, which is multiplied with the mean grey and added.
    """
    count = config.policy_ops if config.policy == "randaugment" else 1
    draws = uniform(seed, epoch, rows, _DRAWS * count, _STREAM).reshape(len(rows), count, _DRAWS)
    chosen = np.floor(draws[..., 0] * len(_OPERATIONS)).astype(np.int64)
    largest = np.array([getattr(operation, config.policy) for operation in _OPERATIONS])[chosen]
    if config.policy == "randaugment":
        level = np.full(chosen.shape, config.policy_magnitude / _RANDAUGMENT_BINS)
    else:
        level = np.floor(draws[..., 1] * 31) / 30
    strength = level * largest
    signed = np.array([operation.signed for operation in _OPERATIONS])[chosen]
    strength = np.where(signed & (draws[..., 2] < 0.5), -strength, strength)
    strength = np.where(chosen == _NUMBERS["Posterize"], np.rint(strength), strength)
    strength = np.where(chosen == _NUMBERS["Solarize"], 255 - strength, strength)
    homographies = np.tile(np.eye(3), (*chosen.shape, 1, 1))
    matrices = np.tile(np.eye(3, dtype=np.float32), (*chosen.shape, 1, 1))
    contrast = np.zeros(chosen.shape, np.float32)
    for at in np.ndindex(chosen.shape):
        kind = _KINDS[chosen[at]]
        if kind == "warp":
            homographies[at] = _compute_homography(OPERATION_NAMES[chosen[at]], float(strength[at]), size)
        elif kind == "matrix":
            matrices[at], contrast[at] = _compute_matrix(OPERATION_NAMES[chosen[at]], 1 + float(strength[at]))
    return {
        "policy": chosen,
        "policy_strength": strength.astype(np.float32),
        "policy_homography": homographies,
        "policy_matrix": matrices,
        "policy_contrast": contrast,
    }


def _compute_homography(name: str, strength: float, size: int) -> NDArray[np.float64]:
    """Return the homography from positions in the result to positions in the image."""
    matrix = np.eye(3)
    if name in ("ShearX", "ShearY"):  # about the corner, as in AutoAugment
        matrix[(0, 1) if name == "ShearX" else (1, 0)] = strength
    elif name in ("TranslateX", "TranslateY"):
        matrix[0 if name == "TranslateX" else 1, 2] = -strength * size
    else:
        angle, centre = np.radians(strength), (size - 1) / 2
        cosine, sine = np.cos(angle), np.sin(angle)
        matrix[:2, :2] = [[cosine, -sine], [sine, cosine]]
        matrix[:2, 2] = centre * (1 - cosine + sine), centre * (1 - sine - cosine)
    return matrix


def _compute_matrix(name: str, factor: float) -> tuple[NDArray[np.float32], float]:
    identity = np.eye(3, dtype=np.float32)
    if name == "Color":
        return (factor * identity + (1 - factor) * np.array(GREY_WEIGHTS)).astype(np.float32), 0.0
    return np.float32(factor) * identity, 1 - factor if name == "Contrast" else 0.0


def operation_positions(chosen: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """Return the (n,) positions of the samples of each step and kind of operation, as "policy_STEP_KIND"."""
    kinds = _KINDS[chosen]
    return {
        f"policy_{step}_{kind}": np.flatnonzero(kinds[:, step] == kind)
        for step in range(chosen.shape[1])
        for kind in ("warp", "matrix", "sharpen", "table")
    }


def apply_policy_to_image(
    image: NDArray[np.uint8], parameters: Mapping[str, NDArray[Any]], at: int, fill: tuple[int, int, int]
) -> NDArray[np.uint8]:
    """Return a (S, S, 3) uint8 image after the operations of sample `at`; `fill` is the colour outside the image."""
    for step, chosen in enumerate(parameters["policy"][at].tolist()):
        kind, strength = _KINDS[chosen], float(parameters["policy_strength"][at, step])
        if kind == "warp":
            image = warp_image(image, parameters["policy_homography"][at, step], fill)
        elif kind == "matrix":
            image = _apply_matrix(image, parameters["policy_matrix"][at, step], parameters["policy_contrast"][at, step])
        elif kind == "sharpen":
            image = _sharpen(image, 1 + strength)
        elif kind == "table":
            table = _compute_table(image, OPERATION_NAMES[chosen], strength)
            image = cv2.LUT(image, np.ascontiguousarray(table.T)[None])
    return image


def _round_to_uint8(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _apply_matrix(image: NDArray[np.uint8], matrix: NDArray[np.float32], contrast: float) -> NDArray[np.uint8]:
    summand = contrast * np.dot(cv2.mean(image)[:3], GREY_WEIGHTS)
    if not matrix[0, 1]:  # no mixing of channels
        table = _round_to_uint8(_LEVELS.astype(np.float32) * matrix[0, 0] + np.float32(summand))
        changed: NDArray[np.uint8] = cv2.LUT(image, table)
        return changed
    return _round_to_uint8(cv2.transform(image.astype(np.float32), matrix))


def _sharpen(image: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    values = image.astype(np.float32)
    smooth = np.rint(cv2.filter2D(values, -1, _SMOOTH) / 13)
    sharp = image.copy()  # the edge pixels stay unchanged, as in Pillow
    inner = (slice(1, -1), slice(1, -1))
    sharp[inner] = _round_to_uint8(smooth[inner] + (values[inner] - smooth[inner]) * np.float32(factor))
    return sharp


def _compute_table(image: NDArray[np.uint8], name: str, strength: float) -> NDArray[np.uint8]:
    """Return the lookup table of each channel, (3, 256)."""
    if name == "Posterize":
        bits = int(strength)
        return np.tile((_LEVELS >> bits << bits).astype(np.uint8), (3, 1))
    if name == "Solarize":
        return np.tile(np.where(strength > _LEVELS, _LEVELS, 255 - _LEVELS).astype(np.uint8), (3, 1))
    counts = np.stack([cv2.calcHist([image], [c], None, [256], [0, 256]).reshape(-1) for c in range(3)]).astype(
        np.int64
    )
    make = _stretch_table if name == "AutoContrast" else _equalize_table
    return np.stack([make(channel) for channel in counts]).astype(np.uint8)


def _stretch_table(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    found = np.flatnonzero(counts)
    low, high = int(found[0]), int(found[-1])
    return _LEVELS if low == high else np.clip((_LEVELS - low) * 255 // (high - low), 0, 255)


def _equalize_table(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    step = (counts.sum() - counts[np.flatnonzero(counts)[-1]]) // 255
    return _LEVELS if step == 0 else np.clip((np.cumsum(counts) - counts + step // 2) // step, 0, 255)


def apply_policy(images: Tensor, parameters: Mapping[str, Tensor], fill: Tensor) -> Tensor:
    """Apply the operations to a batch; equal to `apply_policy_to_image` except at rounding ties between two levels.

    Args:
        images: (B, 3, S, S) uint8.
        parameters: as `draw_policy` and `operation_positions`, as tensors on the device of `images`.
        fill: (3, 1, 1) float, the colour outside the image.

    Returns:
        (B, 3, S, S) uint8, a copy.
    """
    images = images.clone()
    for step in range(parameters["policy"].shape[1]):
        # The number of positions is known on the host, so nothing waits for the device.
        for kind in ("warp", "matrix", "sharpen", "table"):
            at = parameters[f"policy_{step}_{kind}"]
            if not len(at):
                continue
            selected = images[at]
            settings = {
                name: parameters[f"policy{name}"][at, step] for name in ("", "_strength", "_matrix", "_contrast")
            }
            if kind == "warp":
                changed = warp_batch(selected, parameters["policy_homography"][at, step], fill)
            elif kind == "matrix":
                values = selected.float()
                changed = _to_bytes(
                    apply_colour_matrices(values, settings["_matrix"], settings["_contrast"] * mean_grey(values))
                )
            elif kind == "sharpen":
                changed = _sharpen_batch(selected, 1 + settings["_strength"])
            else:
                tables = _compute_tables(selected, settings[""], settings["_strength"])
                changed = tables.gather(2, selected.flatten(2).long()).view_as(selected).to(torch.uint8)
            images.index_copy_(0, at, changed)
    return images


def _to_bytes(values: Tensor) -> Tensor:
    return values.round_().clamp_(0, 255).to(torch.uint8)


def _sharpen_batch(images: Tensor, factor: Tensor) -> Tensor:
    values = images.float()
    inner = values[..., 1:-1, 1:-1]
    smooth = ((F.avg_pool2d(values, 3, 1, divisor_override=1) + 4 * inner) / 13).round_()  # with the weights of _SMOOTH
    sharp = images.clone()
    sharp[..., 1:-1, 1:-1] = _to_bytes(smooth + (inner - smooth) * factor[:, None, None, None])
    return sharp


def _compute_tables(images: Tensor, chosen: Tensor, strength: Tensor) -> Tensor:
    """Return the lookup table of each channel of each image, (B, 3, 256) int64."""
    levels = torch.arange(256, device=images.device).expand(len(images), 3, 256)
    bits, limit = strength.long()[:, None, None], strength[:, None, None]
    values = images.flatten(2).long()
    counts = torch.zeros_like(levels).scatter_add_(2, values, torch.ones_like(values))
    low, high = values.amin(2, keepdim=True), values.amax(2, keepdim=True)
    last = counts.gather(2, high)
    step = (counts.sum(2, keepdim=True) - last) // 255
    made = {
        "Posterize": (levels >> bits.clamp(max=8)) << bits.clamp(max=8),
        "Solarize": torch.where(levels < limit, levels, 255 - levels),
        "AutoContrast": torch.where(high > low, (levels - low) * 255 // (high - low).clamp(min=1), levels),
        "Equalize": torch.where(step > 0, (counts.cumsum(2) - counts + step // 2) // step.clamp(min=1), levels),
    }
    tables = levels
    for name, table in made.items():
        tables = torch.where((chosen == _NUMBERS[name])[:, None, None], table, tables)
    return tables.clamp(0, 255)
