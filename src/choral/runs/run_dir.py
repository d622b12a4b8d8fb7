"""The run directory: where everything is, how it is written, and who may write to it.

    runs/NAME/            an ensemble or a single model
      config.yaml         the resolved config, sufficient to run again
      status.json         the current state: state, step, rate; replaced as a whole
      result.json         written last: if it exists, training is done
      metrics.jsonl       one line per logged or validated step
      trained.txt         table of the trainable layers in each phase
      log.txt             output of the member's process
      attempts.json       how often a cluster job was started, and how far the last start got
      checkpoints/        step-00000120/ ..., best.json
      members/MEMBER/     the same files for each member of an ensemble
      boosting/           rounds.json and round-2.arrow ...: errors, votes, sample weights
      predictions/        SPLIT.parquet: the prediction ledger
      scores-SPLIT.json   the result of `choral score`
      answer.json         the prediction policy: what `choral calibrate` fitted and chose
      calibration-SPLIT.* report and figure of the calibration
      diversity-SPLIT.svg what the ensemble gains, and why
      analysis-SPLIT.html errors of the model and problems of the data: the page of `choral analyze`
      slurm/              scripts as submitted, jobs.json, SLURM's own output

Files are written to a temporary file, synced and renamed: a reader finds the old or the new content, never part of it.
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

from choral.config import Config, binding_difference, resolve_members
from choral.config.files import load_config, to_yaml
from choral.core import files
from choral.core.errors import ChoralError, ConfigError

RUNS_DIR = Path("runs")
_LOCK_ATTEMPTS = 5


def write_atomic(path: Path, text: str) -> None:
    """Replace the content of a text file atomically, creating its folder if needed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(path, text.encode())
    except OSError as error:
        raise ChoralError(f"{path}: cannot be written: {error.strerror or error}") from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a JSON file atomically."""
    write_atomic(path, format_json(content))


def format_json(content: Mapping[str, Any]) -> str:
    """Return the text that `write_json` writes."""
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the content of a JSON file, or None if it is missing, damaged or not an object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    return content if isinstance(content, dict) else None


def is_run_dir(path: Path) -> bool:
    """Return whether a path is a run directory."""
    return (path / "config.yaml").is_file()


@dataclass(frozen=True)
class RunDir:
    """The directory of one run, or of one member of an ensemble."""

    path: Path

    @classmethod
    def from_config(cls, config: Config) -> RunDir:
        """Return the directory runs/NAME of a config; it need not exist."""
        return cls(RUNS_DIR / config.run)

    @classmethod
    def find(cls, target: str) -> RunDir:
        """Return the existing run that `target` names: a directory, a name under runs/, or the config file of a run.

        Raises:
            ConfigError: there is no such run; the message lists the existing ones.
        """
        candidates = [Path(target), RUNS_DIR / target]
        if Path(target).suffix in (".yaml", ".yml") and Path(target).is_file():
            candidates.append(cls.from_config(load_config(target)).path)
        for path in candidates:
            if is_run_dir(path):
                return cls(path)
        names = sorted(folder.parent.name for folder in RUNS_DIR.glob("*/config.yaml"))
        listing = f" Known runs: {', '.join(names)}." if names else f" There are none under {RUNS_DIR}/ yet."
        raise ConfigError(f"{target}: no such run.{listing}")

    @property
    def name(self) -> str:
        """Name of the directory."""
        return self.path.resolve().name

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def predictions(self) -> Path:
        """The folder of prediction ledgers, one per split."""
        return self.path / "predictions"

    @property
    def bad_log(self) -> Path:
        """The file that lists samples that could not be read, one JSON object a line."""
        return self.path / "bad_samples.jsonl"

    @property
    def stop_file(self) -> Path:
        """The run saves and stops when this file appears."""
        return self.path / "stop"

    @property
    def result(self) -> dict[str, Any] | None:
        """Content of result.json; None until training is done."""
        return read_json(self.path / "result.json")

    @property
    def status(self) -> dict[str, Any]:
        """Content of status.json; empty if there is none yet."""
        return read_json(self.path / "status.json") or {}

    def member(self, name: str) -> RunDir:
        """Return the directory of a member of this ensemble."""
        return RunDir(self.path / "members" / name)

    def config(self) -> Config:
        """Load the config that is stored in the directory."""
        return load_config(self.path / "config.yaml")

    def write_status(self, **status: Any) -> None:
        """Replace status.json."""
        write_json(self.path / "status.json", status)

    def check_same_config(self, config: Config) -> None:
        """Raise ConfigError if the directory holds a run of a different config.

        Fields that only affect speed or output may differ. Before the first checkpoint everything may differ, so that a
        config that did not work can be fixed. An ensemble may get further members, and lose members without a
        checkpoint: each member is trained on its own, and the trained ones stay what they are.
        """
        trained = any(
            any(self.path.glob(pattern)) for pattern in ("checkpoints/step-*", "members/*/checkpoints/step-*")
        )
        if not trained or not (self.path / "config.yaml").is_file():
            return
        differences = binding_difference(self.config(), config)
        if differences and not self._keeps_members(config, differences):
            listed = "; ".join(differences[:3]) + (f"; and {len(differences) - 3} more" if len(differences) > 3 else "")
            raise ConfigError(
                f"{self.path}: holds a run of another config ({listed}). "
                "Give this run another name with run=NAME, or delete that one"
            )

    def _keeps_members(self, config: Config, differences: Sequence[str]) -> bool:
        """Return whether only the list of members differs, and every trained member is still in it, unchanged."""
        if any(self.checkpoints.glob("step-*")) or not all(line.startswith("ensemble.") for line in differences):
            return False
        before, after = ({one.name: one.set for one in resolve_members(each)} for each in (self.config(), config))
        trained = [name for name in before if any(self.member(name).checkpoints.glob("step-*"))]
        return all(name in after and after[name] == before[name] for name in trained)

    def store_config(self, config: Config) -> None:
        """Call `check_same_config`, then write config.yaml."""
        self.check_same_config(config)
        write_atomic(self.path / "config.yaml", to_yaml(config))

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the directory for this process. The lock ends with the process, even if that is killed.

        Raises:
            ChoralError: another process holds the lock; the message has its host and pid.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("a+", encoding="utf-8") as stream:
            if not _try_lock(stream):
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
        """Wait until no process holds the lock, for at most `timeout_s` seconds."""
        deadline = time.monotonic() + timeout_s
        while self.lock_holder() is not None and time.monotonic() < deadline:
            time.sleep(1)

    def lock_holder(self) -> tuple[str, int] | None:
        """Return host and pid of the process that holds the lock, or None."""
        try:
            with (self.path / ".lock").open(encoding="utf-8") as stream:
                try:
                    fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    match = re.fullmatch(r"host (.*), pid (\d+)", stream.read().strip())
                    return (match[1], int(match[2])) if match else ("an unknown host", 0)
        except FileNotFoundError:
            pass
        return None


def _try_lock(stream: IO[str]) -> bool:
    """Try to lock a file exclusively; retry briefly, since `lock_holder` of another process takes a shared lock."""
    for _ in range(_LOCK_ATTEMPTS):
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02)
        else:
            return True
    return False
