"""Weight averaging: an exponential moving average (EMA) during training, and the mean of checkpoints (soup)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Weights = Mapping[str, Tensor]
"""A state dict: parameters and buffers by name."""


class MovingAverage:
    """Exponential moving average of a model's state dict (Polyak and Juditsky 1992; Tan and Le 2019).

    After step t = 0, 1, ... each float tensor becomes d * average + (1 - d) * current, d = min(decay, (1 + t) / (10 + t)),
    which forgets the early weights fast. BatchNorm's running statistics are averaged like the weights, so that they lag
    as far behind as the weights do; copied statistics would belong to other weights. Integers are copied.

    Args:
        network: unwrapped (not DistributedDataParallel), on its device; the average starts as a copy of it.
        decay: 0 < decay < 1.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._decay = decay
        self.weights: Weights = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Update the average with the weights after step `step`, counted from 0."""
        share = 1 - min(self._decay, (1 + step) / (10 + step))
        current = network.state_dict()
        floats = [name for name, value in self.weights.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.weights[name] for name in floats], [current[name] for name in floats], share)
        for name in self.weights.keys() - set(floats):
            self.weights[name].copy_(current[name])

    @torch.no_grad()
    def load(self, weights: Weights) -> None:
        """Load the average of a checkpoint, keeping memory formats."""
        for name, value in self.weights.items():
            value.copy_(weights[name])


def average_weights(state_dicts: Sequence[Weights]) -> dict[str, Tensor]:
    """Return the mean of state dicts, summed in float64; integers are taken from the last."""
    mean: dict[str, Tensor] = {}
    for name, last in state_dicts[-1].items():
        if last.is_floating_point():
            total = torch.stack([one[name].double() for one in state_dicts]).sum(0)
            mean[name] = (total / len(state_dicts)).to(last.dtype)
        else:
            mean[name] = last.clone()
    return mean


@contextmanager
def temporary_weights(network: nn.Module, weights: Weights) -> Iterator[None]:
    """Load other weights into a network, in place, and restore its own, bit for bit, on exit."""
    saved = {name: value.detach().clone() for name, value in network.state_dict().items()}
    network.load_state_dict(weights)
    try:
        yield
    finally:
        network.load_state_dict(saved)
