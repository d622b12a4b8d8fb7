"""Atomic writes of files and folders, checksums, and a check that a path is local."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from choral.core.errors import ConfigError

_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")


def check_local_path(path: str) -> str:
    """Return `path` unchanged; raise ConfigError if a library could interpret it as a command or a URL.

    webdataset runs `pipe:` and `::` as commands. choral opens local files itself and never passes such a path on.
    """
    if path.startswith("pipe:") or "::" in path or _SCHEME.match(path):
        raise ConfigError(f"{path}: expected a local path, not a command (pipe:, ::) or a URL (scheme://)")
    return path


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a temporary file that replaces `path` when the block ends, or is deleted if the block raises."""
    # Not the pid: processes on two machines may have the same one.
    temporary = path.with_name(
        f".{path.name}.{secrets.token_hex(8)}.tmp"
    )  # not the pid: processes on two machines may have the same one
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_path(path.parent)  # the rename itself must survive a power failure, too


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces `path` when the block ends, or is deleted if the block raises.

    If `path` is a symbolic link, its target is replaced and the link stays.
    """
    path = path.resolve()
    temporary, old = (path.with_name(f".{path.name}.{secrets.token_hex(8)}.{kind}") for kind in ("tmp", "old"))
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if path.exists():
            path.replace(old)
        temporary.replace(path)
    finally:
        if old.exists() and not path.exists():  # interrupted between the two renames
            old.replace(path)
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)
    fsync_path(path.parent)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a file's content; a reader finds the old or the new content, even after a crash."""
    with atomic_file(path) as file:
        file.write(data)


def fsync_path(path: Path) -> None:
    """Flush a file's content, or the renames inside a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def compute_sha256(path: Path) -> str:
    """Return the SHA-256 checksum of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
