"""The settings of `choral tune`: the search space, the sampler and the pruner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from annotated_types import Ge
from pydantic import Field, field_validator, model_validator

from choral.config.fields import Expected, NonBinding, NonNegativeFloat, check
from choral.config.section import Section
from choral.config.text import parse_untyped

STRENGTH = "augment.strength"
"""The key in a search space that scales all strengths of the augmentation: see `choral.tuning.strength`."""
SEARCHABLE_SECTIONS = ("data", "model", "finetune", "augment", "train")
_RANGE_KEYS = {"low", "high", "log", "step"}


class TuneConfig(Section, frozen=True):
    """The search of `choral tune`. Each trial trains one model as its own run; the first trial is the config itself."""

    trials: NonBinding[Annotated[int, Ge(2), Expected("2 or more: the config itself and another one")]] = 20
    """Number of trials, the first included. A larger number later continues the search."""
    space: NonBinding[Mapping[str, Any]] = Field(default_factory=dict)
    """Search space by dotted key: {train.lr: {low: 1e-5, high: 1e-2, log: true}, train.optimizer: [adamw, sgd]}. A list
    holds choices, `step` divides a range into a grid, and `auto` is the default range of a key. Empty: the default ranges,
    around the values of the config, of those among train.lr, train.weight_decay, train.layer_decay, model.drop_rate,
    model.drop_path_rate and augment.strength that the strategy and the model use. augment.strength scales all strengths of
    the augmentation."""
    sampler: NonBinding[Literal["tpe", "random"]] = "tpe"
    """tpe: tree-structured Parzen estimator, which learns from the previous trials (Bergstra et al. 2011)."""
    pruner: NonBinding[Literal["median", "asha", "hyperband", "none"]] = "median"
    """Stops poor trials early by their validation metric. median: trials below the median of the others at the same step.
    asha: all but the best third at each rung of successive halving (Li et al. 2020). hyperband: the same with several
    schedules of rungs (Li et al. 2018)."""
    min_epochs: NonBinding[NonNegativeFloat] = 2.0
    """Passes over the training split before a trial can be pruned."""

    @field_validator("space")
    @classmethod
    def _parse_space(cls, space: Mapping[str, Any]) -> Mapping[str, Any]:
        return {key: parse_untyped(value) for key, value in space.items()}

    @model_validator(mode="after")
    def _check_space(self) -> Self:
        for key, values in self.space.items():
            searchable = key == STRENGTH or key.split(".")[0] in SEARCHABLE_SECTIONS
            check(searchable, f"tune.space.{key}", f"expected a key of {', '.join(SEARCHABLE_SECTIONS)}, or {STRENGTH}")
            _check_axis(f"tune.space.{key}", values)
        return self


def _check_axis(key: str, values: Any) -> None:
    if values == "auto":
        return
    if isinstance(values, tuple):
        check(len(values) > 1, key, "expected at least two choices")
        check(len(set(map(str, values))) == len(values), key, "a choice is listed twice")
        return
    check(
        isinstance(values, Mapping),
        key,
        f"expected {{low: ..., high: ...}}, a list of choices, or auto, got '{values}'",
    )
    unknown = sorted(set(values) - _RANGE_KEYS)
    check(not unknown, key, f"unknown: {', '.join(unknown)}; expected low and high, and log or step")
    for end in ("low", "high"):
        check(
            end in values and _is_number(values[end]), f"{key}.{end}", f"expected a number, got '{values.get(end, '')}'"
        )
    low, high = values["low"], values["high"]
    check(low < high, key, f"expected low below high, got {low:g} and {high:g}")
    log, step = values.get("log", False), values.get("step")
    check(isinstance(log, bool), f"{key}.log", f"expected true or false, got '{log}'")
    check(not log or low > 0, f"{key}.low", "expected more than 0 with log")
    check(
        step is None or (_is_number(step) and 0 < step <= high - low),
        f"{key}.step",
        f"expected more than 0 and at most high - low, got '{step}'",
    )
    check(not (log and step is not None), f"{key}.step", "not together with log: choose one")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
