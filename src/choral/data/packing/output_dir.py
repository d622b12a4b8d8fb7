"""The output directory of a pack: makes packing resumable and never overwrites files that choral did not write.

While packing, OUT/.packing holds plan.json (what is being packed), a record of each finished shard, unfinished shards
and a lock. `dataset.json` is written last; then .packing is removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from choral.core.errors import ConfigError, DataError
from choral.core.files import write_atomic
from choral.data.shards.index import DATASET_FILE, SPLITS, Dataset

WORK_DIR = ".packing"
_PLAN_FILE = "plan.json"


def open_if_complete(out: Path, plan_hash: str, force: bool) -> Dataset | None:
    """Return the data set in `out` if it is complete and has the same plan hash; None if there is work to do.

    Raises:
        ConfigError: `out` holds a different data set, or files that choral did not write.
        DataError: `out` holds this data set, but shards are missing.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file, expected a directory to pack into")
    if (out / DATASET_FILE).is_file():
        if force:
            return None
        dataset = Dataset.open(out)
        if dataset.plan_hash != plan_hash:
            raise ConfigError(
                f"{out}: already holds {dataset.name!r}, packed from different data or with different options: choose "
                "another directory, or replace it with --force"
            )
        dataset.check_files()
        return dataset
    if out.is_dir() and not (out / WORK_DIR).is_dir() and (foreign := _first_visible(out)):
        raise ConfigError(f"{out}: is not empty ({foreign!r} was not packed by choral): choose another directory")
    return None


class OutputDir:
    """An output directory that this process has locked; created by `lock_output_dir`."""

    def __init__(self, folder: Path, state: dict[str, Any]) -> None:
        self.folder = folder
        self.work = folder / WORK_DIR
        self._state = state

    def read_record(self, shard: str) -> dict[str, Any] | None:
        """Return the record of a finished shard, or None if the shard is still to be written."""
        try:
            record: dict[str, Any] = json.loads((self.work / f"{shard}.json").read_bytes())
            complete = (self.folder / f"{shard}.tar").stat().st_size == record["bytes"]
        except (OSError, ValueError, KeyError):
            return None
        return record if complete else None

    def finalize(self, dataset: Dataset) -> None:
        """Write the description, which marks the directory as complete, and remove the working files."""
        dataset.save()
        shutil.rmtree(self.work)

    def discard(self) -> None:
        """Remove everything that was written, and the directory itself if this pack created it."""
        _remove(self.folder, self._state["files"])
        shutil.rmtree(self.work)
        if self._state["created"]:
            with contextlib.suppress(OSError):  # other files have appeared meanwhile
                self.folder.rmdir()


@contextlib.contextmanager
def lock_output_dir(out: Path, plan_hash: str, shards: Sequence[str], force: bool) -> Iterator[OutputDir]:
    """Lock `out` for a pack; finished shards of an interrupted pack with the same plan hash are kept.

    Raises:
        ConfigError: another process is packing into it, or, without `force`, it holds an unfinished pack with a
            different plan hash.
    """
    created = not out.exists()
    work = out / WORK_DIR
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"{out}: another process is packing into it: wait until it has finished") from None
        before = _read_state(work)
        if before is not None and before["plan"] != plan_hash and not force:
            raise ConfigError(
                f"{out}: holds an unfinished pack of different data or options: choose another directory, or replace it "
                "with --force"
            )
        keep = before is not None and before["plan"] == plan_hash and not force
        if not keep:
            _clear(out, before)
        files = [f"{shard}.tar" for shard in shards] + [f"{split}.arrow" for split in SPLITS]
        state = {"plan": plan_hash, "files": files, "created": created or bool(before and before["created"])}
        write_atomic(work / _PLAN_FILE, json.dumps(state).encode())
        for leftover in work.glob("*.tmp"):
            leftover.unlink()
        yield OutputDir(out, state)


def _clear(out: Path, before: dict[str, Any] | None) -> None:
    """Remove what an earlier pack wrote into the directory, and nothing else."""
    names = list(before["files"]) if before else []
    if (out / DATASET_FILE).is_file():
        with contextlib.suppress(DataError):  # damaged: its shards are unknown, and are overwritten or left
            dataset = Dataset.open(out)
            names += [shard.path for shard in dataset.shards] + [split.index for split in dataset.splits.values()]
    (out / DATASET_FILE).unlink(missing_ok=True)
    _remove(out, names)
    for record in (out / WORK_DIR).glob("*.json"):
        record.unlink()


def _remove(out: Path, names: Sequence[str]) -> None:
    for name in names:
        if Path(name).name == name:  # absolute paths are the user's tars, which were indexed in place
            (out / name).unlink(missing_ok=True)


def _read_state(work: Path) -> dict[str, Any] | None:
    try:
        state: dict[str, Any] = json.loads((work / _PLAN_FILE).read_bytes())
        return {
            "plan": str(state["plan"]),
            "files": [str(f) for f in state["files"]],
            "created": bool(state["created"]),
        }
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _first_visible(folder: Path) -> str | None:
    return next((entry.name for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")), None)
