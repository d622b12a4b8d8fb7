"""The last layer of a network: what goes into it is the features, and what is fitted to them is written into it."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from choral.core.errors import ConfigError
from choral.models.finetuning import classifier_names


class Classifier:
    """The linear layer at the end of a timm network.

    Features are by definition what this layer is given, so that a head fitted to them and written back is exactly what
    the network then computes: pooling, and whatever norm or layer timm puts before the logits, is in front of it. A
    convolution of 1 x 1 on a pooled map is such a layer, too.

    Raises:
        ConfigError: the network ends in something else, or in a layer without bias.
    """

    def __init__(self, network: nn.Module) -> None:
        layer = network.get_classifier()  # type: ignore[operator]
        linear = isinstance(layer, nn.Linear)
        pointwise = isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.groups == 1
        if not (linear or pointwise):
            raise _refusal(network, f"ends in {type(layer).__name__}, not in one linear layer")
        if layer.bias is None:
            raise _refusal(network, "ends in a layer without bias")
        self._network, self._layer = network, layer

    @property
    def width(self) -> int:
        """Numbers a sample that the layer is given."""
        return int(self._layer.weight.shape[1])

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """Return (B, width) float32 for (B, 3, S, S) normalised images; the network must be in evaluation mode.

        Raises:
            ConfigError: the layer is not the last thing that the network computes, or not on one vector a sample.
        """
        seen: list[tuple[Tensor, Tensor]] = []
        hook = self._layer.register_forward_hook(lambda layer, inputs, output: seen.append((inputs[0], output)))
        try:
            logits = self._network(images)
        finally:
            hook.remove()
        pooled = len(seen) == 1 and seen[0][0].numel() == len(images) * self.width
        if not pooled or not torch.equal(seen[0][1].flatten(1), logits):
            raise _refusal(self._network, "does not end in one linear layer on pooled features")
        return seen[0][0].flatten(1).float()

    @torch.no_grad()
    def write(self, weight: NDArray[np.floating], bias: NDArray[np.floating]) -> None:
        """Make (C, width) weights and (C,) biases those of the layer."""
        self._layer.weight.copy_(torch.from_numpy(np.asarray(weight, np.float32)).view_as(self._layer.weight))
        self._layer.bias.copy_(torch.from_numpy(np.asarray(bias, np.float32)))

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Return the layer's weight and bias, of which ranks tell each other."""
        return self._layer.weight.data, self._layer.bias.data


def body_hash(network: nn.Module) -> str:
    """Return the SHA-256 of all tensors but those of the classifier: equal where features are equal."""
    head = set(classifier_names(network))
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if name not in head:
            values = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
            digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _refusal(network: nn.Module, why: str) -> ConfigError:
    return ConfigError(
        f"finetune.strategy: {type(network).__name__} {why}, so no head can be fitted to features of it; use head, "
        "partial, gradual or full"
    )
