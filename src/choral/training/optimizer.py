"""Optimizers from timm's factory, layer-wise learning rates, and the schedule as a pure function of the step."""

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
    """Build timm's optimizer of the configured name for the parameters of `model` that require gradients.

    Weight decay skips biases, norms, and what the model lists in `no_weight_decay`. Each parameter group has an
    `lr_scale`, by which `Schedule.apply` multiplies the learning rate: `layer_decay` to the power of the layer's distance
    from the last one, by timm's fine grouping, times `head_lr_scale` in the head.

    Args:
        model: a timm model, not wrapped.
        config: of the optimizer.
        head: names of the head's parameters.

    Raises:
        ConfigError: timm has no optimizer of that name; the message lists the nearest names.
    """
    check_optimizer(config.optimizer)
    optimizer = create_optimizer_v2(
        _groups(model, config, head),
        opt=config.optimizer,
        lr=1.0 if config.lr == "auto" else config.lr,  # the schedule sets it at every step
        weight_decay=0.0,  # set in the groups
        momentum=config.momentum,
    )
    assert isinstance(optimizer, torch.optim.Optimizer)
    _set_first_beta(optimizer, config.momentum)
    return optimizer


def _groups(model: nn.Module, config: TrainConfig, head: frozenset[str]) -> list[dict[str, Any]]:
    """Return parameter groups with `weight_decay` and `lr_scale`; no group holds both head and other parameters."""
    undecayed: Any = getattr(model, "no_weight_decay", set)()
    if config.layer_decay < 1:
        groups = param_groups_layer_decay(
            model, config.weight_decay, no_weight_decay_list=undecayed, layer_decay=config.layer_decay
        )
    else:
        groups = param_groups_weight_decay(model, config.weight_decay, no_weight_decay_list=undecayed)
    in_head = {parameter for name, parameter in model.named_parameters() if name in head}
    split_groups: list[dict[str, Any]] = []
    for group in groups:
        scale = group.get("lr_scale", 1.0)
        for is_head, factor in ((False, 1.0), (True, config.head_lr_scale)):
            parameters = [one for one in group["params"] if (one in in_head) is is_head]
            if parameters:
                split_groups.append({**group, "params": parameters, "lr_scale": scale * factor})
    return split_groups


def _set_first_beta(optimizer: torch.optim.Optimizer, momentum: float) -> None:
    """Set beta1 of Adam-like optimizers to `momentum`; at the default value each optimizer keeps its own betas."""
    if momentum == TrainConfig.model_fields["momentum"].default:
        return
    for group in optimizer.param_groups:
        if isinstance(group.get("betas"), (tuple, list)) and "momentum" not in group:
            group["betas"] = (momentum, *group["betas"][1:])


def check_optimizer(name: str) -> None:
    """Raise ConfigError with the nearest names if timm has no optimizer of this name."""
    available = [str(option) for option in list_optimizers()]
    if name not in available:
        hint = did_you_mean(name, available, count=3)
        raise ConfigError(f"train.optimizer: timm has no optimizer '{name}'.{hint} All: timm.optim.list_optimizers().")


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then decay of the given `shape` to `min_lr_ratio` (cosine: Loshchilov and Hutter 2017).

    Steps are optimizer steps. With several cycles, each takes an equal share of the steps (to one step) and has its own
    warm-up and decay (snapshot ensembles: Huang et al. 2017).
    """

    lr: float
    """Peak learning rate, at the end of the warm-up; NaN until the range test has found it (train.lr: auto)."""
    warmup_steps: int
    total_steps: int
    min_lr_ratio: float
    shape: Literal["cosine", "linear", "constant"] = "cosine"
    cycles: int = 1

    @classmethod
    def from_config(cls, config: TrainConfig, steps_per_epoch: int) -> Schedule:
        """Return the schedule of a config.

        Args:
            config: epochs or steps, rate, warm-up, shape, cycles.
            steps_per_epoch: of the training split.

        Raises:
            ConfigError: there are more cycles than steps.
        """
        total = config.steps or max(1, round(config.epochs * steps_per_epoch))
        if config.cycles > total:
            raise ConfigError(f"train.cycles: {config.cycles} cycles do not fit into {total} steps; train longer")
        warmup = min(round(config.warmup_epochs * steps_per_epoch), total // config.cycles - 1)
        lr = math.nan if config.lr == "auto" else config.lr
        return cls(lr, warmup, total, config.min_lr_ratio, config.schedule, config.cycles)

    def cycle_end(self, cycle: int) -> int:
        """Return the number of steps made by the end of a cycle, counted from 1; 0 for cycle 0."""
        return self.total_steps * cycle // self.cycles

    def lr_at(self, step: int) -> float:
        """Return the learning rate of step 0 <= step < total_steps."""
        assert not math.isnan(self.lr), "the range test must run first"
        cycle = ((step + 1) * self.cycles - 1) // self.total_steps  # the last cycle that starts at or before this step
        start = self.cycle_end(cycle)
        length, step = self.cycle_end(cycle + 1) - start, step - start
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
        """Return the number of the cycle (from 1) that ends after `steps` steps; 0: none does, or there is only one."""
        ends = [self.cycle_end(cycle) for cycle in range(1, self.cycles + 1)]
        return ends.index(steps) + 1 if self.cycles > 1 and steps in ends else 0

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> float:
        """Set the learning rate of every parameter group for `step`, times its `lr_scale`; return the unscaled rate."""
        rate = self.lr_at(step)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        return rate
