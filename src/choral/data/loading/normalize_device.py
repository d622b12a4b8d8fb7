"""Normalization and augmentation of uint8 batches with batched kernels, on any device; see also `normalize_cpu`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from choral.data.augment.colour import adjust_colours
from choral.data.augment.geometry import transpose_and_flip, warp_batch
from choral.data.augment.mixing import box_mask
from choral.data.augment.parameters import Augment
from choral.data.augment.rand_augment import apply_policy
from choral.data.augment.texture import add_noise_to_batch, blur_batch
from choral.data.loading.normalize_cpu import fill_from_mean


class DeviceNormalizer:
    """Augments and normalizes batches with batched kernels on any device.

    The result equals that of `CpuNormalizer` within float rounding; for images that are resampled or go through a
    policy, within one level of 255 except for one value in a thousand.

    Args:
        mean, std: of each channel, for pixel values in [0, 1].
        device: of the batches.
        augment: the augmentations that the parameters belong to; None: none.
        channels_last: memory format of the result.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        augment: Augment | None,
        channels_last: bool,
    ) -> None:
        self._augment = augment
        self._fill = torch.tensor(fill_from_mean(mean), dtype=torch.float32, device=device).view(3, 1, 1)
        self._mean, self._std = (
            torch.tensor(values, dtype=torch.float32, device=device).view(3, 1, 1) for values in (mean, std)
        )
        self._format = torch.channels_last if channels_last else torch.contiguous_format

    def __call__(self, images: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return (B, 3, S, S) float32, augmented and normalized.

        Args:
            images: (B, S, S, 3) uint8 on the device.
            parameters: as `Augment.parameters` with `add_positions`, as tensors on the device.
        """
        planes = images.permute(0, 3, 1, 2)
        if self._augment is None:
            return self._standardize(planes.float().div_(255))
        planes = self._transform_bytes(planes, parameters)  # as bytes: a quarter of the memory traffic
        values = planes.float().div_(255)
        if self._augment.changes_colours:
            values = adjust_colours(values, parameters)
        for name, change in (("at_blurred", _blur_at), ("at_noise", _add_noise_at)):
            if name in parameters and len(parameters[name]):
                values = values.index_copy(0, parameters[name], change(values, parameters, parameters[name]))
        values = self._standardize(values)
        if "erased" in parameters:
            values = values.masked_fill(box_mask(parameters["erased"], values.shape[-1]), 0)
        return values.contiguous(memory_format=self._format)

    def _transform_bytes(self, planes: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        assert self._augment is not None
        if self._augment.flips:
            planes = transpose_and_flip(planes, parameters)
        if "policy" in parameters:
            planes = apply_policy(planes, parameters, self._fill)
        if "at_warped" in parameters and len(at := parameters["at_warped"]):
            planes = planes.index_copy(0, at, warp_batch(planes[at], parameters["homography"][at], None))
        return planes

    def _standardize(self, values: Tensor) -> Tensor:
        return values.sub_(self._mean).div_(self._std).contiguous(memory_format=self._format)


def _blur_at(values: Tensor, parameters: Mapping[str, Tensor], at: Tensor) -> Tensor:
    return blur_batch(values[at], parameters["blur"][at])


def _add_noise_at(values: Tensor, parameters: Mapping[str, Tensor], at: Tensor) -> Tensor:
    return add_noise_to_batch(values[at], {name: parameters[name][at] for name in ("noise", "noise_key")})
