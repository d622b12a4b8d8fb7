"""Saves and loads the tensors of a checkpoint as safetensors and JSON, without pickle.

`choral.runs.checkpoints` manages the checkpoint directories.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from choral.runs.checkpoints import (
    MODEL_FILE,
    OPTIMIZER_FILE,
    read_checkpoint_state,
    verify_checkpoint,
    write_checkpoint,
)


@dataclass(frozen=True)
class OptimizerState:
    """The state of an optimizer by parameter name, so that it survives changes of the set of trained parameters."""

    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """State tensors by "PARAMETER:KEY"."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """JSON: `groups`, with parameter names, and `values`, the state that is not a tensor, by "PARAMETER:KEY"."""


def optimizer_state(optimizer: torch.optim.Optimizer, network: nn.Module) -> OptimizerState:
    """Return the state of an optimizer of parameters of `network`; tensors are not copied."""
    names = {parameter: name for name, parameter in network.named_parameters()}
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, Any] = {}
    groups = []
    for group in optimizer.param_groups:
        groups.append({**group, "params": [names[parameter] for parameter in group["params"]]})
        for parameter in group["params"]:
            for key, value in optimizer.state.get(parameter, {}).items():
                target: dict[str, Any] = tensors if isinstance(value, torch.Tensor) else values
                target[f"{names[parameter]}:{key}"] = value
    return OptimizerState(tensors, {"groups": groups, "values": values})


def restore_optimizer(optimizer: torch.optim.Optimizer, network: nn.Module, state: OptimizerState) -> None:
    """Load into an optimizer the state of the parameters that it shares with `state`, which has the same optimizer type.

    A parameter group keeps its learning rate and weight decay. Its other settings, such as the step counters of some
    optimizers, come from the group that its first shared parameter was in.
    """
    names = {parameter: name for name, parameter in network.named_parameters()}
    entries: dict[str, dict[str, Any]] = {}
    for full_name, value in (*state.tensors.items(), *state.settings.get("values", {}).items()):
        name, _, key = full_name.rpartition(":")
        entries.setdefault(name, {})[key] = value
    group_of = {name: group for group in state.settings.get("groups", ()) for name in group["params"]}
    restored: dict[int, dict[str, Any]] = {}
    groups: list[dict[str, Any]] = []
    number = 0
    for group in optimizer.param_groups:
        saved: dict[str, Any] = next((group_of[names[p]] for p in group["params"] if names[p] in group_of), {})
        kept = {key: value for key, value in saved.items() if key not in _NEW_GROUP_KEYS}
        indices = range(number, number + len(group["params"]))
        for index, parameter in zip(indices, group["params"], strict=True):
            entry = entries.get(names[parameter])
            if entry is not None:
                restored[index] = {key: _like(value, parameter) for key, value in entry.items()}
        groups.append({**group, **kept, "params": list(indices)})
        number = indices.stop
    optimizer.load_state_dict({"state": restored, "param_groups": groups})


_NEW_GROUP_KEYS = ("params", "lr", "lr_scale", "weight_decay")


def _like(value: Any, parameter: torch.Tensor) -> Any:
    """Return a copy in the memory format of the parameter.

    The format decides the order of summation, so a resumed run needs the same one as an uninterrupted run.
    """
    if not isinstance(value, torch.Tensor):
        return value
    if value.shape != parameter.shape:
        return value.clone()
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def save_tensors(
    folder: Path,
    step: int,
    weights: Mapping[str, Mapping[str, torch.Tensor]],
    optimizer: OptimizerState,
    meta: Mapping[str, Any],
    keep: int,
) -> None:
    """Write a checkpoint and delete all others but the newest `keep` and the best.

    Args:
        folder: the checkpoints directory of the run.
        step: optimizer steps made.
        weights: file name -> state dict of the network, not wrapped in DistributedDataParallel.
        optimizer: the result of `optimizer_state`; `OptimizerState()` if no optimizer was used.
        meta: further JSON for state.json.
        keep: at least 1.

    Raises:
        ChoralError: the disk is full or not writable; existing checkpoints stay intact.
    """
    files = {name: partial(_save, tensors) for name, tensors in weights.items()}
    files[OPTIMIZER_FILE] = partial(_save, optimizer.tensors)
    write_checkpoint(folder, step, files, {**meta, "optimizer": optimizer.settings}, keep)


def load_model_tensors(path: Path, weights: str = MODEL_FILE) -> dict[str, torch.Tensor]:
    """Verify a checkpoint and return the tensors of one of its weight files, on the CPU.

    Raises:
        ChoralError: the checkpoint is damaged.
    """
    verify_checkpoint(path)
    tensors: dict[str, torch.Tensor] = load_file(path / weights)
    return tensors


def load_optimizer(path: Path, optimizer: torch.optim.Optimizer, network: nn.Module) -> None:
    """Load the optimizer state of a verified checkpoint into `optimizer`, whose parameters belong to `network`."""
    restore_optimizer(
        optimizer, network, OptimizerState(load_file(path / OPTIMIZER_FILE), read_checkpoint_state(path)["optimizer"])
    )


def _save(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
