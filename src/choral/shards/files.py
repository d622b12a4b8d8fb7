"""Files that are there completely or not at all, and the refusal of everything that is not a local path."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from choral.errors import ConfigError

_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")
_CHUNK_BYTES = 1 << 20


def local_only(path: str) -> str:
    """Return `path` unchanged; ConfigError where another opener might see a command or an address in it.

    webdataset runs `pipe:` and `::` as commands; choral opens local files itself and never hands a path on.
    """
    if path.startswith("pipe:") or "::" in path or _SCHEME.match(path):
        raise ConfigError(f"{path}: only local files are opened, no commands (pipe:, ::) and no addresses (scheme://)")
    return path


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` aside, make it durable and rename it to `path`: a reader finds the old file or the new one."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 checksum of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
