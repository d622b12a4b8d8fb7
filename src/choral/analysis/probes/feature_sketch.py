"""What is kept of the features of an image: few numbers, by which nearest neighbours can be found.

Features are what the last layer of a network is given. They are brought to length 1, so that no network outweighs the
others, and multiplied with a random matrix of signs, another one for each network (Achlioptas 2003, "Database-friendly
random projections: Johnson-Lindenstrauss with binary coins"): squared distances stay what they are within about
sqrt(2 / numbers), 18 % of 64. The mean over networks is then a projection of the features of all of them, laid end to end.
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
from choral.data.shards.splits import key_hashes

_STREAM = 62  # tells these random numbers from those of other purposes


@dataclass(frozen=True)
class Sketch:
    """Reads the features of networks beside what they put out.

    Attributes:
        width: numbers that are kept.
    """

    width: int

    def __call__(self, network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return what a network puts out for (B, 3, S, S) images, (B, outputs), and its features, (B, D).

        Of a network that does not end in one layer on a vector of features (timm's distilled transformers have two), they
        are its outputs.
        """
        seen: list[Tensor] = []
        layer = network.get_classifier()  # type: ignore[operator]
        if not isinstance(layer, nn.Module):
            logits: Tensor = network(images)
            return logits, logits
        hook = layer.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
        try:
            logits = network(images)
        finally:
            hook.remove()
        pooled = len(seen) == 1 and seen[0].shape[0] == len(images) and seen[0][0].numel() == seen[0].shape[1]
        return logits, seen[0].flatten(1) if pooled else logits

    def kept(self, name: str, features: Tensor) -> Tensor:
        """Return (B, width) float32 of (B, D) features of the network of a name."""
        values = F.normalize(features.float(), dim=1)
        return values @ _signs(name, values.shape[1], self.width, values.device)


@lru_cache(maxsize=256)
def _signs(name: str, features: int, width: int, device: torch.device) -> Tensor:
    """Return (features, width) of plus and minus 1 / sqrt(width)."""
    (seed,) = key_hashes([name], SEED, "sketch").tolist()
    draws = uniform(seed, 0, np.arange(features), width, _STREAM)
    with torch.inference_mode(False):
        return torch.from_numpy(np.where(draws < 0.5, -1, 1) / width**0.5).float().to(device)
