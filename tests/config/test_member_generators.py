"""Generators of members: names, overrides, and groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from choral.config import Config, ResampleConfig, held_out_groups, resolve_members
from choral.config.files import load_config
from choral.core.errors import ConfigError
from choral.ensembles.member_jobs import member_config


def config_of(config_file: Path, **ensemble: str) -> Config:
    return load_config(config_file, [f"ensemble.{key}={value}" for key, value in ensemble.items()])


def sets_of(config: Config) -> dict[str, dict[str, Any]]:
    return {member.name: dict(member.set) for member in resolve_members(config)}


def resampling_of(config: Config) -> dict[str, tuple[int, ResampleConfig]]:
    """Return seed and resampling of each member, from its own config."""
    configs = {member.name: member_config(config, member.name) for member in resolve_members(config)}
    return {name: (own.seed, own.data.resample) for name, own in configs.items()}


def test_no_generator_means_a_single_model(config_file: Path) -> None:
    config = config_of(config_file)
    assert resolve_members(config) == () and held_out_groups(config) == {}


def test_names_are_built_from_values(config_file: Path) -> None:
    config = config_of(config_file, architectures="[test_resnet, hf-hub:timm/x]", resolutions="[32, 48]")
    assert sets_of(config) == {
        "test_resnet-32": {"model.name": "test_resnet", "data.image_size": 32},
        "test_resnet-48": {"model.name": "test_resnet", "data.image_size": 48},
        "hf-hub_timm_x-32": {"model.name": "hf-hub:timm/x", "data.image_size": 32},
        "hf-hub_timm_x-48": {"model.name": "hf-hub:timm/x", "data.image_size": 48},
    }
    grid = "{train.lr: [1e-3, 3e-4], augment.crop_scale: [[0.2, 1], [0.5, 1]]}"  # lists have no short name: numbers
    names = list(sets_of(config_of(config_file, grid=grid)))
    assert names == ["lr1e-3-crop_scale1", "lr1e-3-crop_scale2", "lr3e-4-crop_scale1", "lr3e-4-crop_scale2"]
    assert held_out_groups(config) == {}


def test_seeds_are_consecutive_from_the_seed_of_the_run_or_the_member(config_file: Path) -> None:
    config = config_of(config_file, seeds="2", members="[{name: a}, {name: b, set: {seed: 10}}]")
    assert {name: own["seed"] for name, own in sets_of(config).items()} == {
        "a-seed1": 0,
        "a-seed2": 1,
        "b-seed1": 10,
        "b-seed2": 11,
    }


def test_folds_have_different_seeds_and_the_same_split(config_file: Path) -> None:
    config = load_config(config_file, ["seed=7", "ensemble.folds=3", "ensemble.seeds=2"])
    found = resampling_of(config)
    assert list(found) == [f"seed{seed}-fold{fold}" for seed in (1, 2) for fold in (1, 2, 3)]
    assert [seed for seed, _ in found.values()] == [7, 8, 9, 10, 11, 12]
    assert [own for _, own in found.values()] == [
        ResampleConfig(kind="fold", number=number, count=3, seed=7) for number in (0, 1, 2)
    ] * 2
    assert held_out_groups(config) == {
        "seed1": ("seed1-fold1", "seed1-fold2", "seed1-fold3"),
        "seed2": ("seed2-fold1", "seed2-fold2", "seed2-fold3"),
    }


def test_bags_are_equal_for_each_architecture_and_differ_for_each_seed(config_file: Path) -> None:
    config = config_of(config_file, bagging="2", bootstrap="exact", seeds="2", architectures="[a, b]")
    found = resampling_of(config)
    assert [own.number for _, own in found.values()] == [0, 1, 2, 3] * 2
    assert {(own.kind, own.seed, own.bootstrap) for _, own in found.values()} == {("bag", 0, "exact")}
    assert list(held_out_groups(config)) == ["a-seed1", "a-seed2", "b-seed1", "b-seed2"]


@pytest.mark.parametrize(("generator", "group", "members"), [
    ("folds", "folds", ("fold1", "fold2")),
    ("bagging", "bags", ("bag1", "bag2")),
])  # fmt: skip
def test_folds_or_bags_alone_are_one_group(
    config_file: Path, generator: str, group: str, members: tuple[str, ...]
) -> None:
    assert held_out_groups(config_of(config_file, **{generator: "2"})) == {group: members}


def test_rounds_and_snapshots(config_file: Path) -> None:
    rounds = resampling_of(config_of(config_file, boosting="3", boosting_by="sampling"))
    assert list(rounds) == ["round1", "round2", "round3"]
    assert [(seed, own.kind, own.number, own.by) for seed, own in rounds.values()] == [
        (number, "boost", number, "sampling") for number in range(3)
    ]
    assert sets_of(config_of(config_file, snapshots="3")) == {"snapshots": {"train.cycles": 3}}
    both = config_of(config_file, snapshots="3", seeds="2")
    assert [own["train.cycles"] for own in sets_of(both).values()] == [3, 3]


@pytest.mark.parametrize(("ensemble", "message"), [
    ({"folds": "1"}, "ensemble.folds: expected 2 or more, or 0: none"),
    ({"snapshots": "1"}, "ensemble.snapshots: expected 2 or more"),
    ({"bagging": "-1"}, "ensemble.bagging: expected 1 or more"),
    ({"folds": "2", "bagging": "2"}, "ensemble.bagging: not together with folds"),
    ({"boosting": "2", "seeds": "2"}, "ensemble.boosting: cannot be combined with other generators; remove seeds"),
    ({"boosting": "2", "folds": "2"}, "ensemble.boosting: .* remove folds"),
    ({"grid": "{train.lr: 1e-3}"}, "ensemble.grid.train.lr: expected a list of values"),
    ({"grid": "{evaluate.views: [[d4]]}"}, "a member may set seed, data"),
    ({"architectures": "[a, a]"}, "ensemble.architectures: a value is listed twice"),
    ({"architectures": "['a/b', a_b]"}, "two members are called 'a_b': names must differ"),
    ({"grid": "{train.lr: [0.1, 0.1]}", "seeds": "2"}, None),
    ({"grid": "{seed: [1, 2]}", "seeds": "2"}, "ensemble.grid.seed: not together with seeds"),
    ({"grid": "{data.image_size: [32, 48]}", "resolutions": "[32, 64]"}, "data.image_size of '32-image_size32' is set by "
                                                                         "two of its generators: choose one"),
    ({"members": "[{name: a, set: {model.name: x}}]", "architectures": "[y]"}, "model.name of 'a-y' is set by two"),
    ({"architectures": f"[{'x' * 60}]", "seeds": "2"}, "is not a member name, or is longer than 64 characters"),
])  # fmt: skip
def test_generators_that_are_rejected(config_file: Path, ensemble: dict[str, str], message: str | None) -> None:
    if message is None:  # equal values are numbered
        assert list(sets_of(config_of(config_file, **ensemble)))[::2] == ["lr1-seed1", "lr2-seed1"]
        return
    with pytest.raises(ConfigError, match=message):
        config_of(config_file, **ensemble)


@pytest.mark.parametrize(("resample", "message"), [
    ("{kind: fold, number: 3, count: 3}", "data.resample.number: expected less than count, which is 3"),
    ("{kind: fold, number: 0, count: 1}", "data.resample.count: expected 2 or more"),
    ("{kind: bag, number: -1}", "data.resample.number: expected 0 or more"),
    ("{kind: boost}", "data.sampling: balanced and boosting both say how often a sample counts"),
])  # fmt: skip
def test_resampling_that_is_rejected(config_file: Path, resample: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(config_file, [f"data.resample={resample}", "data.sampling=balanced"])
