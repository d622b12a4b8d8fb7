"""The process between `run_jobs` and a job: it makes sure that no process of the job outlives its purpose.

    python -I -S guard.py LIFELINE GRACE_S -- COMMAND [ARGUMENT ...]

LIFELINE is the reading end of a pipe whose only writer is the parent. A byte `t` asks for a stop: SIGTERM to the job's
process group, and SIGKILL to all that is left after GRACE_S. A byte `k` kills at once. End of file means that the
parent is gone, kill -9 included: a stop with a short grace.

A process group alone would not do: torchrun gives each worker a session of its own, and both it and Accelerate's
launcher leave their children behind when they are killed. So the guard is a "child subreaper" (prctl(2)): whatever
loses its parent becomes its child. It ends when it has no child left, with the exit status of the command, or 128 + the
number of the signal that ended it.

This file runs as a script, outside the package, with the standard library alone: it starts in 50 ms.
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

ORPHAN_GRACE_S = (
    10.0  # without a parent: enough to save a checkpoint, short enough that the next call need not wait long
)
_LINGER_S = 5.0  # helpers (resource trackers, log uploaders) that outlive the command by a moment
_DEATH_S = 10.0  # that SIGKILL may take; a process stuck in the kernel longer than this is reported and left
_NOT_FOR_THE_GUARD = (signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


class Guard:
    """State of one guarded command."""

    def __init__(self, lifeline: int, grace_s: float) -> None:
        self._lifeline, self._grace_s = lifeline, grace_s
        self._wake_read, wake_write = os.pipe()
        for end in (self._wake_read, wake_write):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wake_write)
        self._asked_by_signal = False
        self._command_pid = 0
        self.status: int | None = None  # of the command, once it has ended
        self._terminated = False
        self._linger_until: float | None = None
        self._kill_at: float | None = None
        self._killing_since: float | None = None

    def run(self, command: list[str]) -> int:
        """Run the command and return its exit status once no process of it is left."""
        # Signals that a scheduler sends to every process of a job are for the command; they must not end its guard.
        dispositions = {number: signal.signal(number, signal.SIG_IGN) for number in _NOT_FOR_THE_GUARD}
        dispositions[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._on_signal)
        dispositions[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda number, frame: None)  # only to be woken
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        self._command_pid = _spawn(command, dispositions)
        while self._reap():
            self._act(time.monotonic())
            self._wait()
            if self._killing_since is not None and time.monotonic() - self._killing_since > _DEATH_S:
                print(
                    f"choral: processes {sorted(_descendants())} survive SIGKILL and are left behind", file=sys.stderr
                )
                break
        return 1 if self.status is None else self.status

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._asked_by_signal = True  # somebody terminated the guard itself: pass it on

    def _reap(self) -> bool:
        """Collect the children that ended; return whether any is left."""
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
                    _signal_all(signal.SIGTERM, outside_group=True)  # workers whose launcher is gone heard nothing yet

    def _act(self, now: float) -> None:
        if self._asked_by_signal:
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
            # To the group: launchers pass it on to their workers, who would otherwise be told twice.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            self._asked_by_signal = False
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(0, signal.SIGTERM)
            if self.status is not None:
                _signal_all(signal.SIGTERM, outside_group=True)

    def _wait(self) -> None:
        """Sleep until something happens: a word from the parent, a signal, or time to kill."""
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
            word = os.read(self._lifeline, 64)
            if b"k" in word:
                self._terminate(0.0)
            elif word:
                self._terminate(self._grace_s)
            else:
                self._lifeline = -1
                self._terminate(min(self._grace_s, ORPHAN_GRACE_S))


def _spawn(command: list[str], dispositions: Mapping[signal.Signals, Any]) -> int:
    """Start the command in the guard's process group, with these signal dispositions, and return its pid."""
    # Blocked until the child has its own dispositions: a signal that came between fork and exec would be lost.
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
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, its children should not
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)  # should the guard itself be killed, the launcher hears of it
        if os.getppid() != guard:
            os._exit(128 + signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        os.execvp(command[0], command)  # noqa: S606 - no shell is the point
    except OSError as error:
        print(f"choral: {command[0]}: cannot be started: {error.strerror}", file=sys.stderr, flush=True)
    finally:
        os._exit(127)


def _signal_all(number: signal.Signals, outside_group: bool = False) -> None:
    """Signal every descendant, or those alone that left the guard's process group."""
    group = os.getpgrp()
    if sys.platform != "linux" and number == signal.SIGKILL:
        os.killpg(group, number)  # without /proc the group, the guard with it, is all that can be reached
    for pid in _descendants():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if not outside_group or os.getpgid(pid) != group:
                os.kill(pid, number)


def _descendants() -> set[int]:
    """Return the pids below this process, zombies excluded; where there is no /proc, none."""
    children: dict[int, list[int]] = {}
    zombies = set()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = entry.read_bytes().rpartition(b")")[2].split()[:2]
        except (OSError, ValueError):  # ended since it was listed
            continue
        pid = int(entry.parent.name)
        children.setdefault(int(parent), []).append(pid)
        if state == b"Z":
            zombies.add(pid)
    found: set[int] = set()
    pending = [os.getpid()]
    while pending:
        below = children.get(pending.pop(), [])
        found.update(below)
        pending.extend(below)
    return found - zombies


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":  # elsewhere the process group and the pipe have to do
        import ctypes

        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    os.set_inheritable(int(sys.argv[1]), False)
    sys.exit(Guard(int(sys.argv[1]), float(sys.argv[2])).run(sys.argv[4:]))
