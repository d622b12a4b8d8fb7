"""Checkpoints: a folder that is complete or absent, in which nothing is ever unpickled.

    checkpoints/step-00000120/
      model.safetensors       parameters and buffers, by timm's names
      optimizer.safetensors   the optimizer's tensors, as "INDEX.NAME"
      state.json              step, best value, optimizer settings, and the SHA-256 of the two files
    checkpoints/best.json     which one is the best

A checkpoint is written aside, synced and renamed. Hashes are verified before anything is loaded; a damaged checkpoint is
passed over for the one before it, and said so. There is no random state: it is computed from the step.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from choral.errors import ChoralError
from choral.runfolder import read_json, write_json

_log = logging.getLogger(__name__)
_FILES = ("model.safetensors", "optimizer.safetensors")


@dataclass(frozen=True)
class TrainState:
    """Where a training run stands."""

    step: int = 0
    """Optimizer steps made."""
    best_step: int = -1
    best_value: float = float("-inf")
    """Of the metric that chooses the best checkpoint; higher is better."""
    seconds: float = 0.0
    """Spent training, over all starts of the run."""

    def advance(self, seconds: float) -> TrainState:
        """Return the state one step later."""
        return replace(self, step=self.step + 1, seconds=self.seconds + seconds)

    def is_due(self, every: float, total: int) -> bool:
        """Whether a multiple of `every` steps (fractions allowed) has just been reached, or the last step."""
        return self.step == total or int(self.step / every) > int((self.step - 1) / every)


def save_checkpoint(
    folder: Path, state: TrainState, model: dict[str, torch.Tensor], optimizer: dict[str, Any], keep: int, extra: dict[str, Any]
) -> None:
    """Write `step-N` under `folder` and delete all but the newest `keep` and the best.

    Args:
        folder: the run's checkpoints folder.
        state: goes into state.json.
        model: state dict of the unwrapped network.
        optimizer: `optimizer.state_dict()`.
        keep: at least 1.
        extra: further JSON content of state.json.

    Raises:
        ChoralError: the disk is full or not writable; the checkpoints that were there are intact.
    """
    final = folder / f"step-{state.step:08d}"
    aside = folder / f".{final.name}.{os.getpid()}"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for leftover in folder.glob(".step-*"):  # of a start that was killed while saving
            shutil.rmtree(leftover)
        aside.mkdir()
        tensors, settings = _split_optimizer(optimizer)
        for name, content in zip(_FILES, (model, tensors), strict=True):
            save_file({key: value.detach().cpu().contiguous() for key, value in content.items()}, aside / name)
            _sync(aside / name)
        hashes = {name: _sha256(aside / name) for name in _FILES}
        write_json(aside / "state.json", {"state": asdict(state), "sha256": hashes, "optimizer": settings, **extra})
        if final.exists():
            shutil.rmtree(final)
        aside.rename(final)
        _sync(folder)
    except (OSError, SafetensorError, ChoralError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise ChoralError(f"{final}: the checkpoint cannot be written ({error}); earlier checkpoints are intact") from error
    _retain(folder, keep)


def mark_best(folder: Path, step: int, metric: str, value: float) -> None:
    """Point best.json to the checkpoint of `step`."""
    write_json(folder / "best.json", {"checkpoint": f"step-{step:08d}", "step": step, "metric": metric, "value": value})


def newest_intact(folder: Path) -> Path | None:
    """Return the newest checkpoint whose hashes agree, or None; damaged ones are named in the log.

    Raises:
        ChoralError: there are checkpoints, but all are damaged; starting over silently would lose the run.
    """
    found = sorted(folder.glob("step-*"), reverse=True)
    for path in found:
        damage = _damage(path)
        if not damage:
            return path
        _log.warning("%s is damaged (%s): trying the checkpoint before it", path, damage)
    if found:
        raise ChoralError(f"{folder}: all {len(found)} checkpoints are damaged; delete the folder to start over")
    return None


def load_state(path: Path) -> TrainState:
    """Return where the run stood at a checkpoint."""
    return TrainState(**_read_meta(path)["state"])


def load_model_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the network's tensors of a checkpoint, verified, on the CPU.

    Raises:
        ChoralError: the checkpoint is damaged.
    """
    damage = _damage(path)
    if damage:
        raise ChoralError(f"{path}: the checkpoint is damaged ({damage})")
    return load_file(path / _FILES[0])


def load_optimizer(path: Path, optimizer: torch.optim.Optimizer) -> None:
    """Fill `optimizer`, built for the same parameters, with the tensors and settings of a checkpoint."""
    settings = _read_meta(path)["optimizer"]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in settings["values"].items()}
    for name, tensor in load_file(path / _FILES[1]).items():
        index, _, key = name.partition(".")
        like = parameters[int(index)]
        if tensor.shape == like.shape:  # keep the parameter's memory format, as an uninterrupted run would
            tensor = torch.empty_like(like, dtype=tensor.dtype, requires_grad=False).copy_(tensor)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": settings["param_groups"]})


def checkpoint_of(folder: Path, which: str) -> Path:
    """Return the path of the "best" or "last" checkpoint of a run.

    Raises:
        ChoralError: the run has none.
    """
    if which == "best":
        marker = read_json(folder / "best.json")
        if marker and (folder / str(marker["checkpoint"])).is_dir():
            return folder / str(marker["checkpoint"])
    elif (last := newest_intact(folder)) is not None:
        return last
    raise ChoralError(f"{folder}: no {which} checkpoint; train the run first")


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


def _read_meta(path: Path) -> dict[str, Any]:
    return json.loads((path / "state.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def _damage(path: Path) -> str:
    """Return what is wrong with a checkpoint, or ""."""
    meta = read_json(path / "state.json")
    if meta is None or "sha256" not in meta:
        return "state.json is missing or unreadable"
    for name, expected in meta["sha256"].items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if _sha256(path / name) != expected:
            return f"{name} has changed"
    return ""


def _retain(folder: Path, keep: int) -> None:
    best = (read_json(folder / "best.json") or {}).get("checkpoint")
    for path in sorted(folder.glob("step-*"), reverse=True)[keep:]:
        if path.name != best:
            shutil.rmtree(path, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
