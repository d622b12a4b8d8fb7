"""Mixup (Zhang et al. 2018, "mixup: Beyond empirical risk minimization") and cutmix (Yun et al. 2019, "CutMix:
Regularization strategy to train strong classifiers with localizable features").

Position i of a micro-batch is mixed with position i ^ 1, whatever slice of it a rank holds. If the slice cuts a pair,
the rank reads the partner, too, so that a mixed sample does not depend on the number of ranks. Each sample has its own
share, as in timm's mode "elem".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from choral.core.counter_rng import uniform

_STREAM = 40  # random stream of this augmentation
_DRAWS = 5


def partner_positions(count: int) -> NDArray[np.int64]:
    """Return the (count,) partner of each position of a micro-batch; an odd last one is mixed with the one before."""
    last = max(0, count - 2 + (count % 2 == 0))
    partners: NDArray[np.int64] = np.minimum(np.arange(count, dtype=np.int64) ^ 1, last)
    return partners


def add_partners(micro_batch: NDArray[np.int64], part: slice) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """Return the rows that a rank reads of a micro-batch whose samples are mixed.

    Args:
        micro_batch: (n,) rows of the index, over all ranks.
        part: this rank's contiguous slice.

    Returns:
        rows: (b + e,) the b rows of the slice, then those partners that are not among them.
        partners: (b,) the position in `rows` of the partner of each of the b rows; None for a micro-batch of one
            sample.
    """
    slice_positions = np.arange(len(micro_batch))[part]
    if len(micro_batch) < 2:
        return micro_batch[part], None
    partners = partner_positions(len(micro_batch))[part]
    positions = np.concatenate([slice_positions, np.setdiff1d(partners, slice_positions)])
    index_of = {position: number for number, position in enumerate(positions.tolist())}
    return micro_batch[positions], np.array([index_of[position] for position in partners.tolist()], np.int64)


@dataclass(frozen=True)
class Mixing:
    """Mixup and cutmix of samples. `mixup` and `cutmix` are alphas of the beta distribution, 0: off."""

    mixup: float
    cutmix: float
    prob: float
    seed: int

    def parameters(self, epoch: int, rows: NDArray[np.int64], size: int) -> dict[str, NDArray[Any]]:
        """Return the mixing parameters of samples.

        Args:
            epoch: from 0.
            rows: (b,) int64 rows of the index.
            size: side of the images in pixels.

        Returns:
            "mix_weight": (b,) float32 weight of the sample's own image outside the box; "mix_box": (b, 4) int64 top,
            left, bottom and right of the box that the partner's image replaces; "share": (b,) float32 weight of the own
            image and label, 1 without mixing.
        """
        from scipy.special import betaincinv  # takes a third of a second to import

        draws = np.ascontiguousarray(uniform(self.seed, epoch, rows, _DRAWS, _STREAM).T)
        mixed = draws[0] < self.prob
        cuts = mixed & ((draws[1] < 0.5) if self.mixup and self.cutmix else np.full(len(rows), self.cutmix > 0))
        alphas = np.where(cuts, self.cutmix, self.mixup)
        share = betaincinv(np.where(mixed, alphas, 1.0), np.where(mixed, alphas, 1.0), draws[2])
        boxes = np.where(cuts[:, None], _boxes(share, draws[3], draws[4], size), 0)
        outside = 1 - (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / size**2
        weight = np.where(mixed & ~cuts, share, 1.0).astype(np.float32)
        return {
            "mix_weight": weight,
            "mix_box": boxes.astype(np.int64),
            "share": np.where(cuts, outside, weight).astype(np.float32),
        }


def _boxes(
    share: NDArray[np.float64], down: NDArray[np.float64], right: NDArray[np.float64], size: int
) -> NDArray[np.int64]:
    """Return (b, 4) boxes of area 1 - share with random centres, cut off at the image edge as in the CutMix paper."""
    half = np.floor(size * np.sqrt(1 - share)) / 2
    ends = [np.floor(size * centre) + sign * half for sign in (-1, 1) for centre in (down, right)]
    boxes: NDArray[np.int64] = np.clip(np.stack(ends, 1), 0, size).astype(np.int64)
    return boxes


def mix_images(
    images: NDArray[np.float32],
    partners: NDArray[np.int64],
    parameters: Mapping[str, NDArray[Any]],
    out: NDArray[np.float32],
    channels_last: bool,
) -> None:
    """Mix on the CPU, one image at a time.

    Args:
        images: (b + e, S, S, 3), or (b + e, 3, S, S), normalized.
        partners: (b,) position in `images` of each partner.
        parameters: as `Mixing.parameters`, of the first b images.
        out: output, (b, ...).
        channels_last: the layout of `images`.
    """
    rows = images.shape[1] if channels_last else images.shape[1] * images.shape[2]
    for i, partner in enumerate(partners.tolist()):
        weight = float(parameters["mix_weight"][i])
        if weight == 1:
            np.copyto(out[i], images[i])
        else:
            image, partner_image = (images[j].reshape(rows, -1) for j in (i, partner))
            cv2.addWeighted(image, weight, partner_image, 1 - weight, 0, dst=out[i].reshape(rows, -1))
        top, left, bottom, right = parameters["mix_box"][i].tolist()
        box = (
            (slice(top, bottom), slice(left, right))
            if channels_last
            else (slice(None), slice(top, bottom), slice(left, right))
        )
        out[i][box] = images[partner][box]


def mix_batch(images: Tensor, partners: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
    """Mix a batch on its device; equal to `mix_images` within float rounding.

    Args:
        images: (B + E, 3, S, S) float.
        partners: (B,) int64, position in `images` of each partner.
        parameters: as `Mixing.parameters`, of the first B images, as tensors on the device of `images`.

    Returns:
        (B, 3, S, S)
    """
    others = images[partners]
    weight = parameters["mix_weight"][:, None, None, None]
    mixed = images[: len(partners)] * weight + others * (1 - weight)
    return torch.where(box_mask(parameters["mix_box"], images.shape[-1]), others, mixed)


def box_mask(boxes: Tensor, size: int) -> Tensor:
    """Return (B, 1, S, S) bool: the pixels inside (B, 4) boxes of top, left, bottom, right."""
    top, left, bottom, right = boxes[:, :, None].unbind(1)
    positions = torch.arange(size, device=boxes.device)
    rows, columns = (positions >= top) & (positions < bottom), (positions >= left) & (positions < right)
    return (rows[:, :, None] & columns[:, None, :])[:, None]
