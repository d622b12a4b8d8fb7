"""From pydantic's validation errors to messages that name the dotted key, what was expected, and what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ValidationError

from choral.config.fields import Expected
from choral.config.text import alternatives
from choral.core.errors import ConfigError, did_you_mean

_OUT_OF_RANGE = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")
_LIMITS = {"ge": "{} or more", "gt": "more than {}", "le": "at most {}", "lt": "less than {}"}
_TYPES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


@cache
def field_types(section: type[BaseModel]) -> dict[str, Any]:
    """Return the type of each field of a section, with its metadata."""
    hints = get_type_hints(section, include_extras=True)
    return {name: hints[name] for name in section.model_fields}


def unknown_key(key: str, prefix: str, section: type[BaseModel]) -> ConfigError:
    """Return the error for a key that `section` does not have, with the nearest one that it has."""
    names = list(section.model_fields)
    hint = did_you_mean(key, names)
    hint = hint.replace("Did you mean ", f"Did you mean {prefix}") if hint else f" Known keys: {', '.join(names)}."
    return ConfigError(f"{prefix}{key}: unknown key.{hint}")


def config_error(section: type[BaseModel], error: ValidationError) -> ConfigError:
    """Return the error for the first mistake; an unknown key goes first, since other mistakes may follow from it."""
    details = error.errors(include_url=False)
    detail = next((one for one in details if one["type"] == "extra_forbidden"), details[0])
    kind, location = detail["type"], list(detail["loc"])
    if kind == "extra_forbidden":
        *above, key = location
        prefix, owner = _locate(section, above)
        return unknown_key(str(key), f"{prefix}." if prefix else "", owner)
    if kind == "missing" and isinstance(location[-1], str):
        return ConfigError(f"{_locate(section, location[:-1])[0]}.{location[-1]}: missing".lstrip("."))
    key, annotation = _locate(section, location[:-1] if kind == "missing" else location)
    value = detail["input"]
    if kind in _OUT_OF_RANGE:
        found = f"{value:g}" if isinstance(value, float) else str(value)
        return ConfigError(f"{key}: expected {_range_text(annotation)}, got {found}")
    found = "nothing" if value is None else f"'{value}'"
    return ConfigError(f"{key or 'the file'}: expected {_type_text(annotation)}, got {found}")


def _locate(section: type[BaseModel], location: Sequence[int | str]) -> tuple[str, Any]:
    """Return the dotted key of an error's location, and the type there."""
    key, current = "", section
    for part in location:
        kinds = alternatives(current)
        sections = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        container = next((kind for kind in kinds if get_origin(kind) in (tuple, Mapping)), None)
        if sections:
            key, current = f"{key}.{part}" if key else str(part), field_types(sections[0])[str(part)]
        elif isinstance(part, int) and container is not None:
            items = get_args(container)
            key, current = f"{key}[{part}]", items[0] if items[-1] is Ellipsis else items[part]
        elif isinstance(part, str) and container is not None:
            key, current = f"{key}.{part}", get_args(container)[1]
        else:
            break  # the rest names the branches of a union
    return key, current


def _type_text(annotation: Any) -> str:
    """Return what a field takes, in words: "a number, or auto"."""
    kinds = alternatives(annotation)
    literals = [kind for kind in kinds if get_origin(kind) is Literal]
    words = [word for kind in literals for word in get_args(kind)]
    others = [kind for kind in kinds if kind is not type(None) and kind not in literals]
    if not others:
        return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else str(words[0])
    return ", or ".join((_single_type_text(others[0]), *words))


def _single_type_text(kind: Any) -> str:
    items = get_args(kind)
    if get_origin(kind) is tuple:
        return "a list" if items[-1] is Ellipsis else f"a list of {len(items)} numbers"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "a section with keys"
    return _TYPES.get(kind, "keys and values")


def _range_text(annotation: Any) -> str:
    """Return the range of a number, in words: "more than 0, or auto"."""
    kinds, metadata = alternatives(annotation), _metadata(annotation)
    expected = next((item.text for item in metadata if isinstance(item, Expected)), None)
    if expected is not None:
        return expected
    words = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    words += ["null"] if type(None) in kinds else []
    return ", or ".join((_limits_text(metadata), *words))


def _limits_text(metadata: Sequence[Any]) -> str:
    limits = {name: getattr(item, name) for item in metadata for name in _LIMITS if hasattr(item, name)}
    if limits.keys() == {"ge", "le"}:
        return f"{limits['ge']} to {limits['le']}"
    return " and ".join(_LIMITS[name].format(limit) for name, limit in limits.items())


def _metadata(annotation: Any) -> list[Any]:
    """Return the metadata of a type and of the members of a union."""
    found: list[Any] = []
    if get_origin(annotation) is Annotated:
        annotation, *found = get_args(annotation)
    members = get_args(annotation) if len(alternatives(annotation)) > 1 else ()
    return [*found, *(item for member in members for item in _metadata(member))]
