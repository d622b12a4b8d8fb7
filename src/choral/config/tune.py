"""What `choral tune` searches, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from choral.config.augment import plain
from choral.config.fields import check, tuning

STRENGTH = "augment.strength"
"""Stands in a space for all strengths of the augmentation together: see `choral.tuning.strength`."""
SEARCHED = ("data", "model", "finetune", "augment", "train")
"""Sections whose keys can be searched."""
_RANGE_KEYS = {"low", "high", "log", "step"}


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """The search of `choral tune`: trials of one network, each a run of its own, the config as it is being the first."""

    trials: int = tuning(20)
    """So many, with the first; more of them later continue the search."""
    space: Mapping[str, Any] = field(default_factory=dict, metadata={"tuning": True})
    """What is searched, by dotted key: {train.lr: {low: 1e-5, high: 1e-2, log: true}, train.optimizer: [adamw, sgd]}; a
    list is of choices, `step` makes a grid of a range, `auto` is the range that `choral tune` would take by itself. Empty:
    those of train.lr, train.weight_decay, train.layer_decay, model.drop_rate, model.drop_path_rate and augment.strength
    that the strategy and the network have a use for, about the values of the config. augment.strength is a factor on all
    strengths of the augmentation."""
    sampler: Literal["tpe", "random"] = tuning("tpe")
    """tpe: tree-structured Parzen estimators (Bergstra et al. 2011), which learn from the trials before."""
    pruner: Literal["median", "asha", "hyperband", "none"] = tuning("median")
    """What ends trials early by their validation. median: those that are worse than half of the others were at the same
    time; asha: all but a third at each of ever rarer looks (Li et al. 2020); hyperband: the same at several paces (Li et
    al. 2018)."""
    min_epochs: float = tuning(2.0)
    """Passes over the training split that no trial is ended before."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "space", {key: plain(value) for key, value in self.space.items()})
        check(self.trials >= 2, "tune.trials", "expected at least 2: the config as it is, and another one")
        check(self.min_epochs >= 0, "tune.min_epochs", "expected 0 or more")
        for key, values in self.space.items():
            known = key == STRENGTH or key.split(".")[0] in SEARCHED
            check(known, f"tune.space.{key}", f"expected a key of {', '.join(SEARCHED)}, or {STRENGTH}")
            _check_values(f"tune.space.{key}", values)


def _check_values(key: str, values: Any) -> None:
    if values == "auto":
        return
    if isinstance(values, tuple):
        check(len(values) > 1, key, "expected at least two choices")
        check(len(set(map(str, values))) == len(values), key, "a choice stands twice")
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
    check(step is None or (_is_number(step) and 0 < step <= high - low), f"{key}.step", "expected more than 0")
    check(not (log and step is not None), f"{key}.step", "not together with log: choose one")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
