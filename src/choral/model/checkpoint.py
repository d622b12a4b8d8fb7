"""The tensors of a checkpoint: safetensors and JSON, nothing that is ever unpickled. `choral.checkpoints` is the folder."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from choral.checkpoints import MODEL, OPTIMIZER, read_meta, verify, write_checkpoint


def save_tensors(
    folder: Path,
    step: int,
    model: dict[str, torch.Tensor],
    optimizer: dict[str, Any],
    meta: Mapping[str, Any],
    keep: int,
) -> None:
    """Write a checkpoint and delete all but the newest `keep` and the best.

    Args:
        folder: the run's checkpoints folder.
        step: optimizer steps made.
        model: state dict of the network, outside DistributedDataParallel.
        optimizer: `optimizer.state_dict()`.
        meta: further JSON content of state.json.
        keep: at least 1.

    Raises:
        ChoralError: the disk is full or not writable; the checkpoints that were there are intact.
    """
    tensors, settings = _split_optimizer(optimizer)
    files = {MODEL: partial(_save, model), OPTIMIZER: partial(_save, tensors)}
    write_checkpoint(folder, step, files, {**meta, "optimizer": settings}, keep)


def load_model_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the network's tensors of a checkpoint, verified, on the CPU.

    Raises:
        ChoralError: the checkpoint is damaged.
    """
    verify(path)
    tensors: dict[str, torch.Tensor] = load_file(path / MODEL)
    return tensors


def load_optimizer(path: Path, optimizer: torch.optim.Optimizer) -> None:
    """Fill `optimizer`, built for the same parameters, with the tensors and settings of a checkpoint."""
    settings = read_meta(path)["optimizer"]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in settings["values"].items()}
    for name, tensor in load_file(path / OPTIMIZER).items():
        index, _, key = name.partition(".")
        like = parameters[int(index)]
        if tensor.shape == like.shape:  # keep the parameter's memory format, as an uninterrupted run would
            tensor = torch.empty_like(like, dtype=tensor.dtype, requires_grad=False).copy_(tensor)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": settings["param_groups"]})


def _save(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


def _split_optimizer(state_dict: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    for index, entry in state_dict["state"].items():
        for key, value in entry.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{key}"] = value
            else:
                values.setdefault(str(index), {})[key] = value
    return tensors, {"values": values, "param_groups": state_dict["param_groups"]}
