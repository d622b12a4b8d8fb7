"""YAML files and `key=value` overrides to a `Config`, and back.

Scalars are read by the type of their field, not by YAML's rules: `lr: 3e-4` is a number and `name: no` is a word. A key
that stands twice, an unknown key and a value of another type are errors that name file and key.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml

from choral.config import Config, unknown_key
from choral.config.augment import expand_preset
from choral.config.fields import split_at_commas
from choral.core.errors import ConfigError

T = TypeVar("T")
_NULLS = ("null", "~", "", "none", "None")


class _UniqueKeyLoader(yaml.BaseLoader):  # type: ignore[misc]
    """All scalars as strings; a mapping in which a key stands twice is an error."""


def _construct_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = str(loader.construct_object(key_node, deep=True))
        if key in mapping:
            raise ConfigError(f"line {key_node.start_mark.line + 1}: key '{key}' stands twice")
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


_UniqueKeyLoader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)


def _parse_yaml(text: str) -> Any:
    """Return strings, lists and mappings of them; no tag makes anything else."""
    loader = _UniqueKeyLoader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Return the config of a YAML file, the files it is based on, and `key=value` overrides.

    Raises:
        ConfigError: a missing file, a misspelt key, a value of the wrong type or outside its range, fields that do not
            go together; the message names the file (or the override) and the key.
    """
    path = Path(path)
    values = _read_with_bases(path, ())
    for override in overrides:
        key, value = parse_override(override)
        try:
            _set_dotted(values, key, value)
        except ConfigError as error:
            raise ConfigError(f"{override}: {error}") from None
    values["run"] = values.get("run") or (path.stem if path.stem != "config" else path.resolve().parent.name)
    return from_values(values, where=str(path))


def load_typed(path: Path, kind: type[T]) -> T:
    """Return the frozen dataclass `kind` as a YAML file fills it in; keys and values are checked like those of a config.

    Raises:
        ConfigError: naming the file and the key.
    """
    try:
        built = _build(kind, load_mapping(path), "")
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if text.startswith(f"{path}: ") else f"{path}: {text}") from None
    assert isinstance(built, kind)
    return built


def from_values(values: Mapping[str, Any], where: str) -> Config:
    """Build a config from nested mappings of strings; `where` opens the messages of errors."""
    try:
        config = _build(Config, values, "")
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    assert isinstance(config, Config)
    return config


def with_overrides(config: Config, changes: Mapping[str, Any], where: str) -> Config:
    """Return `config` with the dotted keys of `changes` replaced, validated like a file."""
    values = to_values(config)
    for key, value in changes.items():
        try:
            _set_dotted(values, key, value)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
    return from_values(values, where)


def to_values(config: Any) -> dict[str, Any]:
    """Return a config dataclass as nested dicts and lists of plain values."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, tuple | list):
            return [plain(item) for item in value]
        return value

    result = plain(config)
    assert isinstance(result, dict)
    return result


def to_yaml(config: Config) -> str:
    """Return the resolved config as YAML that `load_config` reads back to an equal config."""
    text: str = yaml.safe_dump(to_values(config), sort_keys=False, allow_unicode=True, width=120)
    return text


def parse_override(text: str) -> tuple[str, Any]:
    """Split "train.lr=3e-4" into key and value; the value may be any YAML, such as [1, 2] or {model.name: resnet18}."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"'{text}': expected key=value, such as train.lr=3e-4")
    try:
        return key.strip(), _parse_yaml(value) if value.strip() else ""
    except yaml.YAMLError:
        raise ConfigError(f"'{text}': the value is not valid YAML") from None


def _read_with_bases(path: Path, chain: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in chain:
        raise ConfigError(f"{path}: base: leads back to a file that is based on this one")
    values = load_mapping(path)
    if isinstance(values.get("augment"), dict):
        try:
            values["augment"] = expand_preset(values["augment"])
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str) or not base:
        raise ConfigError(f"{path}: base: expected the path of one config file")
    inherited = _read_with_bases(path.parent / base, (*chain, path.resolve()))
    for own in ("run", "step"):  # a run's names are its own file's
        inherited.pop(own, None)
    return _merge(inherited, values)


