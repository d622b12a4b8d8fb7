"""One attempt at a job: the parent's side of `guard.py`, and the tail of the job's log."""

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

_COOKIE = "CHORAL_JOB"  # environment variable that identifies the processes of an attempt, whatever their parent
_TAIL_BYTES, _TAIL_LINES = 16384, 15
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]")


class JobProcess:
    """A running command and all its descendants; create it with `start`.

    Output is appended to the log, after a line with the number of the attempt.
    """

    def __init__(self, process: subprocess.Popen[bytes], lifeline: int, cookie: str, log: Path, log_start: int) -> None:
        self._process, self._lifeline, self._cookie = process, lifeline, cookie
        self._log, self._log_start = log, log_start

    @classmethod
    def start(
        cls, command: Sequence[str], log: Path, env: Mapping[str, str], attempt: int, grace_s: float
    ) -> JobProcess | None:
        """Start a command; return None if processes of an earlier attempt or run still hold the log.

        Args:
            command: program and arguments; no shell interprets them.
            log: appended to; its folder is created.
            env: added to the environment of this process.
            attempt: number of this attempt, for the log.
            grace_s: seconds between SIGTERM and SIGKILL.

        Raises:
            OSError: the log cannot be written.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        cookie = uuid.uuid4().hex
        with log.open("ab") as stream:
            # The lock lives as long as any process has the log as its output, so it detects every kind of orphan.
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
            read_end, write_end = os.pipe()  # not inheritable, except for the end that pass_fds names
            try:
                process = subprocess.Popen(
                    [sys.executable, "-I", "-S", guard.__file__, str(read_end), str(grace_s), "--", *command],
                    env={"PYTHONUNBUFFERED": "1", **os.environ, **env, _COOKIE: cookie},
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # its own process group: Ctrl-C reaches only the parent
                    pass_fds=(read_end,),
                )
            except BaseException:
                os.close(write_end)
                raise
            finally:
                os.close(read_end)
        return cls(process, write_end, cookie, log, log_start)

    def poll(self) -> int | None:
        """Return the exit status (128 + number for a signal), or None while any process of the command is left."""
        code = self._process.poll()
        if code is None:
            return None
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        if code < 0:  # the guard itself was killed, so its processes are left to us
            self._kill_leftovers()
            return 128 - code
        return code

    def stop(self) -> None:
        """Stop the command: SIGTERM now, so that it can save, and SIGKILL after the grace period."""
        self._send(b"t")

    def kill(self) -> None:
        """Kill all processes of the command now."""
        self._send(b"k")

    def destroy(self) -> None:
        """Kill all processes of the command and its guard, without the guard's help, and wait for the guard."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._kill_leftovers()
        self.poll()

    def log_tail(self) -> str:
        """Return the last lines that this attempt wrote; see the function `read_log_tail`."""
        return read_log_tail(self._log, self._log_start)

    def _send(self, message: bytes) -> None:
        if self._lifeline >= 0:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._lifeline, message)

    def _kill_leftovers(self) -> None:
        """Kill the processes that carry this attempt's cookie; repeat, since one may start another meanwhile."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        variable = f"{_COOKIE}={self._cookie}".encode()
        for _ in range(100):
            pids = [
                int(entry.parent.name)
                for entry in Path("/proc").glob("[0-9]*/environ")
                if _has_variable(entry, variable)
            ]
            if not pids:
                return
            for pid in pids:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)


def _has_variable(environ: Path, variable: bytes) -> bool:
    try:
        return variable in environ.read_bytes().split(b"\0")
    except OSError:  # ended, or another user's
        return False


def read_log_tail(path: Path, start: int = 0) -> str:
    """Return the last 15 lines that are not empty of a log after byte `start`, without control characters.

    Of a progress bar only the last state is kept. A missing file is empty.
    """
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(start, size - _TAIL_BYTES))
            text = stream.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    lines = [_ESCAPES.sub("", line.rstrip("\r").rpartition("\r")[2]).rstrip() for line in text.split("\n")]
    return "\n".join([line for line in lines if line][-_TAIL_LINES:])
