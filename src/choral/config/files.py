"""Read YAML files and `key=value` overrides into a `Config`, and write it as YAML.

Scalars are read by the type of their field, not by YAML's rules: `lr: 3e-4` is a number and `name: no` is text. Duplicate
keys, unknown keys and values of another type are errors that name the file and the key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from choral.config.augment import expand_preset
from choral.config.config import Config
from choral.config.messages import field_types, unknown_key
from choral.config.section import S, Section, validate
from choral.core.errors import ConfigError


class _UniqueKeyLoader(yaml.BaseLoader):  # type: ignore[misc]
    """Loads all scalars as strings, and rejects mappings with duplicate keys."""


def _construct_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = str(loader.construct_object(key_node, deep=True))
        if key in mapping:
            raise ConfigError(f"line {key_node.start_mark.line + 1}: duplicate key '{key}'")
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


_UniqueKeyLoader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)


def _parse_yaml(text: str) -> Any:
    """Return a string, or lists and mappings of strings; tags cannot make anything else."""
    loader = _UniqueKeyLoader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Return the config of a YAML file, the files it is based on, and `key=value` overrides.

    Raises:
        ConfigError: a file is missing, a key is unknown, a value has the wrong type or is out of range, or fields cannot be
            combined; the message names the file (or the override) and the key.
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
    return config_from_dict(values, where=str(path))


def load_section(path: Path, section: type[S]) -> S:
    """Return a section read from its own YAML file; keys and values are checked like those of a config.

    Raises:
        ConfigError: naming the file and the key.
    """
    values = load_mapping(path)
    try:
        return validate(section, values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def config_from_dict(values: Mapping[str, Any], where: str) -> Config:
    """Return the config with these values, nested like its sections; error messages begin with `where`."""
    try:
        return validate(Config, values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def with_overrides(config: Config, changes: Mapping[str, Any], where: str) -> Config:
    """Return `config` with the dotted keys in `changes` replaced, validated like a file."""
    values = to_dict(config)
    for key, value in changes.items():
        try:
            _set_dotted(values, key, value)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
    return config_from_dict(values, where)


def to_dict(section: Section) -> dict[str, Any]:
    """Return a config or section as nested dicts and lists of built-in values."""
    return section.model_dump(mode="json")


def to_yaml(config: Config) -> str:
    """Return the resolved config as YAML, which `load_config` reads back into an equal config."""
    text: str = yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True, width=120)
    return text


def parse_override(text: str) -> tuple[str, Any]:
    """Return key and value of "train.lr=3e-4". The value may be any YAML, such as [1, 2] or {model.name: resnet18}."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"'{text}': expected key=value, such as train.lr=3e-4")
    try:
        return key.strip(), _parse_yaml(value) if value.strip() else ""
    except yaml.YAMLError:
        raise ConfigError(f"'{text}': the value is not valid YAML") from None


def _read_with_bases(path: Path, chain: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in chain:
        raise ConfigError(f"{path}: base: leads back to this file through the files it is based on")
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
    for key in ("run", "step"):  # names are not inherited
        inherited.pop(key, None)
    return _merge(inherited, values)


def load_mapping(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file, with scalars as strings.

    Raises:
        ConfigError: the file is missing, not UTF-8, not valid YAML, or not a mapping.
    """
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
    """Return `below` updated by `above`, mapping by mapping; lists and scalars are replaced as a whole."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _set_dotted(values: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    section: type[BaseModel] = Config
    prefix = ""
    for parent in parents:
        section = _nested_section(section, parent, prefix)
        prefix += parent + "."
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{prefix[:-1]}: expected a section with keys, got '{values}'")
    if last not in section.model_fields:
        raise unknown_key(last, prefix, section)
    if dotted == "augment.preset":  # replaces all keys set before
        values.update(expand_preset({last: value}))
        return
    if dotted == "augment" and isinstance(value, dict):
        value = expand_preset(value)
    below = values.get(last)
    values[last] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value


def _nested_section(section: type[BaseModel], name: str, prefix: str) -> type[BaseModel]:
    if name not in section.model_fields:
        raise unknown_key(name, prefix, section)
    nested = field_types(section)[name]
    if not (isinstance(nested, type) and issubclass(nested, BaseModel)):
        raise ConfigError(f"{prefix}{name}: has no keys below it")
    return nested
