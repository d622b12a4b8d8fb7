"""Optimizers through timm's factory, rates by layer, and the learning-rate schedule as a pure function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from timm.optim import create_optimizer_v2, list_optimizers, param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from choral.config import TrainConfig
from choral.core.errors import ConfigError, did_you_mean


def build_optimizer(model: nn.Module, config: TrainConfig, head: frozenset[str] = frozenset()) -> torch.optim.Optimizer:
    """Return timm's optimizer of the configured name over the parameters of `model` that take gradients.

    Biases, norms and what the network names itself are not decayed. Each group has a `lr_scale`, which `Schedule.apply`
    honours: `layer_decay` to the power of the layer's distance from the last one, by timm's fine grouping, times
    `head_lr_scale` in the head.

    Args:
        model: a timm network, not wrapped.
        config: of the optimizer.
        head: names of the head's parameters.

    Raises:
        ConfigError: a name that timm does not know, with the nearest ones.
    """
    check_optimizer(config.optimizer)
    optimizer = create_optimizer_v2(
        _groups(model, config, head),
        opt=config.optimizer,
        lr=1.0 if config.lr == "auto" else config.lr,  # set at every step by the schedule
        weight_decay=0.0,  # stands in the groups
        momentum=config.momentum,
    )
    assert isinstance(optimizer, torch.optim.Optimizer)
    _set_first_beta(optimizer, config.momentum)
    return optimizer


def _groups(model: nn.Module, config: TrainConfig, head: frozenset[str]) -> list[dict[str, Any]]:
    """Return parameter groups with `weight_decay` and `lr_scale`; those that the head shares with others are parted."""
    named: Any = getattr(model, "no_weight_decay", set)()
    if config.layer_decay < 1:
        groups = param_groups_layer_decay(
            model, config.weight_decay, no_weight_decay_list=named, layer_decay=config.layer_decay
        )
    else:
        groups = param_groups_weight_decay(model, config.weight_decay, no_weight_decay_list=named)
    in_head = {parameter for name, parameter in model.named_parameters() if name in head}
    parted: list[dict[str, Any]] = []
    for group in groups:
        scale = group.get("lr_scale", 1.0)
        for own, factor in ((False, 1.0), (True, config.head_lr_scale)):
            parameters = [one for one in group["params"] if (one in in_head) is own]
            if parameters:
                parted.append({**group, "params": parameters, "lr_scale": scale * factor})
    return parted


def _set_first_beta(optimizer: torch.optim.Optimizer, momentum: float) -> None:
    """Give `momentum` to optimizers of the Adam family; at its default each keeps the betas that its authors chose."""
    if momentum == TrainConfig.momentum:
        return
    for group in optimizer.param_groups:
        if isinstance(group.get("betas"), (tuple, list)) and "momentum" not in group:
            group["betas"] = (momentum, *group["betas"][1:])


def check_optimizer(name: str) -> None:
    """Raise ConfigError, with the nearest names, unless timm knows the optimizer."""
    known = [str(option) for option in list_optimizers()]
    if name not in known:
        hint = did_you_mean(name, known, count=3)
        raise ConfigError(f"train.optimizer: timm has no optimizer '{name}'.{hint} All: timm.optim.list_optimizers().")


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then `shape` down to `min_lr_ratio` (cosine: Loshchilov and Hutter 2017). Steps are optimizer steps.

    With several cycles, the steps are parted among them as equally as can be, and each goes through all of that, warm-up
    included (snapshot ensembles: Huang et al. 2017).
    """

    lr: float
    """At the end of the warm-up; not a number until a range test has found it (train.lr: auto)."""
    warmup_steps: int
    total_steps: int
    min_lr_ratio: float
    shape: Literal["cosine", "linear", "constant"] = "cosine"
    cycles: int = 1

    @classmethod
    def of(cls, config: TrainConfig, steps_per_epoch: int) -> Schedule:
        """Return the schedule of a config for a split with so many steps an epoch.

        Raises:
            ConfigError: more cycles than steps.
        """
        total = config.steps or max(1, round(config.epochs * steps_per_epoch))
        if config.cycles > total:
            raise ConfigError(f"train.cycles: {config.cycles} cycles do not fit into {total} steps; train longer")
        warmup = min(round(config.warmup_epochs * steps_per_epoch), total // config.cycles - 1)
        lr = math.nan if config.lr == "auto" else config.lr
        return cls(lr, warmup, total, config.min_lr_ratio, config.schedule, config.cycles)

    def end_of(self, cycle: int) -> int:
        """Return how many steps are made when cycle 1 <= cycle <= cycles ends; 0: none."""
        return self.total_steps * cycle // self.cycles

    def at(self, step: int) -> float:
        """Return the learning rate of step 0 <= step < total_steps."""
        assert not math.isnan(self.lr), "a range test has to find the rate first"
        cycle = ((step + 1) * self.cycles - 1) // self.total_steps  # the last one that begins at or before this step
        start = self.end_of(cycle)
        length, step = self.end_of(cycle + 1) - start, step - start
        if step < self.warmup_steps:
            return self.lr * (step + 1) / (self.warmup_steps + 1)
        progress = (step - self.warmup_steps) / max(1, length - self.warmup_steps)
        remaining = {
            "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
            "linear": 1 - progress,
            "constant": 1.0,
        }[self.shape]
        return self.lr * (self.min_lr_ratio + (1 - self.min_lr_ratio) * remaining)

    def snapshot_at(self, steps: int) -> int:
        """Return the number of the cycle, counted from 1, that ends when so many steps are made; 0: none, or one of one."""
        ends = [self.end_of(cycle) for cycle in range(1, self.cycles + 1)]
        return ends.index(steps) + 1 if self.cycles > 1 and steps in ends else 0

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> float:
        """Set the rate of every parameter group (times its `lr_scale`) for `step` and return the unscaled rate."""
        rate = self.at(step)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        return rate
