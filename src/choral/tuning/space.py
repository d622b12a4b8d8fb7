"""The search space: ranges and choices by config key, and the conversion between its points and configs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from choral.config import Config
from choral.config.files import to_dict, with_overrides
from choral.config.tune import STRENGTH
from choral.core.errors import ConfigError
from choral.tuning.strength import MAX_FACTOR, has_own_strength, scale_strengths

_BACKBONE_STRATEGIES = ("full", "partial", "gradual", "lp_ft")  # strategies that train more than the head
Value = float | int | str
"""The value of one key as Optuna stores it; a choice is stored as its text."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included.

    The repr of this class and of `Choice` is stored in space.json to recognise the same space: do not rename fields.

    Attributes:
        log: sample uniformly in the logarithm.
        step: distance of the grid that starts at `low`; None for a continuous range.
        whole: whether the values are integers.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None
    whole: bool = False

    def contains(self, value: Any) -> bool:
        """Return whether a value of the config lies in the range."""
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not self.low <= value <= self.high:
            return False
        steps = (value - self.low) / self.step if self.step else 0.0
        return math.isclose(steps, round(steps), abs_tol=1e-9)

    def boundary_values(self) -> list[Any]:
        """Return the values that are validated in a config before anything is started."""
        return [int(self.low), int(self.high)] if self.whole else [self.low, self.high]


@dataclass(frozen=True)
class Choice:
    """A list of values of any type, by their text."""

    values: Mapping[str, Any]

    def contains(self, value: Any) -> bool:
        """Return whether a value of the config is one of the choices."""
        return _value_text(value) in self.values

    def boundary_values(self) -> list[Any]:
        """Return the values that are validated in a config before anything is started."""
        return list(self.values.values())


Space = Mapping[str, Range | Choice]


def build_search_space(config: Config, rates: Sequence[str]) -> Space:
    """Return the search space of a config: `tune.space`, or by default the keys that affect its strategy and model.

    Args:
        config: of one model.
        rates: those of drop_rate and drop_path_rate that the model accepts.

    Raises:
        ConfigError: the space is empty, a key is unknown, or a value is invalid for its key; the message names it.
    """
    defaults = _default_ranges(config, rates)
    if not config.tune.space:
        if not defaults:
            raise ConfigError(
                f"tune.space: with finetune.strategy: {config.finetune.strategy} there are no default ranges: "
                + (
                    "they depend on the strategy that it resolves to: choose full, partial, gradual, lp_ft or head"
                    if config.finetune.strategy == "auto"
                    else "the head is fitted, with its regularisation chosen on the validation split; list keys in tune.space"
                )
            )
        return defaults
    space: dict[str, Range | Choice] = {}
    for key, requested in config.tune.space.items():
        if requested == "auto":
            if key not in defaults:
                available = f" (only for {', '.join(defaults)})" if defaults else ""
                raise ConfigError(f"tune.space.{key}: it has no default range{available}; expected low and high")
            space[key] = defaults[key]
        elif isinstance(requested, tuple):
            space[key] = Choice({_value_text(value): value for value in requested})
        else:
            space[key] = _parse_range(config, key, requested)
    _validate_space(config, space)
    return space


def config_overrides(config: Config, space: Space, point: Mapping[str, Value]) -> dict[str, Any]:
    """Return the overrides (dotted config key to value) for a point of a space.

    Args:
        config: the base config of the search.
        space: that contains the point.
        point: key to value; other keys are not overridden.
    """
    changes: dict[str, Any] = {}
    for key, value in point.items():
        axis = space[key]
        if isinstance(axis, Choice):
            changes[key] = axis.values[str(value)]
        elif key == STRENGTH:
            changes |= scale_strengths(config.augment, float(value))
        else:
            changes[key] = int(value) if axis.whole else float(f"{float(value):.4g}")
    return changes


def point_from_config(config: Config, space: Space) -> dict[str, Value]:
    """Return the point of the config's own values, without the keys whose values are outside the space."""
    point: dict[str, Value] = {}
    for key, axis in space.items():
        value = (1.0 if has_own_strength(config.augment) else 0.0) if key == STRENGTH else _config_value(config, key)
        if axis.contains(value):
            point[key] = _value_text(value) if isinstance(axis, Choice) else value
    return point


def _default_ranges(config: Config, rates: Sequence[str]) -> Space:
    """Return the default ranges, around the values of the config."""
    strategy, train = config.finetune.strategy, config.train
    if strategy not in (*_BACKBONE_STRATEGIES, "head"):
        return {}
    ranges: dict[str, Range | Choice] = {}
    ranges["train.lr"] = Range(1e-5, 1e-1, log=True) if train.lr == "auto" else _decade_around(train.lr)
    ranges["train.weight_decay"] = (
        _decade_around(train.weight_decay) if train.weight_decay else Range(1e-4, 0.3, log=True)
    )
    if strategy in _BACKBONE_STRATEGIES:
        ranges["train.layer_decay"] = Range(min(0.5, train.layer_decay), 1.0)
    if "drop_rate" in rates:
        ranges["model.drop_rate"] = Range(0.0, max(0.5, config.model.drop_rate))
    if "drop_path_rate" in rates and strategy in _BACKBONE_STRATEGIES:
        ranges["model.drop_path_rate"] = Range(0.0, max(0.3, config.model.drop_path_rate))
    ranges[STRENGTH] = Range(0.0, MAX_FACTOR)
    return ranges


def _decade_around(value: float) -> Range:
    return Range(float(f"{value / 10:.4g}"), float(f"{value * 10:.4g}"), log=True)


def _parse_range(config: Config, key: str, requested: Mapping[str, Any]) -> Range:
    low, high, step = requested["low"], requested["high"], requested.get("step")
    if key == STRENGTH:
        if low < 0 or high > MAX_FACTOR:
            raise ConfigError(f"tune.space.{key}: expected a range within 0 to {MAX_FACTOR:g}")
        return Range(low, high, bool(requested.get("log")), step)
    value = _config_value(config, key)
    whole = all(isinstance(number, int) for number in (low, high, step or 1)) and not isinstance(value, float)
    return Range(low, high, bool(requested.get("log")), step, whole)


def _validate_space(config: Config, space: Space) -> None:
    """Check that each key takes the boundary_values of its range, or all its choices, as a config file's would be."""
    for key, axis in space.items():
        if key != STRENGTH:
            for value in axis.boundary_values():
                with_overrides(config, {key: value}, f"tune.space.{key}")


def _config_value(config: Config, key: str) -> Any:
    values: Any = to_dict(config)
    for part in key.split("."):
        if not isinstance(values, Mapping) or part not in values:
            # Raises the same error as for an unknown key in a file, with the closest name.
            with_overrides(config, {key: 0}, f"tune.space.{key}")
            raise ConfigError(f"tune.space.{key}: is a section, not a value")
        values = values[part]
    return values


def _value_text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value_text, value))}]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:g}" if isinstance(value, int | float) else str(value)
