"""Optimizers through timm's factory, and the learning-rate schedule as a pure function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from torch import nn

from choral.config import TrainConfig
from choral.errors import ConfigError, did_you_mean


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return timm's optimizer of the configured name; biases and norms are not decayed.

    Raises:
        ConfigError: a name that timm does not know, with the nearest ones.
    """
    check_optimizer(config.optimizer)
    optimizer = create_optimizer_v2(
        model, opt=config.optimizer, lr=config.lr, weight_decay=config.weight_decay, momentum=config.momentum
    )
    assert isinstance(optimizer, torch.optim.Optimizer)
    return optimizer


def check_optimizer(name: str) -> None:
    """Raise ConfigError, with the nearest names, unless timm knows the optimizer."""
    known = [str(option) for option in list_optimizers()]
    if name not in known:
        hint = did_you_mean(name, known, count=3)
        raise ConfigError(f"train.optimizer: timm has no optimizer '{name}'.{hint} All: timm.optim.list_optimizers().")


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then a cosine to `min_lr_ratio` (Loshchilov and Hutter 2017). Steps are optimizer steps."""

    lr: float
    warmup_steps: int
    total_steps: int
    min_lr_ratio: float

    @classmethod
    def of(cls, config: TrainConfig, steps_per_epoch: int) -> Schedule:
        """Return the schedule of a config for a split with so many steps an epoch."""
        total = config.steps or max(1, round(config.epochs * steps_per_epoch))
        warmup = min(round(config.warmup_epochs * steps_per_epoch), total - 1)
        assert config.lr != "auto", "a range test has to find the rate first"
        return cls(config.lr, warmup, total, config.min_lr_ratio)

    def at(self, step: int) -> float:
        """Return the learning rate of step 0 <= step < total_steps."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / (self.warmup_steps + 1)
        progress = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return self.lr * (self.min_lr_ratio + (1 - self.min_lr_ratio) * cosine)

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> float:
        """Set the rate of every parameter group (times its `lr_scale`) for `step` and return the unscaled rate."""
        rate = self.at(step)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        return rate
