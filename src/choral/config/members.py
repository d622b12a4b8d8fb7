"""From the `ensemble:` section to its members: what each is called, and what it sets.

The axes are multiplied in this order: listed members, architectures, resolutions, the keys of the grid, seeds, and folds,
bags or rounds of boosting. A member's name joins what tells it apart: `tf_efficientnet_lite0-128-seed1-fold3`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

from choral.config.ensemble import LEGAL_NAME, MemberConfig
from choral.config.fields import check

if TYPE_CHECKING:
    from choral.config import Config

_LONGEST_WORD = 24


class _Choice(NamedTuple):
    """One value on an axis: its part of the name, what it sets, and how far it counts on the seed."""

    name: str
    set: Mapping[str, Any]
    seed_offset: int = 0


def members_of(config: Config) -> tuple[MemberConfig, ...]:
    """Return the members of a run, in the order of tables and columns; none: the run is one network.

    Members that differ in seed, fold, bag or round have seeds counted on from their own, or from the run's.

    Raises:
        ConfigError: two members would have one name, a name is too long, or two generators set one key.
    """
    axes = [axis for axis in (*_value_axes(config), _seed_axis(config), _resampling_axis(config)) if axis]
    if not axes and config.ensemble.snapshots:
        axes = [[_Choice("snapshots", {})]]
    members = [_member(config, choices) for choices in product(*axes)] if axes else []
    names = [member.name for member in members]
    for name in names:
        check(names.count(name) == 1, "ensemble.members", f"two members are called '{name}': names must differ")
    return tuple(members)


def held_out_groups(config: Config) -> dict[str, tuple[str, ...]]:
    """Return the members by what they have in common apart from fold or bag; empty without folds and bags.

    The members of a group are one predictor that was trained several times: for each training sample, those that have not
    seen it tell what the group says of new samples. A group is called as its members are without fold or bag; if nothing
    is left, `folds` or `bags`.
    """
    if not (config.ensemble.folds or config.ensemble.bagging):
        return {}
    alone = "folds" if config.ensemble.folds else "bags"
    groups: dict[str, tuple[str, ...]] = {}
    for member in members_of(config):
        name = member.name.rpartition("-")[0] or alone
        groups[name] = (*groups.get(name, ()), member.name)
    return groups


def _member(config: Config, choices: Sequence[_Choice]) -> MemberConfig:
    name = "-".join(choice.name for choice in choices)
    check(LEGAL_NAME.fullmatch(name) is not None, "ensemble", f"'{name}' is no member name, or longer than 64 letters")
    changes: dict[str, Any] = {}
    for choice in choices:
        for key in choice.set:
            check(key not in changes, "ensemble", f"{key} of '{name}' is set by two of its generators: choose one")
        changes |= choice.set
    if config.ensemble.seeds or _resampled(config):
        offset = sum(choice.seed_offset for choice in choices)
        changes["seed"] = int(changes.get("seed", config.seed)) + offset
        if config.ensemble.bagging:  # bags of another seed are other bags
            changes["data.resample.number"] = offset
    if config.ensemble.snapshots:
        changes["train.cycles"] = config.ensemble.snapshots
    return MemberConfig(name=name, set=changes)


def _value_axes(config: Config) -> list[list[_Choice]]:
    ensemble = config.ensemble
    axes = [
        [_Choice(member.name, member.set) for member in ensemble.members],
        [_Choice(_word(value), {"model.name": value}) for value in ensemble.architectures],
        [_Choice(str(value), {"data.image_size": value}) for value in ensemble.resolutions],
    ]
    for key, values in ensemble.grid.items():
        last = key.rpartition(".")[2]
        words = zip(_words(values), values, strict=True)
        axes.append([_Choice(f"{last}{word}", {key: value}) for word, value in words])
    return axes


def _seed_axis(config: Config) -> list[_Choice]:
    each = _resampled(config) or 1
    return [_Choice(f"seed{number + 1}", {}, number * each) for number in range(config.ensemble.seeds)]


def _resampling_axis(config: Config) -> list[_Choice]:
    ensemble = config.ensemble
    own: dict[str, Any] = {"data.resample.seed": config.seed}
    if ensemble.folds:
        word, own = "fold", {**own, "data.resample.kind": "fold", "data.resample.count": ensemble.folds}
    elif ensemble.bagging:
        word, own = "bag", {**own, "data.resample.kind": "bag", "data.resample.bootstrap": ensemble.bootstrap}
    else:
        word, own = "round", {**own, "data.resample.kind": "boost", "data.resample.by": ensemble.boosting_by}
    numbers = range(_resampled(config))
    return [_Choice(f"{word}{number + 1}", {**own, "data.resample.number": number}, number) for number in numbers]


def _resampled(config: Config) -> int:
    """Return how many folds, bags or rounds there are; 0: none."""
    return config.ensemble.folds or config.ensemble.bagging or config.ensemble.boosting


def _words(values: Sequence[Any]) -> list[str]:
    """Return a word for each value: itself where all are short and differ, else their numbers."""
    words = [_word(str(value)) for value in values]
    plain = not any(isinstance(value, list | tuple | Mapping) for value in values)
    if plain and len(set(words)) == len(words) and max(map(len, words)) <= _LONGEST_WORD:
        return words
    return [str(number + 1) for number in range(len(values))]


def _word(value: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", value)
