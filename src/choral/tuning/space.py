"""What is searched: ranges and choices by config key, and from a point of them to the keys that a trial sets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from choral.config import Config
from choral.config.files import to_values, with_overrides
from choral.config.tune import STRENGTH
from choral.core.errors import ConfigError
from choral.tuning.strength import LARGEST, has_strength, strengthened

_TRAINED = ("full", "partial", "gradual", "lp_ft")  # strategies that train more than the head
Value = float | int | str
"""Of one key, as Optuna keeps it: of a choice its text."""


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included; `log`: each factor as likely; `step`: a grid from low on."""

    low: float
    high: float
    log: bool = False
    step: float | None = None
    whole: bool = False

    def holds(self, value: Any) -> bool:
        """Return whether a value of the config is one of them."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not self.low <= value <= self.high:
            return False
        steps = (value - self.low) / self.step if self.step else 0.0
        return math.isclose(steps, round(steps), abs_tol=1e-9)

    def ends(self) -> list[Any]:
        """Return the values that are tried out on a config before anything is started."""
        return [int(self.low), int(self.high)] if self.whole else [self.low, self.high]


@dataclass(frozen=True)
class Choice:
    """Values of any kind, by their text."""

    values: Mapping[str, Any]

    def holds(self, value: Any) -> bool:
        """Return whether a value of the config is one of them."""
        return _text(value) in self.values

    def ends(self) -> list[Any]:
        """Return the values that are tried out on a config before anything is started."""
        return list(self.values.values())


Space = Mapping[str, Range | Choice]


def space_of(config: Config, rates: Sequence[str]) -> Space:
    """Return what is searched of a config: as `tune.space` says, else what is of use to its strategy and network.

    Args:
        config: of one network.
        rates: the drop rates that the network takes, of drop_rate and drop_path_rate.

    Raises:
        ConfigError: nothing would be searched; a key is unknown, or a value does not fit it; each is named.
    """
    usual = _usual(config, rates)
    if not config.tune.space:
        if not usual:
            raise ConfigError(
                f"tune.space: with finetune.strategy: {config.finetune.strategy} there is nothing to search by itself: "
                + (
                    "which keys are of use depends on what it turns out to be: choose full, partial, gradual, lp_ft or head"
                    if config.finetune.strategy == "auto"
                    else "the head is fitted, and its regularisation chosen on the validation split; name keys that you want"
                )
            )
        return usual
    space: dict[str, Range | Choice] = {}
    for key, given in config.tune.space.items():
        if given == "auto":
            if key not in usual:
                known = f"; there is one of {', '.join(usual)}" if usual else ""
                raise ConfigError(f"tune.space.{key}: there is no range for it by itself{known}: expected low and high")
            space[key] = usual[key]
        elif isinstance(given, tuple):
            space[key] = Choice({_text(value): value for value in given})
        else:
            space[key] = _range(config, key, given)
    _try_out(config, space)
    return space


def changes_of(config: Config, space: Space, point: Mapping[str, Value]) -> dict[str, Any]:
    """Return the dotted config keys, with values, that a point of a space sets in a config.

    Args:
        config: that the search began with.
        space: which the point lies in.
        point: key to value; keys that it lacks stay as they are.
    """
    changes: dict[str, Any] = {}
    for key, value in point.items():
        axis = space[key]
        if isinstance(axis, Choice):
            changes[key] = axis.values[str(value)]
        elif key == STRENGTH:
            changes |= strengthened(config.augment, float(value))
        else:
            changes[key] = int(value) if axis.whole else float(f"{float(value):.4g}")
    return changes


def own_point(config: Config, space: Space) -> dict[str, Value]:
    """Return the point that stands for the config itself; without the keys whose values do not lie in the space."""
    point: dict[str, Value] = {}
    for key, axis in space.items():
        value = (1.0 if has_strength(config.augment) else 0.0) if key == STRENGTH else _value(config, key)
        if axis.holds(value):
            point[key] = _text(value) if isinstance(axis, Choice) else value
    return point


def _usual(config: Config, rates: Sequence[str]) -> Space:
    """Return the ranges that are searched by themselves, about the values of the config."""
    strategy, train = config.finetune.strategy, config.train
    if strategy not in (*_TRAINED, "head"):
        return {}
    found: dict[str, Range | Choice] = {}
    found["train.lr"] = Range(1e-5, 1e-1, log=True) if train.lr == "auto" else _about(train.lr)
    found["train.weight_decay"] = _about(train.weight_decay) if train.weight_decay else Range(1e-4, 0.3, log=True)
    if strategy in _TRAINED:
        found["train.layer_decay"] = Range(min(0.5, train.layer_decay), 1.0)
    if "drop_rate" in rates:
        found["model.drop_rate"] = Range(0.0, max(0.5, config.model.drop_rate))
    if "drop_path_rate" in rates and strategy in _TRAINED:
        found["model.drop_path_rate"] = Range(0.0, max(0.3, config.model.drop_path_rate))
    found[STRENGTH] = Range(0.0, LARGEST)
    return found


def _about(value: float) -> Range:
    return Range(float(f"{value / 10:.4g}"), float(f"{value * 10:.4g}"), log=True)


def _range(config: Config, key: str, given: Mapping[str, Any]) -> Range:
    low, high, step = given["low"], given["high"], given.get("step")
    if key == STRENGTH:
        if low < 0 or high > LARGEST:
            raise ConfigError(f"tune.space.{key}: expected a range within 0 to {LARGEST:g}")
        return Range(low, high, bool(given.get("log")), step)
    value = _value(config, key)
    whole = all(isinstance(number, int) for number in (low, high, step or 1)) and not isinstance(value, float)
    return Range(low, high, bool(given.get("log")), step, whole)


def _try_out(config: Config, space: Space) -> None:
    """Check that each key takes the ends of its range, or all its choices, as a config file's would be."""
    for key, axis in space.items():
        if key != STRENGTH:
            for value in axis.ends():
                with_overrides(config, {key: value}, f"tune.space.{key}")


def _value(config: Config, key: str) -> Any:
    values: Any = to_values(config)
    for part in key.split("."):
        if not isinstance(values, Mapping) or part not in values:
            # The same words as for a key of a file, with the nearest name.
            with_overrides(config, {key: 0}, f"tune.space.{key}")
            raise ConfigError(f"tune.space.{key}: is no value that could be searched")
        values = values[part]
    return values


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:g}" if isinstance(value, int | float) else str(value)
