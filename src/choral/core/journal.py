"""A JSON Lines file that several processes append to. Appends are atomic; an incomplete line does not affect the others."""

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
    """A file of lines, each a JSON object with the key "id"; the last line with an id overrides the ones before."""

    path: Path

    def read(self) -> tuple[list[Line], int]:
        """Return the lines and the number of damaged lines, which are skipped.

        Each id occurs once: its last line, at the position of its first.

        Raises:
            ChoralError: the file exists and cannot be read.
        """
        try:
            return _parse_lines(self.path.read_bytes())
        except FileNotFoundError:
            return [], 0
        except OSError as error:
            raise ChoralError(f"{self.path}: cannot be read: {error.strerror or error}") from error

    def append(self, make_lines: Callable[[list[Line]], Sequence[Line]]) -> list[Line]:
        """Append the lines that `make_lines` returns for the existing lines, while the file is locked.

        If the last line is incomplete, a newline is written first, so that it does not damage the new ones.

        Returns:
            all lines, as `read` returns them.

        Raises:
            ChoralError: the file cannot be written; its content is unchanged.
        """
        try:
            with self._locked() as file:
                content = file.read()
                lines, _ = _parse_lines(content)
                new = make_lines(lines)
                if not new:
                    return lines
                text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in new).encode()
                torn = bool(content) and not content.endswith(b"\n")
                _append_or_restore(file, len(content), b"\n" + text if torn else text)
                return _parse_lines(content + b"\n" + text)[0]
        except OSError as error:
            raise ChoralError(f"{self.path}: cannot be written: {error.strerror or error}") from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # ends with the file, or its process
            file.seek(0)
            yield file


def _append_or_restore(file: BinaryIO, size: int, text: bytes) -> None:
    """Append to the file, or restore it: on a full disk a part of a line may be written without an error."""
    try:
        if file.write(text) != len(text):
            raise OSError(None, "the disk is full")
        os.fsync(file.fileno())
    except OSError:
        os.ftruncate(file.fileno(), size)
        raise


def _parse_lines(content: bytes) -> tuple[list[Line], int]:
    lines: dict[str, Line] = {}
    damaged = 0
    for text in content.split(b"\n"):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
            lines[str(line["id"])] = line
        except (ValueError, KeyError, TypeError):
            damaged += 1
    return list(lines.values()), damaged
