"""uint8 batches to normalised floats with batched kernels, on any device; what `normalize` does an image at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from choral.data.augment import colour
from choral.data.augment import rand_augment as policy
from choral.data.augment.geometry import turn, warp
from choral.data.augment.mixing import inside
from choral.data.augment.parameters import Augment
from choral.data.augment.texture import add_noise, blur
from choral.data.loading.normalize_cpu import fill_of


class Standardizer:
    """What `Normalizer` does, with batched kernels on any device.

    They agree within float rounding; where images are resampled or go through a policy, within a level of 255 but for one
    value in a thousand.

    Args:
        mean, std: of the three channels, for values from 0 to 1.
        device: of the batches.
        augment: which changes the parameters stand for; None: none.
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
        self._fill = torch.tensor(fill_of(mean), dtype=torch.float32, device=device).view(3, 1, 1)
        self._mean, self._std = (
            torch.tensor(values, dtype=torch.float32, device=device).view(3, 1, 1) for values in (mean, std)
        )
        self._format = torch.channels_last if channels_last else torch.contiguous_format

    def __call__(self, images: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return (B, 3, S, S) float32, changed and normalised.

        Args:
            images: (B, S, S, 3) uint8 on the device.
            parameters: as `Augment.parameters` with `with_selections`, as tensors on the device.
        """
        planes = images.permute(0, 3, 1, 2)
        if self._augment is None:
            return self._normalized(planes.float().div_(255))
        planes = self._moved(planes, parameters)  # as bytes: a quarter of the memory traffic
        values = planes.float().div_(255)
        if self._augment.colours:
            values = colour.apply(values, parameters)
        for name, change in (("at_blurred", _blurred), ("at_noise", _noisy)):
            if name in parameters and len(parameters[name]):
                values = values.index_copy(0, parameters[name], change(values, parameters, parameters[name]))
        values = self._normalized(values)
        if "erased" in parameters:
            values = values.masked_fill(inside(parameters["erased"], values.shape[-1]), 0)
        return values.contiguous(memory_format=self._format)

    def _moved(self, planes: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        assert self._augment is not None
        if self._augment.turns:
            planes = turn(planes, parameters)
        if "policy" in parameters:
            planes = policy.apply(planes, parameters, self._fill)
        if "at_warped" in parameters and len(at := parameters["at_warped"]):
            planes = planes.index_copy(0, at, warp(planes[at], parameters["homography"][at], None))
        return planes

    def _normalized(self, values: Tensor) -> Tensor:
        return values.sub_(self._mean).div_(self._std).contiguous(memory_format=self._format)


def _blurred(values: Tensor, parameters: Mapping[str, Tensor], at: Tensor) -> Tensor:
    return blur(values[at], parameters["blur"][at])


def _noisy(values: Tensor, parameters: Mapping[str, Tensor], at: Tensor) -> Tensor:
    return add_noise(values[at], {name: parameters[name][at] for name in ("noise", "noise_key")})
