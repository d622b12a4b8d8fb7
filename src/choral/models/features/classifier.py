"""The last layer of a network. Its input is the features; fitted heads are written into it."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from choral.core.errors import ConfigError
from choral.models.finetuning import classifier_parameter_names


class ClassifierLayer:
    """The linear layer at the end of a timm network.

    Features are the input of this layer: pooling and any norm or layer that timm puts before the logits come first.
    Therefore the network with a fitted head computes exactly what the head was fitted to. A 1 x 1 convolution on a
    pooled feature map counts as a linear layer.

    Raises:
        ConfigError: the network ends in another layer, or in one without bias.
    """

    def __init__(self, network: nn.Module) -> None:
        layer = network.get_classifier()  # type: ignore[operator]
        linear = isinstance(layer, nn.Linear)
        pointwise = isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.groups == 1
        if not (linear or pointwise):
            raise _unsupported(network, f"ends in {type(layer).__name__}, not in one linear layer")
        if layer.bias is None:
            raise _unsupported(network, "ends in a layer without bias")
        self._network, self._layer = network, layer

    @property
    def width(self) -> int:
        """Features per sample."""
        return int(self._layer.weight.shape[1])

    @torch.inference_mode()
    def compute_features(self, images: Tensor) -> Tensor:
        """Return (B, width) float32 features of (B, 3, S, S) normalized images; the network must be in eval mode.

        Raises:
            ConfigError: the layer is not the last operation of the network, or its input is not one vector per sample.
        """
        calls: list[tuple[Tensor, Tensor]] = []  # input and output of the layer
        hook = self._layer.register_forward_hook(lambda layer, inputs, output: calls.append((inputs[0], output)))
        try:
            logits = self._network(images)
        finally:
            hook.remove()
        is_pooled = len(calls) == 1 and calls[0][0].numel() == len(images) * self.width
        if not is_pooled or not torch.equal(calls[0][1].flatten(1), logits):
            raise _unsupported(self._network, "does not end in one linear layer on pooled features")
        return calls[0][0].flatten(1).float()

    @torch.no_grad()
    def write(self, weight: NDArray[np.floating], bias: NDArray[np.floating]) -> None:
        """Set the weights, (C, width), and the biases, (C,), of the layer."""
        self._layer.weight.copy_(torch.from_numpy(np.asarray(weight, np.float32)).view_as(self._layer.weight))
        self._layer.bias.copy_(torch.from_numpy(np.asarray(bias, np.float32)))

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Return the weight and bias of the layer, not copied, so that ranks can broadcast them."""
        return self._layer.weight.data, self._layer.bias.data


def hash_backbone(network: nn.Module) -> str:
    """Return the SHA-256 of all tensors except those of the classifier; equal hashes mean equal features."""
    head = set(classifier_parameter_names(network))
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if name not in head:
            values = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
            digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _unsupported(network: nn.Module, reason: str) -> ConfigError:
    return ConfigError(
        f"finetune.strategy: {type(network).__name__} {reason}, so no head can be fitted to its features; use head, "
        "partial, gradual or full"
    )
