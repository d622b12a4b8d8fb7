"""From the `ensemble:` section to its members: their names and their overrides.

The generators are multiplied in this order: listed members, architectures, resolutions, the keys of the grid, seeds, and
folds, bags or boosting rounds. A member's name joins what distinguishes it: `tf_efficientnet_lite0-128-seed1-fold3`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

from choral.config.ensemble import MemberConfig
from choral.config.fields import NAME_PATTERN, check

if TYPE_CHECKING:
    from choral.config.config import Config

_MAX_NAME_PART = 24


class _Choice(NamedTuple):
    """One value on an axis: its part of the name, its overrides, and its offset on the seed."""

    name: str
    set: Mapping[str, Any]
    seed_offset: int = 0


def resolve_members(config: Config) -> tuple[MemberConfig, ...]:
    """Return the members of a run, in the order of tables and columns; empty if the run is a single model.

    Members that differ in seed, fold, bag or round get consecutive seeds, starting from their own or the run's.

    Raises:
        ConfigError: two members have the same name, a name is too long, or two generators set the same key.
    """
    axes = [axis for axis in (*_value_axes(config), _seed_axis(config), _resampling_axis(config)) if axis]
    if not axes and config.ensemble.snapshots:
        axes = [[_Choice("snapshots", {})]]
    members = [_build_member(config, choices) for choices in product(*axes)] if axes else []
    names = [member.name for member in members]
    for name in names:
        check(names.count(name) == 1, "ensemble.members", f"two members are called '{name}': names must differ")
    return tuple(members)


def held_out_groups(config: Config) -> dict[str, tuple[str, ...]]:
    """Return the names of the members that differ only in fold or bag, by group; empty without folds and bags.

    A group is one predictor that was trained several times: the members that were not trained on a sample give its
    out-of-fold prediction. The group's name is that of its members without fold or bag, else `folds` or `bags`.
    """
    if not (config.ensemble.folds or config.ensemble.bagging):
        return {}
    default = "folds" if config.ensemble.folds else "bags"
    groups: dict[str, tuple[str, ...]] = {}
    for member in resolve_members(config):
        name = member.name.rpartition("-")[0] or default
        groups[name] = (*groups.get(name, ()), member.name)
    return groups


def _build_member(config: Config, choices: Sequence[_Choice]) -> MemberConfig:
    name = "-".join(choice.name for choice in choices)
    legal = NAME_PATTERN.fullmatch(name) is not None
    check(legal, "ensemble", f"'{name}' is not a member name, or is longer than 64 characters")
    changes: dict[str, Any] = {}
    for choice in choices:
        for key in choice.set:
            check(key not in changes, "ensemble", f"{key} of '{name}' is set by two of its generators: choose one")
        changes |= choice.set
    if config.ensemble.seeds or _resampling_count(config):
        offset = sum(choice.seed_offset for choice in choices)
        changes["seed"] = int(changes.get("seed", config.seed)) + offset
        if config.ensemble.bagging:  # another seed draws other bags
            changes["data.resample.number"] = offset
    if config.ensemble.snapshots:
        changes["train.cycles"] = config.ensemble.snapshots
    return MemberConfig(name=name, set=changes)


def _value_axes(config: Config) -> list[list[_Choice]]:
    ensemble = config.ensemble
    axes = [
        [_Choice(member.name, member.set) for member in ensemble.members],
        [_Choice(_name_part(value), {"model.name": value}) for value in ensemble.architectures],
        [_Choice(str(value), {"data.image_size": value}) for value in ensemble.resolutions],
    ]
    for key, values in ensemble.grid.items():
        last = key.rpartition(".")[2]
        parts = zip(_name_parts(values), values, strict=True)
        axes.append([_Choice(f"{last}{part}", {key: value}) for part, value in parts])
    return axes


def _seed_axis(config: Config) -> list[_Choice]:
    stride = _resampling_count(config) or 1
    return [_Choice(f"seed{number + 1}", {}, number * stride) for number in range(config.ensemble.seeds)]


def _resampling_axis(config: Config) -> list[_Choice]:
    ensemble = config.ensemble
    changes: dict[str, Any] = {"data.resample.seed": config.seed}
    if ensemble.folds:
        name = "fold"
        changes |= {"data.resample.kind": "fold", "data.resample.count": ensemble.folds}
    elif ensemble.bagging:
        name = "bag"
        changes |= {"data.resample.kind": "bag", "data.resample.bootstrap": ensemble.bootstrap}
    else:
        name = "round"
        changes |= {"data.resample.kind": "boost", "data.resample.by": ensemble.boosting_by}
    numbers = range(_resampling_count(config))
    return [_Choice(f"{name}{number + 1}", {**changes, "data.resample.number": number}, number) for number in numbers]


def _resampling_count(config: Config) -> int:
    """Return the number of folds, bags or boosting rounds; 0: none."""
    return config.ensemble.folds or config.ensemble.bagging or config.ensemble.boosting


def _name_parts(values: Sequence[Any]) -> list[str]:
    """Return a part of a name for each value: the value itself if all are short and distinct, else its number."""
    parts = [_name_part(str(value)) for value in values]
    scalars = not any(isinstance(value, list | tuple | Mapping) for value in values)
    if scalars and len(set(parts)) == len(parts) and max(map(len, parts)) <= _MAX_NAME_PART:
        return parts
    return [str(number + 1) for number in range(len(values))]


def _name_part(value: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", value)
