"""Folders with a SHA256SUMS file that lists the checksum of every other file, in the format of `sha256sum`.

The checksums detect accidental damage. They do not detect tampering, since an attacker could write new ones.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from choral.core.errors import DataError
from choral.core.files import atomic_file, compute_sha256

CHECKSUMS_FILE = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  (\S[^\n]*)")
_REMEDY = "copy the folder again, or export it again"


def write_checksums(path: Path, changed: Mapping[str, bytes] | None = None) -> None:
    """Write the checksums of the files in a folder, except those in hidden ones, and make all of them world-readable.

    Args:
        path: of the folder.
        changed: new content by filename. These files are replaced together with the checksums; an interruption leaves
            the folder unchanged, or changed with matching checksums.
    """
    changed = changed or {}
    checksums = {name: compute_sha256(path / name) for name in _list_files(path) if name not in changed}
    checksums |= {name: hashlib.sha256(data).hexdigest() for name, data in changed.items()}
    lines = "".join(f"{checksums[name]}  {name}\n" for name in sorted(checksums))
    with contextlib.ExitStack() as stack:
        for name, data in {**changed, CHECKSUMS_FILE: lines.encode()}.items():
            file = stack.enter_context(atomic_file(path / name))
            file.write(data)
            file.flush()  # a full disk raises here, before the first file is replaced
    for name in (*checksums, CHECKSUMS_FILE):
        (path / name).chmod(0o644)  # safetensors makes files readable only by their owner


def read_checksums(path: Path) -> dict[str, str]:
    """Return the checksum of each file in a folder, by relative path, as SHA256SUMS lists them.

    Raises:
        DataError: SHA256SUMS is missing or damaged.
    """
    try:
        text = (path / CHECKSUMS_FILE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path / CHECKSUMS_FILE}: cannot be read ({error}); {_REMEDY}") from error
    lines = text.split("\n")
    entries = [match.groups() for line in lines[:-1] if (match := _LINE.fullmatch(line))]
    names = [name for _, name in entries]
    complete = lines[-1] == "" and len(entries) == len(lines) - 1 and names and names == sorted(set(names))
    if not complete or any(escapes_folder(name) for name in names):
        raise DataError(f"{path / CHECKSUMS_FILE}: is damaged; {_REMEDY}")
    return {name: checksum for checksum, name in entries}


def verify_checksums(path: Path) -> dict[str, str]:
    """Compare each file of a folder with its checksum in SHA256SUMS, and return what `read_checksums` returns.

    Raises:
        DataError: a file is missing or damaged; the message names the first one.
    """
    checksums = read_checksums(path)
    for name, expected in checksums.items():
        verify_checksum(path / name, expected)
    return checksums


def verify_checksum(file: Path, expected: str) -> None:
    """Raise DataError if a file is missing or does not have the expected checksum."""
    try:
        actual = compute_sha256(file)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error}); {_REMEDY}") from error
    if actual != expected:
        raise DataError(f"{file}: is damaged: its SHA-256 is {actual}, expected {expected}; {_REMEDY}")


def escapes_folder(name: str) -> bool:
    """Return whether a relative path that was read from a file leads out of its folder."""
    return name.startswith("/") or ".." in name.split("/") or "\\" in name


def _list_files(path: Path) -> list[str]:
    files = (file.relative_to(path) for file in path.rglob("*") if file.is_file())
    return sorted(
        file.as_posix()
        for file in files
        if file.as_posix() != CHECKSUMS_FILE and not any(p[0] == "." for p in file.parts)
    )
