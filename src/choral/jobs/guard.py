"""The process between `run_jobs` and a job. It ensures that every process of the job ends.

    python -I -S guard.py LIFELINE GRACE_S -- COMMAND [ARGUMENT ...]

LIFELINE is the read end of a pipe whose only writer is the parent. The byte `t` stops the job: SIGTERM to its process
group, and after GRACE_S SIGKILL to every process that is left. The byte `k` kills at once. End of file means that the
parent has ended, perhaps by kill -9: the job is stopped with a short grace period.

A process group is not enough. torchrun starts each worker in its own session, and both torchrun and Accelerate's launcher
leave their children running when they are killed. So the guard is a "child subreaper" (prctl(2)): processes that lose
their parent become its children. It ends when it has no child left, with the exit status of the command, or 128 + the
number of the signal that ended it.

This file runs as a script, outside the package, and imports only the standard library: it starts in 50 ms.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

# Grace period once the parent is gone: enough to save a checkpoint, short enough for the next call to wait.
ORPHAN_GRACE_S = 10.0
_LINGER_S = 5.0  # how long helpers (resource trackers, log uploaders) may outlive the command
_KILL_TIMEOUT_S = 10.0  # a process that survives SIGKILL for longer is stuck in the kernel: it is reported and left
_IGNORED_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


class Guard:
    """Runs one command and ends all its processes."""

    def __init__(self, lifeline: int, grace_s: float) -> None:
        self._lifeline, self._grace_s = lifeline, grace_s
        self._wake_read, wake_write = os.pipe()
        for end in (self._wake_read, wake_write):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wake_write)
        self._got_sigterm = False
        self._command_pid = 0
        self.status: int | None = None  # exit status of the command, once it has ended
        self._terminated = False
        self._linger_until: float | None = None
        self._kill_at: float | None = None
        self._killing_since: float | None = None

    def run(self, command: list[str]) -> int:
        """Run the command and return its exit status once all its processes have ended."""
        # A scheduler may send these signals to every process of a job. They are for the command and must not end the guard.
        dispositions = {number: signal.signal(number, signal.SIG_IGN) for number in _IGNORED_SIGNALS}
        dispositions[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._on_signal)
        dispositions[signal.SIGCHLD] = signal.signal(
            signal.SIGCHLD, lambda number, frame: None
        )  # only to wake up `select`
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        self._command_pid = _spawn(command, dispositions)
        while self._reap():
            self._advance(time.monotonic())
            self._wait()
            if self._killing_since is not None and time.monotonic() - self._killing_since > _KILL_TIMEOUT_S:
                print(
                    f"choral: processes {sorted(_descendants())} survive SIGKILL and are left running", file=sys.stderr
                )
                break
        return 1 if self.status is None else self.status

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._got_sigterm = True  # the guard itself was terminated: pass it on to the command

    def _reap(self) -> bool:
        """Wait for the children that have ended; return whether any child is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._command_pid:
                code = os.waitstatus_to_exitcode(status)
                self.status = code if code >= 0 else 128 - code
                self._linger_until = time.monotonic() + _LINGER_S
                if self._terminated:
                    _signal_all(signal.SIGTERM, outside_group=True)  # the launcher did not pass the signal on

    def _advance(self, now: float) -> None:
        """Terminate or kill, if it is time."""
        if self._got_sigterm:
            self._terminate(self._grace_s)
        if self._linger_until is not None and now >= self._linger_until:
            self._terminate(min(self._grace_s, _LINGER_S))
        if self._kill_at is not None and now >= self._kill_at:
            if self._killing_since is None:
                self._killing_since = now
            _signal_all(signal.SIGKILL)

    def _terminate(self, grace_s: float) -> None:
        kill_at = time.monotonic() + grace_s
        self._kill_at = kill_at if self._kill_at is None else min(self._kill_at, kill_at)
        if not self._terminated:
            self._terminated = True
            # Only to the group: launchers pass the signal on to their workers, which would otherwise get it twice.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            self._got_sigterm = False
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(0, signal.SIGTERM)
            if self.status is not None:
                _signal_all(signal.SIGTERM, outside_group=True)

    def _wait(self) -> None:
        """Sleep until the parent sends a byte, a signal arrives, or it is time to kill."""
        due = self._kill_at if self._terminated else self._linger_until
        timeout = None if due is None else max(0.0, due - time.monotonic())
        if self._killing_since is not None:
            timeout = 0.05  # new processes may appear while old ones are being killed
        watched = [self._wake_read] if self._lifeline < 0 else [self._wake_read, self._lifeline]
        ready, _, _ = select.select(watched, [], [], timeout)
        if self._wake_read in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_read, 4096)
        if self._lifeline in ready:
            message = os.read(self._lifeline, 64)
            if b"k" in message:
                self._terminate(0.0)
            elif message:
                self._terminate(self._grace_s)
            else:
                self._lifeline = -1
                self._terminate(min(self._grace_s, ORPHAN_GRACE_S))


def _spawn(command: list[str], dispositions: Mapping[signal.Signals, Any]) -> int:
    """Start the command in the guard's process group, with these signal dispositions, and return its pid."""
    # SIGTERM is blocked until the child has set its dispositions: a signal between fork and exec would be lost.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    guard = os.getpid()
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        return pid
    try:
        signal.set_wakeup_fd(-1)
        for number, disposition in dispositions.items():
            signal.signal(number, disposition)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, but its children should not
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)  # the launcher gets SIGTERM if the guard is killed
        if os.getppid() != guard:
            os._exit(128 + signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        os.execvp(command[0], command)  # noqa: S606 - without a shell on purpose
    except OSError as error:
        print(f"choral: {command[0]}: cannot be started: {error.strerror}", file=sys.stderr, flush=True)
    finally:
        os._exit(127)


def _signal_all(number: signal.Signals, outside_group: bool = False) -> None:
    """Send a signal to every descendant, or only to those outside the guard's process group."""
    group = os.getpgrp()
    if sys.platform != "linux" and number == signal.SIGKILL:
        os.killpg(group, number)  # without /proc only the group can be reached, including the guard
    for pid in _descendants():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if not outside_group or os.getpgid(pid) != group:
                os.kill(pid, number)


def _descendants() -> set[int]:
    """Return the pids of all descendants except zombies; empty without /proc."""
    children: dict[int, list[int]] = {}
    zombies = set()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = entry.read_bytes().rpartition(b")")[2].split()[:2]
        except (OSError, ValueError):  # it has ended meanwhile
            continue
        pid = int(entry.parent.name)
        children.setdefault(int(parent), []).append(pid)
        if state == b"Z":
            zombies.add(pid)
    descendants: set[int] = set()
    pending = [os.getpid()]
    while pending:
        pids = children.get(pending.pop(), [])
        descendants.update(pids)
        pending.extend(pids)
    return descendants - zombies


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":  # other systems make do with the process group and the pipe
        import ctypes

        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    os.set_inheritable(int(sys.argv[1]), False)
    sys.exit(Guard(int(sys.argv[1]), float(sys.argv[2])).run(sys.argv[4:]))
