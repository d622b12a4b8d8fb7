"""One attempt at a job: the parent's side of `guard.py`, and the end of the job's log."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from choral.jobs import guard

_COOKIE = "CHORAL_JOB"  # environment variable by which the processes of an attempt are known, wherever they went
_TAIL_BYTES, _TAIL_LINES = 16384, 15
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]")


class JobProcess:
    """A running command and all processes that come from it.

    Use `start`. Output goes to the end of the log, after a line that says which attempt it is.
    """

    def __init__(self, process: subprocess.Popen[bytes], lifeline: int, cookie: str, log: Path, log_start: int) -> None:
        self._process, self._lifeline, self._cookie = process, lifeline, cookie
        self._log, self._log_start = log, log_start

    @classmethod
    def start(
        cls, command: Sequence[str], log: Path, env: Mapping[str, str], attempt: int, grace_s: float
    ) -> JobProcess | None:
        """Start a command, or return None while processes of an earlier attempt or run still hold the log.

        Args:
            command: program and arguments; no shell looks at them.
            log: appended to; its folder is made.
            env: added to the environment of this process.
            attempt: number, for the log.
            grace_s: seconds between SIGTERM and SIGKILL.

        Raises:
            OSError: the log cannot be written.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        cookie = uuid.uuid4().hex
        with log.open("ab") as stream:
            # The lock lives as long as any process has the log as its output: it shows orphans of every kind.
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return None
            except OSError:
                pass  # a file system without locks
            started = time.strftime("%Y-%m-%d %H:%M:%S")
            log_start = stream.tell()
            stream.write(f"===== attempt {attempt}, {started}: {shlex.join(command)}\n".encode())
            stream.flush()
            read_end, write_end = os.pipe()  # neither is inherited, but for the one passed on by name
            try:
                process = subprocess.Popen(
                    [sys.executable, "-I", "-S", guard.__file__, str(read_end), str(grace_s), "--", *command],
                    env={"PYTHONUNBUFFERED": "1", **os.environ, **env, _COOKIE: cookie},
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # a group of its own; a Ctrl-C at the keyboard reaches the parent alone
                    pass_fds=(read_end,),
                )
            except BaseException:
                os.close(write_end)
                raise
            finally:
                os.close(read_end)
        return cls(process, write_end, cookie, log, log_start)

    def poll(self) -> int | None:
        """Return the exit status (128 + the number of a signal) once no process of the command is left, else None."""
        code = self._process.poll()
        if code is None:
            return None
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        if code < 0:  # the guard itself was killed: nobody looks after its processes but us
            self._sweep()
            return 128 - code
        return code

    def stop(self) -> None:
        """Ask the command to save and end: SIGTERM now, SIGKILL after the grace."""
        self._tell(b"t")

    def kill(self) -> None:
        """End all processes of the command now."""
        self._tell(b"k")

    def destroy(self) -> None:
        """End all processes of the command, its guard included, without the guard's help, and wait for it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._sweep()
        self.poll()

    def log_tail(self) -> str:
        """Return the last lines that this attempt wrote, without control characters."""
        return tail(self._log, self._log_start)

    def _tell(self, word: bytes) -> None:
        if self._lifeline >= 0:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._lifeline, word)

    def _sweep(self) -> None:
        """Kill whatever still carries this attempt's cookie; a process may start another one meanwhile, so repeat."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        mark = f"{_COOKIE}={self._cookie}".encode()
        for _ in range(100):
            left = [int(entry.parent.name) for entry in Path("/proc").glob("[0-9]*/environ") if _holds(entry, mark)]
            if not left:
                return
            for pid in left:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)


def _holds(environ: Path, mark: bytes) -> bool:
    try:
        return mark in environ.read_bytes().split(b"\0")
    except OSError:  # ended, or another user's
        return False


def tail(path: Path, start: int = 0) -> str:
    """Return the last lines of a log after byte `start`: of a progress bar its last state, no control characters."""
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(start, size - _TAIL_BYTES))
            text = stream.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    lines = [_ESCAPES.sub("", line.rstrip("\r").rpartition("\r")[2]).rstrip() for line in text.split("\n")]
    return "\n".join([line for line in lines if line][-_TAIL_LINES:])
