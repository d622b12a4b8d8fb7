"""Which part of a network is trained: what is frozen takes no gradient, and keeps its pretrained BatchNorm statistics."""

from __future__ import annotations

from timm.models import group_parameters
from torch import nn

from choral.config import FinetuneConfig
from choral.errors import ConfigError


def freeze(model: nn.Module, config: FinetuneConfig) -> nn.Module:
    """Freeze what the strategy leaves alone, and return the model; call it before the optimizer is built.

    Stages are timm's: `model.group_matcher(coarse=True)`, the head being the last one, which is always trained.

    Raises:
        ConfigError: the network has fewer stages than are to be trained.
    """
    if config.strategy == "full":
        return model
    groups = group_parameters(model, model.group_matcher(coarse=True))  # type: ignore[operator]
    stages = sorted(groups)[:-1]
    if config.trained_stages > len(stages):
        raise ConfigError(
            f"finetune.trained_stages: the network has {len(stages)} stages before its head, got {config.trained_stages}"
        )
    frozen = {name for stage in stages[: len(stages) - config.trained_stages] for name in groups[stage]}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return model


def train_mode(model: nn.Module) -> None:
    """Put the model into training mode, except for the BatchNorm layers that are frozen."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            parameters = list(module.parameters(recurse=False))
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                module.eval()
