"""metrics.jsonl: one JSON line per logged step, ordered by step, without duplicates even if a run was killed."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

from choral.runs.run_dir import write_atomic


class JsonlSink:
    """A metric sink that appends to a JSON Lines file.

    Args:
        path: of the file.
        start_step: step at which this process continues; lines of later steps, from a killed process, are deleted.
    """

    def __init__(self, path: Path, start_step: int) -> None:
        self._path = path
        _delete_lines_after(path, start_step)

    def log(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Append a line."""
        line = {"step": step, "split": split, **values, "time": round(time.time(), 3)}
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    def close(self, failed: bool) -> None:
        """Do nothing: every line has been written already."""


def _delete_lines_after(path: Path, step: int) -> None:
    """Delete the lines of steps that will be repeated, and an incomplete line."""
    if not path.is_file():
        return
    kept: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError):
            continue
    write_atomic(path, "".join(line + "\n" for line in kept))
