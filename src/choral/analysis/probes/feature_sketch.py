"""Reduces the features of an image to a few numbers that preserve nearest neighbours.

Features are the input of a network's last layer. They are scaled to length 1, so that no network dominates, and multiplied
with a random sign matrix, a different one for each network (Achlioptas 2003, "Database-friendly random projections:
Johnson-Lindenstrauss with binary coins"). Squared distances are preserved to within about sqrt(2 / width), 18 % for a width
of 64. The mean over networks is then a projection of their concatenated features.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from choral.analysis.probes.plan import SEED
from choral.core.counter_rng import uniform
from choral.data.shards.splits import hash_keys

_STREAM = 62  # separates these random numbers from those of other purposes


@dataclass(frozen=True)
class FeatureSketch:
    """Returns the features of a network along with its outputs.

    Attributes:
        width: numbers per image that are kept.
    """

    width: int

    def __call__(self, network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return a network's (B, outputs) for (B, 3, S, S) images, and its (B, D) features.

        A network that does not end in a single layer on a feature vector (timm's distilled transformers have two heads)
        returns its outputs as features.
        """
        inputs: list[Tensor] = []
        layer = network.get_classifier()  # type: ignore[operator]
        if not isinstance(layer, nn.Module):
            logits: Tensor = network(images)
            return logits, logits
        hook = layer.register_forward_pre_hook(lambda layer, arguments: inputs.append(arguments[0]))
        try:
            logits = network(images)
        finally:
            hook.remove()
        pooled = len(inputs) == 1 and inputs[0].shape[0] == len(images) and inputs[0][0].numel() == inputs[0].shape[1]
        return logits, inputs[0].flatten(1) if pooled else logits

    def reduce(self, name: str, features: Tensor) -> Tensor:
        """Return (B, width) float32 projections of the (B, D) features of the network with this name."""
        values = F.normalize(features.float(), dim=1)
        return values @ _sign_matrix(name, values.shape[1], self.width, values.device)


@lru_cache(maxsize=256)
def _sign_matrix(name: str, features: int, width: int, device: torch.device) -> Tensor:
    """Return a (features, width) matrix of plus and minus 1 / sqrt(width)."""
    (seed,) = hash_keys([name], SEED, "sketch").tolist()
    draws = uniform(seed, 0, np.arange(features), width, _STREAM)
    with torch.inference_mode(False):
        return torch.from_numpy(np.where(draws < 0.5, -1, 1) / width**0.5).float().to(device)
