"""BatchNorm folded into the layers before it: the same outputs, in networks of many kinds, and all else left alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d, Conv2dSame, FrozenBatchNormAct2d, StdConv2d
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from choral.core.errors import DataError
from choral.deploy.bundle.fuse import find_foldable, fold, strip


def with_random_statistics(network: nn.Module, seed: int = 0) -> nn.Module:
    """Return the network as if trained: no BatchNorm of it is near the identity, and some scales are negative."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if getattr(module, "running_var", None) is None:
            continue
        draw = [torch.rand(module.running_var.shape, generator=generator) for _ in range(4)]
        with torch.no_grad():
            module.running_mean.copy_(draw[0] - 0.5)
            module.running_var.copy_(0.5 + draw[1])
            if module.weight is not None:
                module.weight.copy_(1.2 - 1.5 * draw[2])
                module.bias.copy_(draw[3] - 0.5)
    return network.eval()


def made(name: str, **arguments: object) -> nn.Module:
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=5, **arguments)
    return with_random_statistics(network)


@pytest.mark.parametrize(
    ("name", "norms", "folded"),
    [
        ("test_resnet", 15, 15),
        ("test_efficientnet", 13, 13),
        ("tf_efficientnet_lite0", 49, 49),  # Conv2dSame, as of TensorFlow
        ("mobilenetv3_small_050", 34, 34),
        ("repvgg_a0", 61, 44),  # three branches, of which the identity has no layer
        ("resnetv2_18", 17, 8),  # norm before layer: only the norms between two layers of a block
        ("levit_128s", 52, 50),  # linear layers of tokens; the two heads have their norm before
        ("test_convnext", 0, 0),
        ("test_nfnet", 0, 0),
        ("test_vit", 0, 0),
    ],
)
def test_networks_say_the_same_folded_and_stripped(name: str, norms: int, folded: int) -> None:
    network = made(name)
    fixed = timm.get_pretrained_cfg_value(name, "fixed_input_size")
    size = timm.get_pretrained_cfg_value(name, "input_size")[-1] if fixed else 64
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    assert sum(getattr(module, "running_var", None) is not None for module in network.modules()) == norms
    with torch.no_grad():
        before = network(images)
        pairs = find_foldable(network, images[:1])
        assert len(pairs) == folded
        fold(network, pairs)
        plain = timm.create_model(name, num_classes=5).eval()
        plain.load_state_dict(network.state_dict())
        after_fold = plain(images)
        strip(network, pairs)
        after_strip = network(images)
    assert sum(getattr(module, "running_var", None) is not None for module in network.modules()) == norms - folded
    for after in (after_fold, after_strip):
        torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5 * float(before.abs().max()))
        assert (after.softmax(1) - before.softmax(1)).abs().max() <= 1e-5


class Chain(nn.Module):
    """A layer and a BatchNorm, with a way to use them."""

    def __init__(self, layer: nn.Module, norm: nn.Module, way: Callable[[Chain, Tensor], object] | None = None) -> None:
        super().__init__()
        self.layer, self.norm, self.way = layer, norm, way

    def forward(self, images: Tensor) -> object:
        return self.norm(self.layer(images)) if self.way is None else self.way(self, images)


