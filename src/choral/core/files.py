"""Files that are there completely or not at all, and the refusal of everything that is not a local path."""

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


def local_only(path: str) -> str:
    """Return `path` unchanged; ConfigError where another opener might see a command or an address in it.

    webdataset runs `pipe:` and `::` as commands; choral opens local files itself and never hands a path on.
    """
    if path.startswith("pipe:") or "::" in path or _SCHEME.match(path):
        raise ConfigError(f"{path}: only local files are opened, no commands (pipe:, ::) and no addresses (scheme://)")
    return path


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write that becomes `path` once it is complete and on disk, or vanishes if an exception passes."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")  # processes of two machines may share an id
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    sync(path.parent)  # the new name, too, must survive a power cut


@contextlib.contextmanager
def folder_aside(path: Path) -> Iterator[Path]:
    """Give a folder to fill that becomes `path`, in place of what is there, once it is complete; or vanishes.

    Where `path` is a symbolic link, the link stays, and what it leads to is replaced.
    """
    path = path.resolve()
    aside, old = (path.with_name(f".{path.name}.{secrets.token_hex(8)}.{kind}") for kind in ("tmp", "old"))
    try:
        aside.mkdir(parents=True)
        yield aside
        if path.exists():
            path.replace(old)
        aside.replace(path)
    finally:
        if old.exists() and not path.exists():  # stopped between the two renames
            old.replace(path)
        for leftover in (aside, old):
            shutil.rmtree(leftover, ignore_errors=True)
    sync(path.parent)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a file's content: a reader, also one after a crash, finds the old content or the new one."""
    with written_aside(path) as file:
        file.write(data)


def sync(path: Path) -> None:
    """Make a file's content, or the renames inside a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 checksum of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
