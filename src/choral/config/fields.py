"""What the fields of config sections are declared with: number ranges, `NonBinding`, and `check` for everything else."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, TypeVar

from annotated_types import Ge, Gt, Le, Lt

from choral.core.errors import ConfigError

T = TypeVar("T")

NON_BINDING = "non-binding"
NonBinding = Annotated[T, NON_BINDING]
"""A field that decides how fast or how visibly a run works, not what it computes: it may change when a run continues."""


@dataclass(frozen=True)
class Expected:
    """Metadata of a number: what messages say was expected, instead of the range and the alternatives."""

    text: str


PositiveInt = Annotated[int, Ge(1)]
NonNegativeInt = Annotated[int, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
NonNegativeFloat = Annotated[float, Ge(0)]
Probability = Annotated[float, Ge(0), Le(1)]
"""From 0 to 1, both included."""
Fraction = Annotated[float, Ge(0), Lt(1)]
"""From 0 to 1, without 1."""

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Of runs, members and whatever else names a directory."""


def check(condition: bool, key: str, expected: str) -> None:
    """Raise ConfigError, naming the key and what was expected, unless the condition holds."""
    if not condition:
        raise ConfigError(f"{key}: {expected}")
