"""Folding BatchNorm into the layer before it, for inference (Jacob et al. 2018, section 3.2).

In evaluation a BatchNorm is an affine map of each channel, y = (x - mean) * weight / sqrt(var + eps) + bias, and so is what
a convolution or linear layer ends with: the two are one layer. Which layers can be joined is not read off names or
classes of networks, but observed: one forward pass records the input of each BatchNorm and its other consumers.

It is done in two steps. `fold` moves the scale into the layer's weight and leaves the BatchNorm as a pure shift: the
tensors still have the names and shapes of the plain architecture, which loads them and puts out the same numbers. `strip`
then takes the BatchNorm away, in memory, and that is what makes the network faster.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from timm.layers import BatchNormAct2d, Conv2dSame, FrozenBatchNormAct2d
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from choral.core.errors import DataError

Pair = tuple[str, str]
"""Names of a BatchNorm and of the layer that it is folded into, as in `named_modules`."""

_AXES = {nn.Conv1d: 3, nn.Conv2d: 4, Conv2dSame: 4, nn.ConvTranspose2d: 4, nn.Linear: 2}
"""Layers to the number of axes of a BatchNorm's input whose second axis holds their channels."""
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, BatchNormAct2d, FrozenBatchNormAct2d)
_VIEW = torch.ops.aten.view.default
"""Reads nothing: who uses what it returns is seen as a user of the same memory."""


def find_foldable(network: nn.Module, example: Tensor) -> list[Pair]:
    """Return the BatchNorms that can be folded, each with its layer, in the order in which they are called.

    A BatchNorm is one of PyTorch's or timm's, alone or with its activation, with running statistics. Its input must be
    the whole output of one convolution or linear layer, which nothing else uses: no residual and no in-place activation
    (reshaping the rows of a linear layer's output is allowed). Both are called once, share no tensor with others, have
    exactly the supported class (weight standardisation, parametrisations and subclasses are left alone) and no
    hooks.

    Args:
        network: run once in evaluation mode; its modes, parameters and buffers stay unchanged.
        example: (B, 3, S, S) float input, of the size used at inference; B = 1 is enough.
    """
    layers = dict(_candidates(network, lambda module: type(module) in _AXES))
    norms = dict(_candidates(network, lambda module: type(module) in _NORMS and _has_statistics(module)))
    modes = {module: module.training for module in network.modules()}
    observed = _Observation(layers, norms)
    try:
        network.eval()
        with torch.no_grad(), observed:
            outputs = network(example)
    finally:
        for module, training in modes.items():
            module.training = training
        observed.close()
    return observed.pairs(outputs)


@torch.no_grad()
def fold(network: nn.Module, pairs: Sequence[Pair]) -> None:
    """Move the scale of each BatchNorm into its layer, in place; what the network puts out in evaluation stays.

    The BatchNorm becomes a pure shift: weight 1, running mean 0, a running variance of 1 - eps, so that it divides by 1,
    and the shift as its bias (without an affine part: as its running mean). A bias of the layer goes into the shift. All
    is computed in float64 and rounded once. Such a network must not be trained on: its statistics are no statistics.

    Args:
        pairs: of `find_foldable`, for a network of this architecture. Folding again changes nothing.

    Raises:
        DataError: there are no such modules in this network.
    """
    for norm, layer in _modules(network, pairs):
        scale, shift = _affine(norm, layer)
        layer.weight.copy_(layer.weight.double() * _per_output(scale, layer))
        if layer.bias is not None:
            layer.bias.zero_()
        norm.running_var.fill_(1 - norm.eps)
        if norm.weight is None:
            norm.running_mean.copy_(-shift)
            continue
        norm.running_mean.zero_()
        norm.weight.fill_(1)
        norm.bias.copy_(shift)


@torch.no_grad()
def strip(network: nn.Module, pairs: Sequence[Pair]) -> None:
    """Take the folded BatchNorms away, in place: the shift becomes the layer's bias, the activation stays.

    Args:
        pairs: that were folded.

    Raises:
        DataError: there are no such modules in this network, or a BatchNorm is not folded.
    """
    found = _modules(network, pairs)
    for (norm_name, _), (norm, layer) in zip(pairs, found, strict=True):
        scale, shift = _affine(norm, layer)
        if not torch.allclose(scale, torch.ones_like(scale), rtol=0, atol=1e-6):
            raise DataError(f"{norm_name}: not folded: it scales its input by up to {float(scale.abs().max()):.6g}")
        bias = torch.empty_like(shift, dtype=layer.weight.dtype).copy_(shift)
        layer.bias = nn.Parameter(bias, requires_grad=layer.weight.requires_grad)
        network.set_submodule(norm_name, _rest(norm))


def _modules(network: nn.Module, pairs: Sequence[Pair]) -> list[tuple[Any, Any]]:
    """Return BatchNorm and layer of each pair; DataError where they are something else."""
    modules = dict(network.named_modules())
    for norm, layer in pairs:
        if type(modules.get(norm)) not in _NORMS or type(modules.get(layer)) not in _AXES:
            raise DataError(f"{norm}, {layer}: not a BatchNorm and a layer of this network")
    return [(modules[norm], modules[layer]) for norm, layer in pairs]


