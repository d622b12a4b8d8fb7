"""Commands for tests of jobs, and functions that check which of their processes are left."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from choral.jobs import Job, Outcome, run_jobs

SRC = Path(__file__).parents[2] / "src"


def python(code: str, *arguments: object) -> tuple[str, ...]:
    return (sys.executable, "-S", "-c", textwrap.dedent(code), *map(str, arguments))


def run(*jobs: Job, slots: int = 2, output: io.StringIO | None = None, **options: object) -> list[Outcome]:
    console = Console(file=output or io.StringIO(), width=100)
    return run_jobs(jobs, slots=[{}] * slots, console=console, **{"grace_s": 3.0, **options})  # type: ignore[arg-type]


def wait_for(condition: Callable[[], bool], timeout_s: float = 10.0) -> bool:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def pids(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.glob("[0-9]*")]


# A stand-in for torchrun and its workers: a child in its own session, and a grandchild whose parent exits at once.
# Each process writes a file named after its pid, optionally ignores SIGTERM, and runs forever.
FAMILY = """
    import os, pathlib, signal, sys, time
    folder, stubborn = pathlib.Path(sys.argv[1]), sys.argv[2] == "stubborn"
    if stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0 and os.fork() != 0:
            os._exit(0)
    (folder / str(os.getpid())).touch()
    while True:
        time.sleep(60)
"""


SAVES = """
    import os, pathlib, signal, sys, time
    folder = pathlib.Path(sys.argv[1])
    def stop(number, frame):
        time.sleep(0.2)
        (folder / "saved").touch()
        sys.exit(75)
    signal.signal(signal.SIGTERM, stop)
    (folder / str(os.getpid())).touch()
    while True:
        time.sleep(60)
"""


def children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(entry.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(entry.parent.name))
    return found


class Driver:
    """A separate process that calls `run_jobs`, so that tests can kill it."""

    def __init__(self, tmp_path: Path, command: tuple[str, ...], grace_s: float, jobs: int = 1) -> None:
        code = f"""
            import sys
            from pathlib import Path
            from choral.jobs import Job, run_jobs
            command, folder = tuple({list(command)!r}), Path({str(tmp_path)!r})
            jobs = [Job(f"job{{n}}", command, folder / f"job{{n}}") for n in range({jobs})]
            outcomes = run_jobs(jobs, slots=[{{}}] * 2, grace_s={grace_s}, retries=1)
            for outcome in outcomes:
                print(outcome.state, outcome.exit_code, outcome.attempts)
        """
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)],
            env={**os.environ, "PYTHONPATH": str(SRC)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def output(self) -> tuple[list[str], str]:
        out, err = self.process.communicate(timeout=30)
        return out.splitlines(), err
