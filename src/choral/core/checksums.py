"""Folders whose every byte is vouched for: SHA256SUMS lists all their files, as `sha256sum` writes and reads it.

That tells accidents, not forgers, who would write new checksums.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from choral.core.errors import DataError
from choral.core.files import sha256_of, written_aside

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  (\S[^\n]*)")
_DAMAGED = "copy the folder again, or export it again"


def seal(path: Path, changed: Mapping[str, bytes] | None = None) -> None:
    """Write the checksums of the files in a folder, those in hidden ones left out; all become readable by everybody.

    Args:
        path: of the folder.
        changed: content of files, by name, that are put there in the same moment: whoever stops this leaves the folder as it
            was, or sealed anew.
    """
    changed = changed or {}
    sums = {name: sha256_of(path / name) for name in _names(path) if name not in changed}
    sums |= {name: hashlib.sha256(data).hexdigest() for name, data in changed.items()}
    lines = "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))
    with contextlib.ExitStack() as all_at_once:
        for name, data in {**changed, SUMS: lines.encode()}.items():
            file = all_at_once.enter_context(written_aside(path / name))
            file.write(data)
            file.flush()  # a full disk shows before the first is replaced
    for name in (*sums, SUMS):
        (path / name).chmod(0o644)  # safetensors writes for the owner alone


def sums_of(path: Path) -> dict[str, str]:
    """Return the files of a sealed folder, relative to it, with the checksums that they had.

    Raises:
        DataError: the list is missing or damaged.
    """
    try:
        text = (path / SUMS).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path / SUMS}: cannot be read ({error}); {_DAMAGED}") from error
    lines = text.split("\n")
    found = [match.groups() for line in lines[:-1] if (match := _LINE.fullmatch(line))]
    names = [name for _, name in found]
    complete = lines[-1] == "" and len(found) == len(lines) - 1 and names and names == sorted(set(names))
    if not complete or any(leaves(name) for name in names):
        raise DataError(f"{path / SUMS}: is damaged; {_DAMAGED}")
    return {name: own for own, name in found}


def check_sums(path: Path) -> dict[str, str]:
    """Compute the checksum of each file of a sealed folder again, and return what `sums_of` does.

    Raises:
        DataError: naming the first file that is missing or not what it was.
    """
    sums = sums_of(path)
    for name, expected in sums.items():
        check_sum(path / name, expected)
    return sums


def check_sum(file: Path, expected: str) -> None:
    """Compute the checksum of a file again; DataError where it is missing or not what it was."""
    try:
        own = sha256_of(file)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error}); {_DAMAGED}") from error
    if own != expected:
        raise DataError(f"{file}: is damaged: its SHA-256 is {own}, expected {expected}; {_DAMAGED}")


def leaves(name: str) -> bool:
    """Return whether a name that comes from a file leads out of the folder."""
    return name.startswith("/") or ".." in name.split("/") or "\\" in name


def _names(path: Path) -> list[str]:
    files = (file.relative_to(path) for file in path.rglob("*") if file.is_file())
    return sorted(
        file.as_posix() for file in files if file.as_posix() != SUMS and not any(p[0] == "." for p in file.parts)
    )