def _affine(norm: Any, layer: Any) -> tuple[Tensor, Tensor]:
    """Return (C,) float64 scale and shift of what a BatchNorm does to its layer's output without the layer's bias."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    mean = norm.running_mean.double()
    if layer.bias is not None:
        mean = mean - layer.bias.double()
    shift = -mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias.double()


def _per_output(scale: Tensor, layer: Any) -> Tensor:
    """Return (C,) values, one for each output of a layer, in a shape that multiplies its weight."""
    if not isinstance(layer, nn.ConvTranspose2d):
        return scale.reshape(-1, *[1] * (layer.weight.ndim - 1))
    # (inputs, outputs of a group, kernel): the inputs of each group lie behind each other, and meet its outputs alone.
    by_group = scale.reshape(layer.groups, 1, -1).expand(-1, layer.in_channels // layer.groups, -1)
    return by_group.reshape(layer.in_channels, -1, 1, 1)


def _rest(norm: nn.Module) -> nn.Module:
    """Return what a BatchNorm does besides normalising: timm's dropout and activation, or nothing."""
    parts = [part for name in ("drop", "act") if (part := getattr(norm, name, None)) is not None]
    parts = [part for part in parts if not isinstance(part, nn.Identity)]
    rest = parts[0] if len(parts) == 1 else nn.Sequential(*parts) if parts else nn.Identity()
    return rest.train(norm.training)


def _has_statistics(module: nn.Module) -> bool:
    return getattr(module, "running_var", None) is not None and getattr(module, "eps", math.inf) < 1


def _candidates(network: nn.Module, predicate: Callable[[nn.Module], bool]) -> Iterator[tuple[nn.Module, str]]:
    """Yield modules that satisfy `predicate` with their names, if they occur once, have no hooks and share no tensor."""
    places = Counter(module for _, module in network.named_modules(remove_duplicate=False))
    tensors = [*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False)]
    owners = Counter(_storage(tensor) for _, tensor in tensors)
    for name, module in network.named_modules():
        hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
        if not predicate(module) or hooked or places[module] > 1:
            continue
        if all(owners[_storage(tensor)] == 1 for tensor in _own(module)):
            yield module, name


def _own(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


def _storage(tensor: Tensor) -> int:
    """Return an identity of a tensor's storage, shared with its views only, while it is alive."""
    return tensor.untyped_storage().data_ptr()


class _Observation(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches a forward pass: what layers put out, what BatchNorms get, and every operation that uses one of these.

    The outputs are kept until the end, so that no other tensor is given their memory.
    """

    def __init__(self, layers: Mapping[nn.Module, str], norms: Mapping[nn.Module, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names = {**layers, **norms}
        self._calls: Counter[nn.Module] = Counter()
        self._running: list[nn.Module] = []
        self._outputs: dict[nn.Module, Tensor] = {}
        self._got: dict[nn.Module, Tensor] = {}  # in the order of the calls
        self._layer_of: dict[int, nn.Module] = {}
        self._owner_of = {_storage(tensor): module for module in self._names for tensor in _own(module)}
        self._users: dict[nn.Module, list[nn.Module | None]] = {layer: [] for layer in layers}
        self._misused: set[nn.Module] = set()
        self._hooks = [module.register_forward_pre_hook(self._enter) for module in self._names]
        self._hooks += [module.register_forward_hook(self._leave) for module in self._names]

    def close(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()

    def pairs(self, outputs: Any) -> list[Pair]:
        """Return what can be folded, given what the network has put out."""
        put_out = {_storage(tensor) for tensor in _tensors(outputs)}
        found = []
        for norm, tensor in self._got.items():
            layer = self._layer_of.get(_storage(tensor))
            if layer is None or self._users[layer] != [norm] or _storage(tensor) in put_out:
                continue
            whole = _is_whole(tensor, self._outputs[layer], layer)
            alone = self._calls[layer] == self._calls[norm] == 1 and not {layer, norm} & self._misused
            if whole and alone:
                found.append((self._names[norm], self._names[layer]))
        return found

    def _enter(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._running.append(module)
        self._calls[module] += 1
        if type(module) in _NORMS and inputs:
            self._got[module] = inputs[0]

    def _leave(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        self._running.pop()
        if type(module) in _AXES:
            self._outputs[module] = output
            self._layer_of[_storage(output)] = module

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        running = self._running[-1] if self._running else None
        for tensor in _tensors((args, kwargs)):
            memory = _storage(tensor)
            if (layer := self._layer_of.get(memory)) is not None and func is not _VIEW:
                self._users[layer].append(running)
            if (owner := self._owner_of.get(memory)) is not None and owner is not running:
                self._misused.add(owner)
        return func(*args, **(kwargs or {}))


def _is_whole(tensor: Tensor, output: Tensor, layer: nn.Module) -> bool:
    """Whether a BatchNorm's input is all that a layer put out, each of its channels one of the layer's."""
    if tensor.ndim != _AXES[type(layer)]:
        return False
    if not isinstance(layer, nn.Linear):
        return tensor is output
    rows = output.is_contiguous() and tensor.is_contiguous() and tensor.numel() == output.numel()
    return rows and tensor.shape[1] == layer.out_features


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in what an operation takes or a network gives."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
