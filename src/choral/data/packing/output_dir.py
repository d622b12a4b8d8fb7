"""The folder that is packed into: whose it is, what of it is done, and that nothing else is ever overwritten.

While packing, OUT/.packing holds plan.json (what is being packed), a record for each finished shard, unfinished shards
and a lock. `dataset.json` is written last and .packing removed after it.
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

WORK_FOLDER = ".packing"
_PLAN_FILE = "plan.json"


def finished(out: Path, plan: str, force: bool) -> Dataset | None:
    """Return the data set in `out` if it is complete and was packed by the same plan, None if there is work to do.

    Raises:
        ConfigError: `out` holds another data set, or files that choral did not write.
        DataError: it holds this data set, but shards are missing.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file, expected a folder to pack into")
    if (out / DATASET_FILE).is_file():
        if force:
            return None
        dataset = Dataset.open(out)
        if dataset.plan != plan:
            raise ConfigError(
                f"{out}: already holds {dataset.name!r}, packed from other data or with other options: choose another "
                "folder, or replace it with --force"
            )
        dataset.verify_present()
        return dataset
    if out.is_dir() and not (out / WORK_FOLDER).is_dir() and (stranger := _visible(out)):
        raise ConfigError(f"{out}: is not empty ({stranger!r} was not packed by choral): choose another folder")
    return None


class Output:
    """A folder that this process alone packs into; made by `claim`."""

    def __init__(self, folder: Path, state: dict[str, Any]) -> None:
        self.folder = folder
        self.work = folder / WORK_FOLDER
        self._state = state

    def record(self, shard: str) -> dict[str, Any] | None:
        """Return what was recorded of a finished shard, or None where it is still to be written."""
        try:
            record: dict[str, Any] = json.loads((self.work / f"{shard}.json").read_bytes())
            complete = (self.folder / f"{shard}.tar").stat().st_size == record["bytes"]
        except (OSError, ValueError, KeyError):
            return None
        return record if complete else None

    def complete(self, dataset: Dataset) -> None:
        """Write the description, which makes the folder a data set, and remove what was needed for the work only."""
        dataset.save()
        shutil.rmtree(self.work)

    def discard(self) -> None:
        """Remove all that was written, and the folder itself where it was made for this."""
        _remove(self.folder, self._state["files"])
        shutil.rmtree(self.work)
        if self._state["created"]:
            with contextlib.suppress(OSError):  # something else has been put there meanwhile
                self.folder.rmdir()


@contextlib.contextmanager
def claim(out: Path, plan: str, shards: Sequence[str], force: bool) -> Iterator[Output]:
    """Lock `out` for packing `plan`; finished shards of an interrupted run by the same plan are kept.

    Raises:
        ConfigError: another process is packing into it, or it holds an unfinished run by another plan (without
            `force`).
    """
    created = not out.exists()
    work = out / WORK_FOLDER
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"{out}: another process is packing into it: wait until it has finished") from None
        before = _read_state(work)
        if before is not None and before["plan"] != plan and not force:
            raise ConfigError(
                f"{out}: holds an unfinished pack of other data or options: choose another folder, or replace it with "
                "--force"
            )
        keep = before is not None and before["plan"] == plan and not force
        if not keep:
            _clear(out, before)
        files = [f"{shard}.tar" for shard in shards] + [f"{split}.arrow" for split in SPLITS]
        state = {"plan": plan, "files": files, "created": created or bool(before and before["created"])}
        write_atomic(work / _PLAN_FILE, json.dumps(state).encode())
        for leftover in work.glob("*.tmp"):
            leftover.unlink()
        yield Output(out, state)


def _clear(out: Path, before: dict[str, Any] | None) -> None:
    """Remove what choral packed into the folder before, and nothing else."""
    names = list(before["files"]) if before else []
    if (out / DATASET_FILE).is_file():
        with contextlib.suppress(DataError):  # damaged: its shards cannot be told, and are overwritten or left
            dataset = Dataset.open(out)
            names += [shard.path for shard in dataset.shards] + [split.index for split in dataset.splits.values()]
    (out / DATASET_FILE).unlink(missing_ok=True)
    _remove(out, names)
    for record in (out / WORK_FOLDER).glob("*.json"):
        record.unlink()


def _remove(out: Path, names: Sequence[str]) -> None:
    for name in names:
        if Path(name).name == name:  # absolute paths are tars of somebody else, which were only indexed
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


def _visible(folder: Path) -> str | None:
    return next((entry.name for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")), None)
