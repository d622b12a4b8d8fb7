"""What the sections of a config are declared with."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from choral.core.errors import ConfigError


def tuning(default: Any) -> Any:
    """Declare a field that may change between two starts of the same run."""
    return field(default=default, metadata={"tuning": True})


def refusing(default: Any, **words: str) -> Any:
    """Declare a field for which certain words are refused with a reason of their own: word to reason."""
    return field(default=default, metadata={"refused": words})


def check(condition: bool, key: str, expected: str) -> None:
    """Raise ConfigError, naming the key and what was expected, unless the condition holds."""
    if not condition:
        raise ConfigError(f"{key}: {expected}")


def is_fraction(value: float) -> bool:
    """Whether 0 <= value < 1."""
    return 0.0 <= value < 1.0


def split_at_commas(text: str) -> list[str]:
    """Return the parts between commas, stripped; those within brackets or parentheses, as in scales[0.9,1], divide nothing.

    A text without content has no parts; brackets that are not closed are for whoever reads the parts to see.
    """
    parts, depth = [""], 0
    for character in text if text.strip() else "":
        depth += (character in "[(") - (character in "])")
        if character == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts] if text.strip() else []
