"""Markdown whose words come from data: names of classes and runs mean themselves, whatever they are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from unicodedata import category

_MARKS = re.compile(r"([\\`*\[\]|~$#]|(?<!\w)_|_(?!\w))")  # underscores within words mean nothing
_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
_JOINERS = "\u200c\u200d"  # parts of words in several scripts; other invisible marks could turn text around


def plain(text: object) -> str:
    """Return text that reads as it stands, on one line."""
    seen = "".join(" " if _unseen(one) else one for one in str(text))
    return _MARKS.sub(r"\\\1", " ".join(seen.split()).translate(_ENTITIES))


def listed(names: Sequence[str], most: int = 50) -> str:
    """Return names in a sentence; of very many the first."""
    listed_names = ", ".join(map(plain, names[:most]))
    return listed_names if len(names) <= most else f"{listed_names} and {len(names) - most} more"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of cells that are Markdown already, numbers among them aligned as text."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def block(language: str, *lines: str) -> str:
    """Return code that is shown as it stands; of ours, not of data."""
    return "\n".join((f"```{language}", *lines, "```"))


def document(*parts: str) -> str:
    """Return parts with an empty line between them; empty ones are left out."""
    return "\n\n".join(part for part in parts if part) + "\n"


def _unseen(character: str) -> bool:
    kind = category(character)
    return (kind.startswith("C") or kind in ("Zl", "Zp")) and character not in _JOINERS
