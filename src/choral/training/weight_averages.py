"""Averages of a network's weights beside the weights that are trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Weights = Mapping[str, Tensor]
"""A state dict: parameters and buffers by name."""


class MovingAverage:
    """Exponential moving average of everything in a network's state dict (Polyak and Juditsky 1992; Tan and Le 2019).

    After step t = 0, 1, ... each float tensor becomes d * average + (1 - d) * current, d = min(decay, (1 + t) / (10 + t)):
    the early, bad weights are forgotten fast. BatchNorm's running statistics are averaged like the weights, so that they
    are as far behind as the weights they belong to; copied ones would be those of other weights. Integers are copied.

    Args:
        network: outside DistributedDataParallel, on its device; the average starts as a copy of it.
        decay: 0 < decay < 1.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._decay = decay
        self.weights: Weights = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Take in the weights that step `step`, counted from 0, has made."""
        share = 1 - min(self._decay, (1 + step) / (10 + step))
        current = network.state_dict()
        floats = [name for name, value in self.weights.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.weights[name] for name in floats], [current[name] for name in floats], share)
        for name in self.weights.keys() - set(floats):
            self.weights[name].copy_(current[name])

    @torch.no_grad()
    def load(self, weights: Weights) -> None:
        """Continue from the average of an earlier start; memory formats stay."""
        for name, value in self.weights.items():
            value.copy_(weights[name])


def mean_of(ingredients: Sequence[Weights]) -> dict[str, Tensor]:
    """Return the mean of state dicts, added up in float64; integers are those of the last."""
    mean: dict[str, Tensor] = {}
    for name, last in ingredients[-1].items():
        if last.is_floating_point():
            total = torch.stack([one[name].double() for one in ingredients]).sum(0)
            mean[name] = (total / len(ingredients)).to(last.dtype)
        else:
            mean[name] = last.clone()
    return mean


@contextmanager
def holding(network: nn.Module, weights: Weights) -> Iterator[None]:
    """Put other weights into a network, in place, and its own ones back, bit for bit, at the end."""
    own = {name: value.detach().clone() for name, value in network.state_dict().items()}
    network.load_state_dict(weights)
    try:
        yield
    finally:
        network.load_state_dict(own)
