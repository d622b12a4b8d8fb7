"""The tensors of a checkpoint: safetensors and JSON, nothing that is ever unpickled. `choral.runs.checkpoints` is the folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from choral.runs.checkpoints import MODEL, OPTIMIZER, read_meta, verify, write_checkpoint


@dataclass(frozen=True)
class OptimizerState:
    """What an optimizer knows, by the names of the parameters, which stay when others join or leave it."""

    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """By "PARAMETER:KEY"."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """JSON: `groups`, each with the names of its parameters, and `values`, what is no tensor, as tensors are named."""


def optimizer_state(optimizer: torch.optim.Optimizer, network: nn.Module) -> OptimizerState:
    """Return the state of an optimizer over parameters of `network`; tensors are not copied."""
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
    """Give an optimizer what another one, of the same kind, knew of the parameters that both have.

    Settings of a group (counters that some optimizers keep there) are taken over from the group that its parameters
    were in, but for those that are the new group's own: its rates and its decay.
    """
    names = {parameter: name for name, parameter in network.named_parameters()}
    entries: dict[str, dict[str, Any]] = {}
    for full_name, value in (*state.tensors.items(), *state.settings.get("values", {}).items()):
        name, _, key = full_name.rpartition(":")
        entries.setdefault(name, {})[key] = value
    group_of = {name: group for group in state.settings.get("groups", ()) for name in group["params"]}
    known: dict[int, dict[str, Any]] = {}
    groups: list[dict[str, Any]] = []
    number = 0
    for group in optimizer.param_groups:
        before: dict[str, Any] = next((group_of[names[one]] for one in group["params"] if names[one] in group_of), {})
        kept = {key: value for key, value in before.items() if key not in _OF_THE_NEW_GROUP}
        indices = range(number, number + len(group["params"]))
        for index, parameter in zip(indices, group["params"], strict=True):
            entry = entries.get(names[parameter])
            if entry is not None:
                known[index] = {key: _like(value, parameter) for key, value in entry.items()}
        groups.append({**group, **kept, "params": list(indices)})
        number = indices.stop
    optimizer.load_state_dict({"state": known, "param_groups": groups})


_OF_THE_NEW_GROUP = ("params", "lr", "lr_scale", "weight_decay")


def _like(value: Any, parameter: torch.Tensor) -> Any:
    """Return a copy with the parameter's memory format, which decides the order of sums, as an uninterrupted run has."""
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
    """Write a checkpoint and delete all but the newest `keep` and the best.

    Args:
        folder: the run's checkpoints folder.
        step: optimizer steps made.
        weights: file name (MODEL, and what further weights there are) to a state dict of the network, outside
            DistributedDataParallel.
        optimizer: of `optimizer_state`; `OptimizerState()` where no optimizer was used.
        meta: further JSON content of state.json.
        keep: at least 1.

    Raises:
        ChoralError: the disk is full or not writable; the checkpoints that were there are intact.
    """
    files = {name: partial(_save, tensors) for name, tensors in weights.items()}
    files[OPTIMIZER] = partial(_save, optimizer.tensors)
    write_checkpoint(folder, step, files, {**meta, "optimizer": optimizer.settings}, keep)


def load_model_tensors(path: Path, weights: str = MODEL) -> dict[str, torch.Tensor]:
    """Return the network's tensors in a file of a checkpoint, verified, on the CPU.

    Raises:
        ChoralError: the checkpoint is damaged.
    """
    verify(path)
    tensors: dict[str, torch.Tensor] = load_file(path / weights)
    return tensors


def load_optimizer(path: Path, optimizer: torch.optim.Optimizer, network: nn.Module) -> None:
    """Fill `optimizer`, built for parameters of `network`, with what a checkpoint, verified before, knows of them."""
    restore_optimizer(optimizer, network, OptimizerState(load_file(path / OPTIMIZER), read_meta(path)["optimizer"]))


def _save(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
