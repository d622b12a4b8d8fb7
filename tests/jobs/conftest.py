"""Fixtures that check that no process is left behind."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from job_processes import Driver, alive, pids


@pytest.fixture
def family(tmp_path: Path) -> Iterator[Path]:
    """A folder in which processes record their pids; afterwards none of them may still run."""
    folder = tmp_path / "pids"
    folder.mkdir()
    yield folder
    remaining = [pid for pid in pids(folder) if alive(pid)]
    for pid in remaining:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert not remaining


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Callable[..., Driver]]:
    drivers: list[Driver] = []

    def start(command: tuple[str, ...], grace_s: float = 5.0, jobs: int = 1) -> Driver:
        drivers.append(Driver(tmp_path, command, grace_s, jobs))
        return drivers[-1]

    yield start
    for item in drivers:
        if item.process.poll() is None:
            item.process.kill()
        item.process.communicate()
