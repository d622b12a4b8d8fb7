"""Errors that a user can fix, each with the exit status that the command line returns for it.

Any other exception that reaches the command line is a bug in choral and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ChoralError(Exception):
    """An error that the user can fix. The message says what is wrong, where, what was expected and what to do."""

    exit_code = 1


class ConfigError(ChoralError):
    """A config, option or argument is invalid; nothing has been started."""

    exit_code = 2


class DataError(ChoralError):
    """Images, labels, shards or prediction ledgers are invalid or damaged."""


class OutOfMemory(ChoralError):
    """A batch does not fit into memory; the message has its size and what to change."""


class Stopped(ChoralError):
    """Work was stopped by a signal or a stop file, after saving; the same command continues it."""

    exit_code = 75


def did_you_mean(name: str, options: Iterable[str], count: int = 1) -> str:
    """Return " Did you mean A or B?" for the options closest to `name`, or "" if none is close."""
    matches = difflib.get_close_matches(name, list(options), n=count, cutoff=0.6)
    return f" Did you mean {' or '.join(matches)}?" if matches else ""
