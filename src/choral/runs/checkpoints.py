"""Checkpoints on disk: paths, writing, verification, retention. Needs no torch.

    checkpoints/step-00000120/
      model.safetensors       parameters and buffers, with timm's names
      ema.safetensors         the same, averaged over the steps (train.ema_decay)
      soup.safetensors        the same, averaged over the ends of epochs (train.soup); only in the last checkpoint
      optimizer.safetensors   the optimizer's tensors, as "PARAMETER:NAME"
      state.json              step, best value, classes, optimizer settings, and the SHA-256 of the other files; at the
                              end of a cycle of the schedule (train.cycles) also the number of the cycle, as "snapshot"
    checkpoints/best.json     the best checkpoint, and which of its weights are the best

A checkpoint is a folder that is either complete or missing: written to a temporary folder, synced and renamed. Hashes are
verified before anything is loaded. A damaged checkpoint is logged, and the one before it is used.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from choral.core.errors import ChoralError, DataError
from choral.core.files import compute_sha256, fsync_path
from choral.runs.run_dir import read_json, write_json

MODEL_FILE, OPTIMIZER_FILE, STATE_FILE = "model.safetensors", "optimizer.safetensors", "state.json"
EMA_FILE, SOUP_FILE = "ema.safetensors", "soup.safetensors"
_log = logging.getLogger(__name__)


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the path of the checkpoint of an optimizer step."""
    return folder / f"step-{step:08d}"


def step_from_path(path: Path) -> int:
    """Return the optimizer step of a checkpoint from its path."""
    return int(path.name.rpartition("-")[2])


def write_checkpoint(
    folder: Path, step: int, files: Mapping[str, Callable[[Path], None]], meta: Mapping[str, Any], keep: int
) -> None:
    """Write the checkpoint of a step; then delete older ones except the newest `keep`, the best, and snapshots.

    Args:
        folder: the run's checkpoints folder.
        step: optimizer step, which names the checkpoint.
        files: by filename, a function that writes the file to a path.
        meta: JSON content of state.json; the hashes of the files are added. A checkpoint with the key "snapshot" is never
            deleted.
        keep: at least 1.

    Raises:
        ChoralError: the checkpoint cannot be written; earlier checkpoints are intact.
    """
    final = checkpoint_path(folder, step)
    temporary = folder / f".{final.name}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".step-*"):  # from a process that was killed while saving
            shutil.rmtree(leftover)
        temporary.mkdir()
        for name, write in files.items():
            write(temporary / name)
            fsync_path(temporary / name)
        write_json(
            temporary / STATE_FILE, {**meta, "sha256": {name: compute_sha256(temporary / name) for name in files}}
        )
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        fsync_path(folder)
    except Exception as error:  # tensor writers raise exceptions of their own
        shutil.rmtree(temporary, ignore_errors=True)
        raise ChoralError(
            f"{final}: the checkpoint cannot be written ({error}); earlier checkpoints are intact"
        ) from error
    best = (read_json(folder / "best.json") or {}).get("checkpoint")
    for path in sorted(folder.glob("step-*"), reverse=True)[keep:]:
        if path.name != best and not _snapshot_number(path):
            shutil.rmtree(path, ignore_errors=True)


def mark_best(folder: Path, step: int, metric: str, value: float, weights: str = MODEL_FILE) -> None:
    """Write best.json: the checkpoint of `step` is the best, with the weights in its file `weights`."""
    name = checkpoint_path(folder, step).name
    content = {"checkpoint": name, "weights": weights, "step": step, "metric": metric, "value": value}
    write_json(folder / "best.json", content)


def find_latest_intact(folder: Path) -> Path | None:
    """Return the newest intact checkpoint, or None if there are no checkpoints; log the damaged ones.

    Raises:
        ChoralError: all checkpoints are damaged; starting over silently would lose the run.
    """
    checkpoints = sorted(folder.glob("step-*"), reverse=True)
    for path in checkpoints:
        try:
            verify_checkpoint(path)
        except ChoralError as error:
            _log.warning("%s: trying the checkpoint before it", error)
        else:
            return path
    if checkpoints:
        raise ChoralError(f"{folder}: all {len(checkpoints)} checkpoints are damaged; delete the folder to start over")
    return None


def find_checkpoint(folder: Path, which: str) -> Path:
    """Return the path of the "best" or "last" checkpoint of a run, without verifying it.

    Raises:
        ChoralError: the run has none.
    """
    checkpoints = sorted(folder.glob("step-*"))
    if which == "best":
        marker = read_json(folder / "best.json")
        checkpoints = [path for path in checkpoints if marker and path.name == marker.get("checkpoint")]
    if not checkpoints:
        raise ChoralError(f"{folder}: no {which} checkpoint; train the run first")
    return checkpoints[-1]


def find_weights(folder: Path, which: str) -> tuple[Path, str]:
    """Return the path of the "best" or "last" checkpoint of a run, and the filename of the weights to use.

    For the best checkpoint these are the weights with the best validation value; for the last one the soup if there is
    one, else the moving average, else the trained weights.

    Raises:
        ChoralError: the run has none, or its state.json is damaged.
    """
    path = find_checkpoint(folder, which)
    if which == "best":
        marker = read_json(folder / "best.json") or {}
        return path, str(marker.get("weights", MODEL_FILE))
    hashes = read_checkpoint_state(path)["sha256"]
    return path, next((name for name in (SOUP_FILE, EMA_FILE) if name in hashes), MODEL_FILE)


def find_snapshots(folder: Path) -> list[tuple[Path, str]]:
    """Return the checkpoints at the ends of cycles, in order, each with the filename of the weights to use.

    These are the moving average if there is one, else the trained weights.
    """
    checkpoints = sorted(path for path in folder.glob("step-*") if _snapshot_number(path))
    return [
        (path, EMA_FILE if EMA_FILE in read_checkpoint_state(path)["sha256"] else MODEL_FILE) for path in checkpoints
    ]


def _snapshot_number(path: Path) -> int:
    """Return the number of the cycle, from 1, at whose end a checkpoint was written; 0 if it is not a snapshot."""
    return int((read_json(path / STATE_FILE) or {}).get("snapshot", 0))


def read_checkpoint_state(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint's state.json.

    Raises:
        ChoralError: it is missing or damaged.
    """
    meta = read_json(path / STATE_FILE)
    if meta is None or not isinstance(meta.get("sha256"), dict):
        raise ChoralError(f"{path} is damaged ({STATE_FILE} is missing or unreadable)")
    return meta


def verify_checkpoint(path: Path) -> dict[str, Any]:
    """Compare the files of a checkpoint with their hashes, and return the content of state.json.

    Raises:
        ChoralError: a file is missing or has changed.
    """
    meta = read_checkpoint_state(path)
    for name, expected in meta["sha256"].items():
        if not (path / name).is_file():
            raise ChoralError(f"{path} is damaged ({name} is missing)")
        if compute_sha256(path / name) != expected:
            raise ChoralError(f"{path} is damaged ({name} has changed)")
    return meta


def check_same_data(packed: str, trained_on: str, what: Path) -> None:
    """Raise DataError unless the fingerprint of the packed data is that of the data a model was trained on.

    After repacking, samples of the training split may have become test samples.
    """
    if packed != trained_on:
        raise DataError(
            f"{what}: was trained on different data (fingerprint {trained_on[:12]}, now {packed[:12]}); "
            "train again under another name, with run=NAME"
        )
