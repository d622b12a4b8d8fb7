"""A file of JSON lines that several processes append to: complete lines or none, and a torn one costs itself alone."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from choral.core.errors import ChoralError

Line = dict[str, Any]


@dataclass(frozen=True)
class Journal:
    """A file of lines, each a JSON object with the key "id"; the last line of an id is the one that counts."""

    path: Path

    def read(self) -> tuple[list[Line], int]:
        """Return the lines, of each id the last one at the place of the first, and how many are damaged and left out.

        Raises:
            ChoralError: the file is there and cannot be read.
        """
        try:
            return _lines(self.path.read_bytes())
        except FileNotFoundError:
            return [], 0
        except OSError as error:
            raise ChoralError(f"{self.path}: cannot be read: {error.strerror or error}") from error

    def append(self, choose: Callable[[list[Line]], Sequence[Line]]) -> list[Line]:
        """Append what `choose` makes of the lines that are there, which nobody else can append to meanwhile.

        A last line that an earlier process did not come to finish is closed first, so that it spoils no other.

        Returns:
            the lines that are there now, as `read` does.

        Raises:
            ChoralError: the file cannot be written; it is as it was before.
        """
        try:
            with self._locked() as file:
                content = file.read()
                lines, _ = _lines(content)
                new = choose(lines)
                if not new:
                    return lines
                text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in new).encode()
                torn = bool(content) and not content.endswith(b"\n")
                _write(file, len(content), b"\n" + text if torn else text)
                return _lines(content + b"\n" + text)[0]
        except OSError as error:
            raise ChoralError(f"{self.path}: cannot be written: {error.strerror or error}") from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # ends with the file, or its process
            file.seek(0)
            yield file


def _write(file: BinaryIO, size: int, text: bytes) -> None:
    """Append, or leave the file as it was: a full disk takes a part of a line without an error."""
    try:
        if file.write(text) != len(text):
            raise OSError(None, "the disk is full")
        os.fsync(file.fileno())
    except OSError:
        os.ftruncate(file.fileno(), size)
        raise


def _lines(content: bytes) -> tuple[list[Line], int]:
    found: dict[str, Line] = {}
    damaged = 0
    for text in content.split(b"\n"):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
            found[str(line["id"])] = line
        except (ValueError, KeyError, TypeError):
            damaged += 1
    return list(found.values()), damaged