IMAGES = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(2))
ROWS = torch.randn(5, 4, generator=torch.Generator().manual_seed(3))
SIGNALS = torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize(
    ("layer", "norm", "inputs"),
    [
        (nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), IMAGES),
        (nn.Conv2d(4, 6, 3, groups=2, padding=1, padding_mode="reflect"), nn.BatchNorm2d(6), IMAGES),
        (Conv2dSame(4, 6, 3, stride=2), BatchNormAct2d(6, drop_layer=nn.Dropout), IMAGES),
        (nn.Conv2d(4, 6, 1), FrozenBatchNormAct2d(6, act_layer=nn.SiLU), IMAGES),
        (nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6, affine=False), IMAGES),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), nn.BatchNorm2d(6), IMAGES),
        (nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6), IMAGES),
        (nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6, eps=1e-3), SIGNALS),
        (nn.Linear(4, 6), nn.BatchNorm1d(6), ROWS),
    ],
    ids=["conv", "groups", "same", "frozen", "no_affine", "transposed", "transposed_groups", "conv1d", "linear"],
)
def test_layers_of_all_kinds(layer: nn.Module, norm: nn.Module, inputs: Tensor) -> None:
    network = with_random_statistics(Chain(layer, norm))
    names = {name: tensor.shape for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        before = network(inputs)
        assert find_foldable(network, inputs) == [("norm", "layer")]
        fold(network, [("norm", "layer")])
        once = [tensor.clone() for tensor in network.state_dict().values()]
        torch.testing.assert_close(network(inputs), before, rtol=1e-5, atol=1e-5)
        fold(network, [("norm", "layer")])
        torch.testing.assert_close(list(network.state_dict().values()), once, rtol=1e-6, atol=1e-6)
        assert {name: tensor.shape for name, tensor in network.state_dict().items()} == names
        strip(network, [("norm", "layer")])
        torch.testing.assert_close(network(inputs), before, rtol=1e-5, atol=1e-5)
    assert not hasattr(network.norm, "running_mean")


def _relu_in_place(chain: Chain, images: Tensor) -> Tensor:
    return chain.norm(chain.layer(images).relu_())


def _residual(chain: Chain, images: Tensor) -> Tensor:
    inside = chain.layer(images)
    return inside + chain.norm(inside)


def _twice(chain: Chain, images: Tensor) -> Tensor:
    return chain.norm(chain.layer(images)) + chain.layer(2 * images)


def _half(chain: Chain, images: Tensor) -> Tensor:
    return chain.norm(chain.layer(images)[:1])


def _also_returned(chain: Chain, images: Tensor) -> dict[str, list[Tensor]]:
    inside = chain.layer(images)
    return {"both": [inside, chain.norm(inside)]}


def _weight_used_elsewhere(chain: Chain, images: Tensor) -> Tensor:
    return chain.norm(chain.layer(images)) * chain.layer.weight.mean()


def _tied() -> Chain:
    chain = Chain(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    chain.other = nn.Conv2d(4, 4, 1)
    chain.other.weight = chain.layer.weight
    return chain


def _hooked() -> Chain:
    chain = Chain(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    chain.layer.register_forward_hook(lambda module, inputs, output: 2 * output)
    return chain


def _conv_and_norm(way: Callable[[Chain, Tensor], object]) -> Chain:
    return Chain(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), way)


LEFT_ALONE = {
    "activated in place": _conv_and_norm(_relu_in_place),
    "residual": _conv_and_norm(_residual),
    "called twice": _conv_and_norm(_twice),
    "half of the batch": _conv_and_norm(_half),
    "also returned": _conv_and_norm(_also_returned),
    "weight used elsewhere": _conv_and_norm(_weight_used_elsewhere),
    "weight standardised": Chain(StdConv2d(4, 4, 1), nn.BatchNorm2d(4)),
    "weight parametrised": Chain(weight_norm(nn.Conv2d(4, 4, 1)), nn.BatchNorm2d(4)),
    "statistics of the batch": Chain(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),
    "another norm": Chain(nn.Conv2d(4, 4, 1), nn.InstanceNorm2d(4, track_running_stats=True)),
    "pooled between": Chain(nn.Sequential(nn.Conv2d(4, 4, 1), nn.MaxPool2d(2)), nn.BatchNorm2d(4)),
    "tied": _tied(),
    "hooked": _hooked(),
}


@pytest.mark.parametrize("network", LEFT_ALONE.values(), ids=LEFT_ALONE)
def test_everything_else_is_left_alone(network: nn.Module) -> None:
    assert find_foldable(with_random_statistics(network), IMAGES) == []


def test_tokens_whose_channels_are_not_the_norms_are_left_alone() -> None:
    tokens = torch.randn(2, 3, 4)
    network = with_random_statistics(Chain(nn.Linear(4, 3), nn.BatchNorm1d(3)))
    assert network(tokens).shape == (2, 3, 3)
    assert find_foldable(network, tokens) == []


def test_looking_changes_nothing() -> None:
    network = made("test_resnet").train()
    network.layer1.eval()
    modes = [module.training for module in network.modules()]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert len(find_foldable(network, torch.randn(1, 3, 32, 32))) == 15
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_the_memory_format_stays() -> None:
    network = made("test_efficientnet").to(memory_format=torch.channels_last)
    pairs = find_foldable(network, torch.randn(1, 3, 32, 32))
    fold(network, pairs)
    strip(network, pairs)
    kernels = [module.weight for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    assert all(kernel.requires_grad for kernel in kernels)


def test_what_does_not_fit_is_refused() -> None:
    network = with_random_statistics(Chain(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
    with pytest.raises(DataError, match="norm: not folded"):
        strip(network, [("norm", "layer")])
    for pair in (("norm", "elsewhere"), ("layer", "norm")):
        with pytest.raises(DataError, match="not a BatchNorm and a layer of this network"):
            fold(network, [pair])
