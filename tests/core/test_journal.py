"""The journal: concurrent writers, incomplete and damaged lines, a full disk."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from choral.core.errors import ChoralError
from choral.core.journal import Journal


def append(journal: Journal, *names: str) -> list[str]:
    return [str(line["id"]) for line in journal.append(lambda lines: [{"id": name} for name in names])]


def test_the_last_line_with_an_id_overrides_the_ones_before(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "deep" / "lines.jsonl")
    assert journal.read() == ([], 0)
    journal.append(lambda lines: [{"id": "a", "step": "old"}, {"id": "b"}])
    there = journal.append(lambda lines: [{"id": "a", "step": "new"}])
    assert there == [{"id": "a", "step": "new"}, {"id": "b"}]
    assert journal.read() == (there, 0)


def test_an_incomplete_line_does_not_affect_other_lines(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "lines.jsonl")
    append(journal, "a", "b")
    whole = journal.path.read_bytes()
    for length in range(len(whole) + 1):
        journal.path.write_bytes(whole[:length])
        complete = [
            name for name, end in (("a", 11), ("b", 23)) if length >= end
        ]  # without the newline it is whole, too
        torn = length not in (0, 11, 12, 23, 24)
        assert ([line["id"] for line in journal.read()[0]], journal.read()[1]) == (complete, int(torn)), length
        assert append(journal, "c") == [*complete, "c"]
        assert journal.read()[1] == int(torn)


@pytest.mark.parametrize("damage", [b"\xff\xfe{", b"[1, 2]", b"{}", b'{"id"', b"null"])
def test_a_damaged_line_is_counted_and_skipped(tmp_path: Path, damage: bytes) -> None:
    journal = Journal(tmp_path / "lines.jsonl")
    append(journal, "a", "b", "c")
    lines = journal.path.read_bytes().splitlines()
    lines[1] = damage
    journal.path.write_bytes(b"\n".join(lines) + b"\n")
    assert journal.read() == ([{"id": "a"}, {"id": "c"}], 1)


def test_concurrent_appends_lose_and_duplicate_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "lines.jsonl")

    def write(writer: int) -> None:
        for number in range(20):
            names = {f"own-{writer}-{number}", f"common-{number}"}

            def new(lines: list[dict[str, Any]], names: set[str] = names) -> list[dict[str, Any]]:
                return [{"id": name} for name in names - {str(line["id"]) for line in lines}]

            Journal(journal.path).append(new)

    with ThreadPoolExecutor(4) as pool:  # a lock belongs to an opened file: threads exclude each other as processes do
        list(pool.map(write, range(4)))
    names = [line.split('"')[3] for line in journal.path.read_text().splitlines()]
    assert len(names) == len(set(names)) == 4 * 20 + 20


def test_a_full_disk_leaves_the_file_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "lines.jsonl")
    append(journal, "a")
    before = journal.path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ChoralError, match=r"lines\.jsonl: cannot be written: No space left on device"):
            append(journal, "b")
    assert journal.path.read_bytes() == before
    assert append(journal, "c") == ["a", "c"]
