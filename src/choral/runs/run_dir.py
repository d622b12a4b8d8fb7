"""The folder of a run: what lies where, how it is written, and who may write it.

    runs/NAME/            an ensemble, or a single network
      config.yaml         the resolved config, enough to run again
      status.json         what is going on: state, step, rate; replaced as a whole at each report
      result.json         written last: its presence means that training is done
      metrics.jsonl       one line a report
      trained.txt         the table of what is trained, of each phase
      log.txt             output of the member's process
      attempts.json       how often a job of a cluster was started, and how far the last start got
      checkpoints/        step-00000120/ ..., best.json
      members/MEMBER/     the same again for each member of an ensemble
      boosting/           rounds.json and round-2.arrow ...: errors, votes, what samples weigh
      predictions/        SPLIT.parquet: the ledger
      scores-SPLIT.json   what `choral score` found
      answer.json         how the run answers: what `choral calibrate` fitted and chose
      calibration-SPLIT.* what that is worth: the report, and its figure
      diversity-SPLIT.svg what an ensemble gains, and why
      analysis-SPLIT.html where it goes wrong, and what is wrong with the data: the page of `choral analyze`
      slurm/              scripts as they were submitted, jobs.json, output of SLURM itself

Files are written aside, synced and renamed, so that a reader finds the old or the new one, never half of one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from choral.config import Config, binding_difference, members_of
from choral.config.files import load_config, to_yaml
from choral.core import files
from choral.core.errors import ChoralError, ConfigError

RUNS = Path("runs")
_LOCK_TRIALS = 5


def write_atomic(path: Path, text: str) -> None:
    """Replace a file's content; after a crash at any point the old or the new content is there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(path, text.encode())
    except OSError as error:
        raise ChoralError(f"{path}: cannot be written: {error.strerror or error}") from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a JSON file atomically."""
    write_atomic(path, json_text(content))


def json_text(content: Mapping[str, Any]) -> str:
    """Return what `write_json` puts into a file."""
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the content of a JSON object file, or None where there is none or it was not written by us."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    return content if isinstance(content, dict) else None


def is_run(path: Path) -> bool:
    """Return whether a folder is there and a run's."""
    return (path / "config.yaml").is_file()


@dataclass(frozen=True)
class RunDir:
    """Paths and rules of one run's folder."""

    path: Path

    @classmethod
    def of(cls, config: Config) -> RunDir:
        """Return the folder runs/NAME of a config; it need not exist."""
        return cls(RUNS / config.run)

    @classmethod
    def find(cls, target: str) -> RunDir:
        """Return the existing run that `target` names: a folder, a name under runs/, or a config file whose run exists.

        Raises:
            ConfigError: there is none; the message lists the runs that there are.
        """
        candidates = [Path(target), RUNS / target]
        if Path(target).suffix in (".yaml", ".yml") and Path(target).is_file():
            candidates.append(cls.of(load_config(target)).path)
        for path in candidates:
            if is_run(path):
                return cls(path)
        known = sorted(folder.parent.name for folder in RUNS.glob("*/config.yaml"))
        listing = f" Known runs: {', '.join(known)}." if known else f" There are none under {RUNS}/ yet."
        raise ConfigError(f"{target}: no such run.{listing}")

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.resolve().name

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are kept."""
        return self.path / "checkpoints"

    @property
    def predictions(self) -> Path:
        """Where ledgers are kept, one a split."""
        return self.path / "predictions"

    @property
    def stop_file(self) -> Path:
        """A file whose appearance asks the run to save and stop."""
        return self.path / "stop"

    @property
    def result(self) -> dict[str, Any] | None:
        """What training ended with; None while it has not."""
        return read_json(self.path / "result.json")

    @property
    def status(self) -> dict[str, Any]:
        """The last report; empty before the first."""
        return read_json(self.path / "status.json") or {}

    def member(self, name: str) -> RunDir:
        """Return the folder of a member of this ensemble."""
        return RunDir(self.path / "members" / name)

    def config(self) -> Config:
        """Return the config stored in the folder."""
        return load_config(self.path / "config.yaml")

    def report(self, **status: Any) -> None:
        """Replace status.json."""
        write_json(self.path / "status.json", status)

    def check_same(self, config: Config) -> None:
        """Check that the folder, if there is one yet, holds a run of this config.

        Fields that only say how fast or how visibly a run goes may differ, and everything may while nothing has been
        trained: a config that turned out not to work can be mended. An ensemble may get further members, and lose those
        that have not come to a checkpoint: each member is a training of its own, and those that are there stay what they are.

        Raises:
            ConfigError: it holds a run of another config; the differences are shown.
        """
        trained = any(
            any(self.path.glob(pattern)) for pattern in ("checkpoints/step-*", "members/*/checkpoints/step-*")
        )
        if not trained or not (self.path / "config.yaml").is_file():
            return
        differences = binding_difference(self.config(), config)
        if differences and not self._keeps_members(config, differences):
            shown = "; ".join(differences[:3]) + (f"; and {len(differences) - 3} more" if len(differences) > 3 else "")
            raise ConfigError(
                f"{self.path}: holds a run of another config ({shown}). "
                "Give this one its own folder with run=NAME, or delete that one"
            )

    def _keeps_members(self, config: Config, differences: Sequence[str]) -> bool:
        """Return whether nothing but the list of members differs, and each that is trained is in it as it was."""
        if any(self.checkpoints.glob("step-*")) or not all(line.startswith("ensemble.") for line in differences):
            return False
        before, after = ({one.name: one.set for one in members_of(each)} for each in (self.config(), config))
        trained = [name for name in before if any(self.member(name).checkpoints.glob("step-*"))]
        return all(name in after and after[name] == before[name] for name in trained)

    def claim(self, config: Config) -> None:
        """Store the config of a run, new or continued, after `check_same`."""
        self.check_same(config)
        write_atomic(self.path / "config.yaml", to_yaml(config))

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for this process; a lock ends with its process, also when that is killed.

        Raises:
            ChoralError: another process works in it; host and pid are named.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("a+", encoding="utf-8") as stream:
            if not _locked(stream):
                stream.seek(0)
                raise ChoralError(
                    f"{self.path}: in use by another process ({stream.read().strip() or 'unknown'}); "
                    "wait for it, or choose run=NAME"
                )
            stream.truncate(0)
            stream.write(f"host {socket.gethostname()}, pid {os.getpid()}")
            stream.flush()
            yield

    def wait_for_lock(self, timeout_s: float) -> None:
        """Wait until nobody holds the folder, but no longer than `timeout_s` seconds."""
        deadline = time.monotonic() + timeout_s
        while self.holder() is not None and time.monotonic() < deadline:
            time.sleep(1)

    def holder(self) -> tuple[str, int] | None:
        """Return host and pid of the process that holds the folder, or None: nobody does."""
        try:
            with (self.path / ".lock").open(encoding="utf-8") as stream:
                try:
                    fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    found = re.fullmatch(r"host (.*), pid (\d+)", stream.read().strip())
                    return (found[1], int(found[2])) if found else ("an unknown host", 0)
        except FileNotFoundError:
            pass
        return None


def _locked(stream: IO[str]) -> bool:
    """Lock a file for this process alone; more than one trial, since somebody may only be asking who holds it."""
    for _ in range(_LOCK_TRIALS):
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02)
        else:
            return True
    return False
