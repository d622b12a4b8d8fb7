"""The schedule as a function of the step, parameter groups, and weight decay."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import pytest
import timm
import torch
from timm.models import group_parameters

from choral.config import TrainConfig
from choral.core.errors import ConfigError
from choral.models.finetuning import list_stages
from choral.training.optimizer import Schedule, build_optimizer
from choral.training.state import TrainState


def test_schedule_warms_up_and_decays_to_its_minimum() -> None:
    schedule = Schedule(lr=1.0, warmup_steps=4, total_steps=24, min_lr_ratio=0.1)
    rates = [schedule.lr_at(step) for step in range(24)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[14] == pytest.approx(0.55)  # half way down
    assert all(a > b for a, b in pairwise(rates[4:]))
    assert 0.1 < rates[-1] < 0.11


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (TrainConfig(epochs=2, warmup_epochs=0.5), (10, 5)),
        (TrainConfig(epochs=0.31, warmup_epochs=5), (3, 2)),
        (TrainConfig(epochs=1e-6), (1, 0)),
        (TrainConfig(steps=7, warmup_epochs=0), (7, 0)),
    ],
)
def test_epochs_become_steps(config: TrainConfig, expected: tuple[int, int]) -> None:
    schedule = Schedule.from_config(config, steps_per_epoch=10 if config.epochs != 2 else 5)
    assert (schedule.total_steps, schedule.warmup_steps) == (expected[0], expected[1] if config.epochs != 2 else 2)


def test_group_learning_rates_are_scaled() -> None:
    model = timm.create_model("test_resnet", num_classes=3)
    optimizer = build_optimizer(model, TrainConfig())
    optimizer.param_groups[0]["lr_scale"] = 0.5
    rate = Schedule(1e-2, 0, 10, 0.0).apply(optimizer, 0)
    assert [group["lr"] for group in optimizer.param_groups] == [rate / 2, *[rate] * (len(optimizer.param_groups) - 1)]


def test_linear_and_constant_schedules() -> None:
    linear, constant = (Schedule(1.0, 4, 24, 0.1, shape) for shape in ("linear", "constant"))
    assert [linear.lr_at(step) for step in (3, 4, 14, 23)] == pytest.approx([0.8, 1.0, 0.55, 0.145])
    assert [constant.lr_at(step) for step in (0, 4, 23)] == pytest.approx([0.2, 1.0, 1.0])


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_layer_decay_equals_a_plain_loop(name: str) -> None:
    """Ten steps of AdamW, compared with learning rates set by hand: 0.6 per layer, the head twice as fast."""
    torch.manual_seed(0)
    config = TrainConfig(lr=1e-2, layer_decay=0.6, head_lr_scale=2.0, weight_decay=0.1, warmup_epochs=0, steps=10)
    model = timm.create_model(name, num_classes=3)
    twin = copy.deepcopy(model)
    head = frozenset(list_stages(model)[-1])
    optimizer, schedule = build_optimizer(model, config, head), Schedule.from_config(config, 10)
    layers = group_parameters(twin, twin.group_matcher(coarse=False), reverse=True)
    depth = max(layers.values())
    assert depth > 3
    unmoved = {"pos_embed", "cls_token", "reg_token"} if name == "test_vit" else set()
    plain = []
    for key, parameter in twin.named_parameters():
        scale = 0.6 ** (depth - layers[key]) * (2.0 if key in head else 1.0)
        decay = 0.0 if parameter.ndim <= 1 or key in unmoved else 0.1
        plain.append({"params": [parameter], "scale": scale, "weight_decay": decay})
    twin_optimizer = torch.optim.AdamW(plain, lr=1e-2)
    images = torch.randn(4, 3, *model.pretrained_cfg["input_size"][1:])
    for step in range(10):
        schedule.apply(optimizer, step)
        for group in twin_optimizer.param_groups:
            group["lr"] = 1e-2 * 0.5 * (1 + math.cos(math.pi * step / 10)) * group["scale"]
        for network, own in ((model, optimizer), (twin, twin_optimizer)):
            own.zero_grad()
            network(images).square().mean().backward()
            own.step()
    for (key, value), expected in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")


def test_norms_and_biases_have_no_weight_decay() -> None:
    optimizer = build_optimizer(timm.create_model("test_resnet", num_classes=3), TrainConfig(weight_decay=0.3))
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.3 if parameter.ndim > 1 else 0.0)


@pytest.mark.parametrize(
    ("name", "key", "default", "other"),
    [
        ("adamw", "betas", (0.9, 0.999), (0.7, 0.999)),
        ("lion", "betas", (0.9, 0.99), (0.7, 0.99)),
        ("adan", "betas", (0.98, 0.92, 0.99), (0.7, 0.92, 0.99)),  # of its authors
        ("sgd", "momentum", 0.9, 0.7),
    ],
)
def test_momentum_reaches_every_optimizer(name: str, key: str, default: object, other: object) -> None:
    """Compared with the update of torch's AdamW with the same betas."""
    for momentum, expected in ((0.9, default), (0.7, other)):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        twin = copy.deepcopy(model)
        optimizer = build_optimizer(model, TrainConfig(optimizer=name, momentum=momentum, lr=0.1, weight_decay=0.0))
        assert all(group[key] == expected for group in optimizer.param_groups)
        if name != "adamw":
            continue
        plain = torch.optim.AdamW(twin.parameters(), lr=0.1, weight_decay=0.0, betas=(momentum, 0.999))
        for factor in (1.0, -2.0):
            for network, own in ((model, optimizer), (twin, plain)):
                own.zero_grad()
                (factor * network(torch.ones(1, 3))).sum().backward()
                own.step()
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_misspelt_optimizer_gets_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="no optimizer 'adamww'. Did you mean adamw"):
        build_optimizer(timm.create_model("test_resnet"), TrainConfig(optimizer="adamww"))


@pytest.mark.parametrize(
    ("every", "due"), [(2, [2, 4, 6, 7]), (2.5, [3, 5, 7]), (100, [7]), (0.3, [1, 2, 3, 4, 5, 6, 7])]
)
def test_is_due(every: float, due: list[int]) -> None:
    assert [step for step in range(1, 8) if TrainState(step=step).is_due(every, 7)] == due
