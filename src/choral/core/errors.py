"""The errors a user can mend, each with the exit status that the command line returns for it.

Anything else that escapes is a defect of choral and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ChoralError(Exception):
    """Something the user can mend. The message says what is wrong, where, what was expected and what to do."""

    exit_code = 1


class ConfigError(ChoralError):
    """A configuration, option or argument that cannot be used; nothing has been started."""

    exit_code = 2


class DataError(ChoralError):
    """Images, labels, shards or ledgers that are not what they should be."""


class OutOfMemory(ChoralError):
    """Work did not fit into memory; the message names the size of the batch and what to change."""


class Stopped(ChoralError):
    """Work was stopped from outside after it had been saved: running the same command again continues it."""

    exit_code = 75


def did_you_mean(name: str, options: Iterable[str], count: int = 1) -> str:
    """Return " Did you mean A or B?" for the options nearest to `name`, or "" where none is near."""
    near = difflib.get_close_matches(name, list(options), n=count, cutoff=0.6)
    return f" Did you mean {' or '.join(near)}?" if near else ""