def load_mapping(path: Path) -> dict[str, Any]:
    """Return the mapping of a YAML file, its scalars as strings; ConfigError where it holds no mapping, or is not there."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such config file")
    try:
        values = _parse_yaml(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        raise ConfigError(
            f"{path}: {line}not valid YAML: {getattr(error, 'problem', None) or 'cannot be read'}"
        ) from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file in UTF-8") from None
    values = {} if values in (None, "") else values
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys and values, such as 'seed: 1'")
    return values


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Lay one nested mapping over another; lists and scalars of the upper one replace those of the lower."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _set_dotted(values: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    config_type: Any = Config
    prefix = ""
    for parent in parents:
        config_type = _nested_type(config_type, parent, prefix)
        prefix += parent + "."
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{prefix[:-1]}: expected a section with keys, got '{values}'")
    if last not in {item.name for item in dataclasses.fields(config_type)}:
        raise unknown_key(last, prefix, config_type)
    if dotted == "augment.preset":  # it stands for all keys that were there before
        values.update(expand_preset({last: value}))
        return
    if dotted == "augment" and isinstance(value, dict):
        value = expand_preset(value)
    below = values.get(last)
    values[last] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value


def _nested_type(config_type: Any, name: str, prefix: str) -> Any:
    hints = _hints(config_type)
    if name not in hints:
        raise unknown_key(name, prefix, config_type)
    if not dataclasses.is_dataclass(hints[name]):
        raise ConfigError(f"{prefix}{name}: has no keys below it")
    return hints[name]


@cache
def _hints(config_type: Any) -> dict[str, Any]:
    return typing.get_type_hints(config_type)


def _build(config_type: Any, values: Any, prefix: str) -> Any:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{prefix.rstrip('.') or 'the file'}: expected a section with keys, got '{values}'")
    hints = _hints(config_type)
    for key in values:
        if key not in hints:
            raise unknown_key(key, prefix, config_type)
    for item in dataclasses.fields(config_type):
        refused = item.metadata.get("refused", {})
        if (word := str(values.get(item.name))) in refused:
            raise ConfigError(f"{prefix}{item.name}: {word}: {refused[word]}")
    built = {key: _convert(hints[key], value, prefix + key) for key, value in values.items()}
    for item in dataclasses.fields(config_type):
        optional = item.default is not dataclasses.MISSING or item.default_factory is not dataclasses.MISSING
        if not optional and item.name not in built:
            raise ConfigError(f"{prefix}{item.name}: missing")
    return config_type(**built)


def _convert(hint: Any, value: Any, key: str) -> Any:
    """Read `value` (a string, or a list or mapping of such, or already a plain value) as the type `hint`."""
    origin = get_origin(hint)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, key + ".")
    if origin in (Union, types.UnionType):
        if type(None) in get_args(hint) and (value is None or (isinstance(value, str) and value in _NULLS)):
            return None
        inner = [option for option in get_args(hint) if option is not type(None)]
        words = [option for option in inner if get_origin(option) is Literal and str(value) in get_args(option)]
        if words:
            return str(value)
        try:
            return _convert(inner[0], value, key)
        except ConfigError as error:
            choices = [word for option in inner if get_origin(option) is Literal for word in get_args(option)]
            if not choices:
                raise
            raise ConfigError(str(error).replace(", got", f", or {' or '.join(choices)}, got")) from None
    if origin is Literal:
        options = get_args(hint)
        if str(value) not in options:
            raise ConfigError(
                f"{key}: expected {', '.join(options[:-1])} or {options[-1]}, got '{value}'"
                if len(options) > 1
                else f"{key}: expected {options[0]}, got '{value}'"
            )
        return str(value)
    if origin is tuple:
        return _convert_tuple(hint, value, key)
    if hint is not Any and origin is not None and isinstance(value, Mapping):  # Mapping[str, Any] of member settings
        return {str(name): item for name, item in value.items()}
    return _convert_scalar(hint, value, key)


def _convert_tuple(hint: Any, value: Any, key: str) -> tuple[Any, ...]:
    arguments = get_args(hint)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        if isinstance(value, str) and arguments[0] is str:
            value = split_at_commas(value)
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{key}: expected a list, got '{value}'")
        return tuple(_convert(arguments[0], item, f"{key}[{number}]") for number, item in enumerate(value))
    if not isinstance(value, list | tuple) or len(value) != len(arguments):
        raise ConfigError(f"{key}: expected a list of {len(arguments)} numbers, got '{value}'")
    return tuple(
        _convert(inner, item, f"{key}[{number}]")
        for number, (inner, item) in enumerate(zip(arguments, value, strict=True))
    )


def _convert_scalar(hint: Any, value: Any, key: str) -> Any:
    expected = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}.get(
        hint, "keys and values"
    )
    if value is None or isinstance(value, list | tuple | Mapping):
        shown = "nothing" if value is None else f"'{value}'"
        raise ConfigError(f"{key}: expected {expected}, got {shown}")
    text = str(value)
    if hint is bool and text.lower() in ("true", "false", "yes", "no", "on", "off"):
        return text.lower() in ("true", "yes", "on")
    if hint is str:
        return text
    if hint in (int, float):
        try:
            number = float(text)
            if hint is float and math.isfinite(number):
                return number
            if hint is int and number == int(number):
                return int(text) if text.lstrip("+-").isdigit() else int(number)
        except (ValueError, OverflowError):
            pass
    raise ConfigError(f"{key}: expected {expected}, got '{text}'")
