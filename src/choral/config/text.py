"""Text of YAML files and overrides, read by the type of the field that it fills.

YAML's own rules would make `3e-4` a string and `no` a boolean. All scalars therefore arrive here as strings.
"""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from typing import Annotated, Any, Union, get_args, get_origin

NULLS = ("null", "~", "", "none", "None")
BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_UNTYPED = {"true": True, "false": False, "null": None, "none": None, "~": None}


def parse_text(value: Any, annotation: Any) -> Any:
    """Return `value` with its strings read as the type `annotation`; text of another type is returned as it is.

    A nullable field reads null, ~, none and the empty string as None. An integer may be written as 1e3. A tuple of strings
    may be one string with commas.
    """
    kinds = alternatives(annotation)
    if isinstance(value, list | tuple):
        return _parse_items(value, next((kind for kind in kinds if get_origin(kind) is tuple), None))
    if not isinstance(value, str):
        return value
    if type(None) in kinds and value in NULLS:
        return None
    if bool in kinds and value.lower() in BOOLEANS:
        return BOOLEANS[value.lower()]
    if tuple[str, ...] in kinds:
        return split_at_commas(value)
    return _parse_number(value, kinds) if int in kinds or float in kinds else value


def parse_untyped(value: Any) -> Any:
    """Return `value` with its strings read by what they look like, in lists and mappings as well.

    Finite numbers become numbers; true, false, null, none and ~, in any case, become Python's values. Everything else stays
    text, "nan" and "inf" included. Lists become tuples. The text "none" itself cannot be written.
    """
    if isinstance(value, Mapping):
        return {name: parse_untyped(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(parse_untyped(item) for item in value)
    if not isinstance(value, str):
        return value
    if value.lower() in _UNTYPED:
        return _UNTYPED[value.lower()]
    for kind in (int, float):
        try:
            number = kind(value)
        except ValueError:
            continue
        return value if isinstance(number, float) and not math.isfinite(number) else number
    return value


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """Return the types that `annotation` allows: those of a union, without the metadata of Annotated."""
    if get_origin(annotation) is Annotated:
        return alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(kind for option in get_args(annotation) for kind in alternatives(option))
    return (annotation,)


def split_at_commas(text: str) -> list[str]:
    """Return the stripped parts between commas; commas in brackets or parentheses, as in scales[0.9,1], do not split.

    Blank text has no parts. Unbalanced brackets are left to the caller to report.
    """
    parts, depth = [""], 0
    for character in text if text.strip() else "":
        depth += (character in "[(") - (character in "])")
        if character == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts] if text.strip() else []


def _parse_items(values: list[Any] | tuple[Any, ...], kind: Any) -> list[Any] | tuple[Any, ...]:
    if kind is None:
        return values
    first, *others = get_args(kind)
    if others == [Ellipsis]:
        return [parse_text(value, first) for value in values]
    if len(values) != 1 + len(others):
        return values
    return [parse_text(value, item) for value, item in zip(values, (first, *others), strict=True)]


def _parse_number(text: str, kinds: tuple[Any, ...]) -> Any:
    try:
        number = float(text)
    except ValueError:
        return text
    if float in kinds:
        return number
    if not math.isfinite(number) or number != int(number):
        return text
    return int(text) if text.lstrip("+-").isdigit() else int(number)
