"""Checkpoints on disk: what lies where, which one is intact, which is the best. Needs no torch.

    checkpoints/step-00000120/
      model.safetensors       parameters and buffers, by timm's names
      ema.safetensors         the same, averaged over the steps (train.ema_decay)
      soup.safetensors        the same, averaged over the ends of epochs (train.soup), in the last checkpoint
      optimizer.safetensors   the optimizer's tensors, as "PARAMETER:NAME"
      state.json              step, best value, classes, optimizer settings, and the SHA-256 of the other files; at the
                              end of a cycle of the schedule (train.cycles) also the number of the cycle, as "snapshot"
    checkpoints/best.json     which one is the best, and which of its weights

A checkpoint is a folder, complete or absent: written aside, synced and renamed. Hashes are verified before anything is
loaded; a damaged checkpoint is passed over for the one before it, and said so.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from choral.core.errors import ChoralError, DataError
from choral.core.files import sha256_of, sync
from choral.runs.run_dir import read_json, write_json

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
EMA, SOUP = "ema.safetensors", "soup.safetensors"
_log = logging.getLogger(__name__)


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return where the checkpoint of an optimizer step lies."""
    return folder / f"step-{step:08d}"


def step_of(path: Path) -> int:
    """Return the optimizer step of a checkpoint."""
    return int(path.name.rpartition("-")[2])


def write_checkpoint(
    folder: Path, step: int, files: Mapping[str, Callable[[Path], None]], meta: Mapping[str, Any], keep: int
) -> None:
    """Write the checkpoint of a step and delete all but the newest `keep`, the best, and snapshots.

    Args:
        folder: the run's checkpoints folder.
        step: names it.
        files: name to a function that writes the file at a path.
        meta: JSON content of state.json; the hashes of the files are added. With "snapshot", the checkpoint is never
            deleted.
        keep: at least 1.

    Raises:
        ChoralError: the disk is full or not writable; the checkpoints that were there are intact.
    """
    final = checkpoint_path(folder, step)
    aside = folder / f".{final.name}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".step-*"):  # of a start that was killed while saving
            shutil.rmtree(leftover)
        aside.mkdir()
        for name, write in files.items():
            write(aside / name)
            sync(aside / name)
        write_json(aside / STATE, {**meta, "sha256": {name: sha256_of(aside / name) for name in files}})
        if final.exists():
            shutil.rmtree(final)
        aside.rename(final)
        sync(folder)
    except Exception as error:  # writers of tensors have exceptions of their own
        shutil.rmtree(aside, ignore_errors=True)
        raise ChoralError(
            f"{final}: the checkpoint cannot be written ({error}); earlier checkpoints are intact"
        ) from error
    best = (read_json(folder / "best.json") or {}).get("checkpoint")
    for path in sorted(folder.glob("step-*"), reverse=True)[keep:]:
        if path.name != best and not _snapshot_number(path):
            shutil.rmtree(path, ignore_errors=True)


def mark_best(folder: Path, step: int, metric: str, value: float, weights: str = MODEL) -> None:
    """Point best.json to the checkpoint of `step`, and to the file of weights in it that is the best."""
    name = checkpoint_path(folder, step).name
    content = {"checkpoint": name, "weights": weights, "step": step, "metric": metric, "value": value}
    write_json(folder / "best.json", content)


def newest_intact(folder: Path) -> Path | None:
    """Return the newest checkpoint whose hashes agree, or None; damaged ones are named in the log.

    Raises:
        ChoralError: there are checkpoints, but all are damaged; starting over silently would lose the run.
    """
    found = sorted(folder.glob("step-*"), reverse=True)
    for path in found:
        try:
            verify(path)
        except ChoralError as error:
            _log.warning("%s: trying the checkpoint before it", error)
        else:
            return path
    if found:
        raise ChoralError(f"{folder}: all {len(found)} checkpoints are damaged; delete the folder to start over")
    return None


def checkpoint_of(folder: Path, which: str) -> Path:
    """Return the path of the "best" or "last" checkpoint of a run; its hashes are verified when it is loaded.

    Raises:
        ChoralError: the run has none.
    """
    found = sorted(folder.glob("step-*"))
    if which == "best":
        marker = read_json(folder / "best.json")
        found = [path for path in found if marker and path.name == marker.get("checkpoint")]
    if not found:
        raise ChoralError(f"{folder}: no {which} checkpoint; train the run first")
    return found[-1]


def weights_of(folder: Path, which: str) -> tuple[Path, str]:
    """Return the path of the "best" or "last" checkpoint of a run, and the name of the file whose weights count.

    Of the best checkpoint they are those that validation found best; of the last one the soup, if there is one, else the
    moving average, else the weights as they were trained.

    Raises:
        ChoralError: the run has none, or its state.json is damaged.
    """
    path = checkpoint_of(folder, which)
    if which == "best":
        marker = read_json(folder / "best.json") or {}
        return path, str(marker.get("weights", MODEL))
    held = read_meta(path)["sha256"]
    return path, next((name for name in (SOUP, EMA) if name in held), MODEL)


def snapshots_of(folder: Path) -> list[tuple[Path, str]]:
    """Return the checkpoints at the ends of cycles, in order, each with the name of the file whose weights count.

    They are the moving average, if there is one, else the weights as they were trained, as with the last checkpoint.
    """
    found = sorted(path for path in folder.glob("step-*") if _snapshot_number(path))
    return [(path, EMA if EMA in read_meta(path)["sha256"] else MODEL) for path in found]


def _snapshot_number(path: Path) -> int:
    """Return the number of the cycle that a checkpoint ended, counted from 1; 0: none."""
    return int((read_json(path / STATE) or {}).get("snapshot", 0))


def read_meta(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint's state.json.

    Raises:
        ChoralError: it is missing or damaged.
    """
    meta = read_json(path / STATE)
    if meta is None or not isinstance(meta.get("sha256"), dict):
        raise ChoralError(f"{path} is damaged ({STATE} is missing or unreadable)")
    return meta


def verify(path: Path) -> dict[str, Any]:
    """Compare the files of a checkpoint with their hashes and return the content of state.json.

    Raises:
        ChoralError: naming the file that is missing or has changed.
    """
    meta = read_meta(path)
    for name, expected in meta["sha256"].items():
        if not (path / name).is_file():
            raise ChoralError(f"{path} is damaged ({name} is missing)")
        if sha256_of(path / name) != expected:
            raise ChoralError(f"{path} is damaged ({name} has changed)")
    return meta


def check_same_data(packed: str, trained_on: str, what: Path) -> None:
    """Compare the fingerprint of packed data with that of the data a network was trained on.

    Raises:
        DataError: they differ: samples that were trained on may have become test samples.
    """
    if packed != trained_on:
        raise DataError(
            f"{what}: was trained on other data than those packed now (fingerprint {trained_on[:12]}, now {packed[:12]}); "
            "train again under another name, with run=NAME"
        )
