"""Which configs are the same experiment: the values that bind a run, their difference and their hash."""

from __future__ import annotations

import hashlib
from typing import Any, get_args

from choral.config.config import Config
from choral.config.data import DataConfig
from choral.config.fields import NON_BINDING
from choral.config.messages import field_types
from choral.config.section import Section


def binding_values(config: Config) -> dict[str, Any]:
    """Return the values that define the experiment, by dotted key: all but `NonBinding` fields and the run's name."""
    values: dict[str, Any] = {}

    def collect(section: Section, prefix: str) -> None:
        for name, annotation in field_types(type(section)).items():
            value, key = getattr(section, name), prefix + name
            if NON_BINDING in get_args(annotation)[1:] or key == "run":
                continue
            if isinstance(value, Section):
                collect(value, f"{key}.")
            else:
                values[key] = value

    collect(config, "")
    return values


def binding_difference(old: Config, new: Config) -> list[str]:
    """Return a line "key: old -> new" for each binding value that differs; none: the two are the same experiment."""
    before, after = binding_values(old), binding_values(new)
    return [f"{key}: {value} -> {after[key]}" for key, value in before.items() if after[key] != value]


def config_hash(config: Config) -> str:
    """Return 12 hexadecimal digits that identify the experiment.

    Only values that differ from the defaults enter the hash, so that a new key does not change the hash of old configs.
    """
    defaults = binding_values(Config(data=DataConfig(shards="shards")))
    changed = sorted(f"{key}: {value!r}" for key, value in binding_values(config).items() if value != defaults[key])
    return hashlib.sha256("\n".join(changed).encode()).hexdigest()[:12]
