"""Mixup (Zhang et al. 2018, "mixup: Beyond empirical risk minimization") and cutmix (Yun et al. 2019, "CutMix:
Regularization strategy to train strong classifiers with localizable features"), a sample at a time.

Position i of a micro-batch is mixed with position i ^ 1, whatever slice of it a rank holds: where the slice cuts a pair,
the rank reads the other image as well. So a mixed sample does not depend on the number of ranks. Each sample has a share
of its own, as timm's mode "elem".
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

_STREAM = 40  # tells these random numbers from those of other purposes
_DRAWS = 5


def partners_of(count: int) -> NDArray[np.int64]:
    """Return the (count,) position that each position of a micro-batch is mixed with; the last of an odd one: the one
    before it."""
    last = max(0, count - 2 + (count % 2 == 0))
    partners: NDArray[np.int64] = np.minimum(np.arange(count, dtype=np.int64) ^ 1, last)
    return partners


def with_partners(micro_batch: NDArray[np.int64], mine: slice) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """Return what a rank reads of a micro-batch whose samples are mixed.

    Args:
        micro_batch: (n,) rows of the index, over all ranks.
        mine: this rank's contiguous part.

    Returns:
        rows: (b + e,) the rank's own b rows, then those partners that are not among them.
        partners: (b,) where in `rows` each own row's partner is; None for a micro-batch of one, which is never mixed.
    """
    own = np.arange(len(micro_batch))[mine]
    if len(micro_batch) < 2:
        return micro_batch[mine], None
    partners = partners_of(len(micro_batch))[mine]
    positions = np.concatenate([own, np.setdiff1d(partners, own)])
    places = {position: place for place, position in enumerate(positions.tolist())}
    return micro_batch[positions], np.array([places[position] for position in partners.tolist()], np.int64)


@dataclass(frozen=True)
class Mixing:
    """How samples are mixed; alphas are those of the beta distributions, 0: never in this way."""

    mixup: float
    cutmix: float
    prob: float
    seed: int

    def parameters(self, epoch: int, rows: NDArray[np.int64], size: int) -> dict[str, NDArray[Any]]:
        """Return what is done to each sample.

        Args:
            epoch: from 0.
            rows: (b,) int64 rows of the index.
            size: side of the images in pixels.

        Returns:
            "mix_weight": (b,) float32, of the own image outside the box; "mix_box": (b, 4) int64 top, left, bottom and
            right of what the partner's image replaces; "share": (b,) float32, of the own image altogether, 1 where
            nothing is mixed.
        """
        from scipy.special import betaincinv  # a third of a second, for those who mix

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
    """Return (b, 4) boxes of area 1 - share, centred anywhere and cut off at the image's edge, as in the paper."""
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
    """Mix on the host, an image at a time.

    Args:
        images: (b + e, S, S, 3), or (b + e, 3, S, S), normalised.
        partners: (b,) where in `images` each one's partner is.
        parameters: as `Mixing.parameters`, of the first b.
        out: (b, ...), to be filled.
        channels_last: which of the two layouts.
    """
    rows = images.shape[1] if channels_last else images.shape[1] * images.shape[2]
    for i, partner in enumerate(partners.tolist()):
        weight = float(parameters["mix_weight"][i])
        if weight == 1:
            np.copyto(out[i], images[i])
        else:
            own, other = (images[j].reshape(rows, -1) for j in (i, partner))
            cv2.addWeighted(own, weight, other, 1 - weight, 0, dst=out[i].reshape(rows, -1))
        top, left, bottom, right = parameters["mix_box"][i].tolist()
        box = (
            (slice(top, bottom), slice(left, right))
            if channels_last
            else (slice(None), slice(top, bottom), slice(left, right))
        )
        out[i][box] = images[partner][box]


def mix(images: Tensor, partners: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
    """Mix a batch on its device.

    Args:
        images: (B + E, 3, S, S) float.
        partners: (B,) int64, where in `images` each one's partner is.
        parameters: as `Mixing.parameters`, of the first B, as tensors on the device of `images`.

    Returns:
        (B, 3, S, S)
    """
    others = images[partners]
    weight = parameters["mix_weight"][:, None, None, None]
    mixed = images[: len(partners)] * weight + others * (1 - weight)
    return torch.where(inside(parameters["mix_box"], images.shape[-1]), others, mixed)


def inside(boxes: Tensor, size: int) -> Tensor:
    """Return (B, 1, S, S) bool, which pixels lie in the (B, 4) boxes of top, left, bottom, right."""
    top, left, bottom, right = boxes[:, :, None].unbind(1)
    at = torch.arange(size, device=boxes.device)
    rows, columns = (at >= top) & (at < bottom), (at >= left) & (at < right)
    return (rows[:, :, None] & columns[:, None, :])[:, None]
