"""From a model config to a network that is ready to train, and back from a checkpoint's tensors to the same network."""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import dataclass, replace
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from torch import nn

from choral.config import ModelConfig
from choral.core.errors import ConfigError, did_you_mean
from choral.models.pretrained_weights import load_pretrained


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation a channel (RGB) of what the pretrained weights expect, in units of [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def build_model(config: ModelConfig, num_classes: int, image_size: int, seed: int) -> nn.Module:
    """Return a timm network with pretrained weights and a new head, on the CPU.

    Args:
        config: name, weights, dropout.
        num_classes: outputs of the new head.
        image_size: side in pixels; networks with a fixed input size are built for it.
        seed: of the new head, and of everything with `weights: none`.

    Raises:
        ConfigError: a name that timm does not know, weights that cannot be had or do not fit.
    """
    check_name(config.name)
    torch.manual_seed(seed)
    model = load_pretrained(config, _create(config, image_size))
    if num_classes != getattr(model, "num_classes", None):
        torch.manual_seed(seed)  # the head does not depend on how much randomness the body took
        model.reset_classifier(num_classes)  # type: ignore[operator]
    return _in_memory_format(model, config)


def restore_model(
    config: ModelConfig, num_classes: int, image_size: int, tensors: dict[str, torch.Tensor]
) -> nn.Module:
    """Return the network that `build_model` made, with the tensors of a checkpoint instead of pretrained weights."""
    check_name(config.name)
    model = _create(config, image_size, num_classes)
    model.load_state_dict(tensors)
    return _in_memory_format(model, config)


def check_name(name: str) -> None:
    """Raise ConfigError, with the nearest names, unless timm knows the model (a tag such as `.in1k` may follow)."""
    if not timm.is_model(name.partition(".")[0]):
        hint = did_you_mean(name, timm.list_models(), count=3)
        raise ConfigError(f"model.name: timm has no model '{name}'.{hint} All names: timm.list_models().")


def drop_rates_of(config: ModelConfig, image_size: int) -> list[str]:
    """Return those of drop_rate and drop_path_rate that the network takes; nothing is computed or kept in memory."""
    bare = replace(config, weights="none", drop_rate=0.0, drop_path_rate=0.0)
    trials = {"drop_rate": replace(bare, drop_rate=0.1), "drop_path_rate": replace(bare, drop_path_rate=0.1)}
    taken = []
    for name, trial in trials.items():
        with contextlib.suppress(ConfigError), torch.device("meta"):
            _create(trial, image_size)
            taken.append(name)
    return taken


def normalization_of(model: nn.Module) -> Normalization:
    """Return what timm records about the inputs of the model's pretrained weights."""
    data: dict[str, Any] = resolve_model_data_config(model)
    return Normalization(mean=tuple(data["mean"]), std=tuple(data["std"]))


def _create(config: ModelConfig, image_size: int, num_classes: int | None = None) -> nn.Module:
    rates = {"drop_rate": config.drop_rate, "drop_path_rate": config.drop_path_rate}
    arguments: dict[str, Any] = {name: rate for name, rate in rates.items() if rate}  # not every network takes both
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    fixed = timm.get_pretrained_cfg_value(config.name, "fixed_input_size")
    if fixed:
        arguments["img_size"] = image_size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # deprecated aliases of names are timm's affair
        try:
            model = timm.create_model(
                config.name, pretrained=config.weights == "hub" and num_classes is None, **arguments
            )
        except TypeError as error:
            raise ConfigError(f"model: {config.name} does not take these settings: {error}") from error
        except (OSError, RuntimeError) as error:
            if config.weights != "hub":
                raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigError(
                f"model.weights: hub: no weights of {config.name} could be fetched ({reason}). "
                "Without internet use package:MODULE, file:PATH or run:FOLDER"
            ) from error
    assert isinstance(model, nn.Module)
    return model


def _in_memory_format(model: nn.Module, config: ModelConfig) -> nn.Module:
    if not config.channels_last:
        return model
    return model.to(memory_format=torch.channels_last)
