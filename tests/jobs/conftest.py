"""Fixtures that leave no process behind."""

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
    """A folder where processes note their pids; none may be left, whatever a test does."""
    folder = tmp_path / "pids"
    folder.mkdir()
    yield folder
    left = [pid for pid in pids(folder) if alive(pid)]
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert not left


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
