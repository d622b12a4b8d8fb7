"""metrics.jsonl: one line of JSON a report, in the order of the steps, each report once however often a run was killed."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

from choral.runs.run_dir import write_atomic


class JsonLines:
    """Appends to a file.

    Args:
        path: of the file.
        start_step: where this start of the run begins; reports of later steps, by one that was killed, are dropped.
    """

    def __init__(self, path: Path, start_step: int) -> None:
        self._path = path
        _drop_reports_after(path, start_step)

    def log(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Append a line."""
        line = {"step": step, "split": split, **values, "time": round(time.time(), 3)}
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    def close(self, failed: bool) -> None:
        """Do nothing: each line was written at once."""


def _drop_reports_after(path: Path, step: int) -> None:
    """Remove the reports of steps that are about to be made again, and a line that was cut off."""
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
