"""The search space: defaults, `tune.space`, and the conversion between points and configs."""

from __future__ import annotations

from pathlib import Path

import pytest

from choral.config import AugmentConfig, Config
from choral.config.files import load_config, to_yaml, with_overrides
from choral.core.errors import ConfigError
from choral.tuning.space import Choice, Range, build_search_space, config_overrides, point_from_config
from choral.tuning.strength import scale_strengths

RATES = ("drop_rate", "drop_path_rate")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "cells.yaml"
    path.write_text("data: {shards: shards}\n", encoding="utf-8")
    return path


def config_with(base: Path, *overrides: str) -> Config:
    return load_config(base, overrides)


@pytest.mark.parametrize(
    ("strategy", "rates", "keys"),
    [
        (
            "full",
            RATES,
            "train.layer_decay model.drop_rate model.drop_path_rate",
        ),
        ("partial", ("drop_rate",), "train.layer_decay model.drop_rate"),
        ("head", RATES, "model.drop_rate"),
    ],
)
def test_default_ranges_depend_on_the_strategy_and_the_model(
    base: Path, strategy: str, rates: tuple[str, ...], keys: str
) -> None:
    config = config_with(base, f"finetune.strategy={strategy}")
    space = build_search_space(config, rates)
    assert list(space) == ["train.lr", "train.weight_decay", *keys.split(), "augment.strength"]
    assert space["train.lr"] == Range(1e-4, 1e-2, log=True)
    assert set(point_from_config(config, space)) == set(space), "the config as it is lies in what is searched about it"


@pytest.mark.parametrize("strategy", ["linear", "svm", "auto"])
def test_a_strategy_without_default_ranges_is_an_error(base: Path, strategy: str) -> None:
    config = config_with(base, f"finetune.strategy={strategy}")
    with pytest.raises(ConfigError, match=f"with finetune.strategy: {strategy} there are no default ranges"):
        build_search_space(config, RATES)
    configured = config_with(base, f"finetune.strategy={strategy}", "tune.space={finetune.feature_passes: [1, 4]}")
    assert list(build_search_space(configured, RATES)) == ["finetune.feature_passes"]


def test_a_configured_space(base: Path) -> None:
    space_text = (
        "tune.space={train.lr: auto, train.batch_size: {low: 16, high: 64, step: 16}, train.optimizer: [adamw, sgd],"
        " augment.rotate: {low: 0, high: 30}, augment.crop_scale: [[0.5, 1], [1, 1]], train.max_grad_norm: [null, 1]}"
    )
    config = config_with(base, space_text)
    space = build_search_space(config, RATES)
    assert space["train.batch_size"] == Range(16, 64, step=16, whole=True)
    assert space["augment.rotate"] == Range(0, 30)
    assert isinstance(space["train.optimizer"], Choice)
    point = {
        "train.lr": 3.14159e-4,
        "train.batch_size": 48,
        "train.optimizer": "sgd",
        "augment.rotate": 12.3456,
        "augment.crop_scale": "[1, 1]",
        "train.max_grad_norm": "null",
    }
    changes = config_overrides(config, space, point)
    changed = with_overrides(config, changes, "test")
    assert (changed.train.lr, changed.train.batch_size, changed.train.optimizer) == (3.142e-4, 48, "sgd")
    assert (changed.augment.rotate, changed.augment.crop_scale, changed.train.max_grad_norm) == (
        12.35,
        (1.0, 1.0),
        None,
    )
    base_point = point_from_config(config, space)
    assert base_point["train.batch_size"] == 64
    assert base_point["train.max_grad_norm"] == "1"
    assert "augment.crop_scale" not in base_point, "it is not one of the choices"


def test_a_config_with_a_space_survives_a_round_trip(base: Path, tmp_path: Path) -> None:
    config = config_with(
        base, "tune.space={train.lr: {low: 1e-5, high: 1e-2, log: true}, train.optimizer: [adamw, sgd]}"
    )
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(again, ["run=cells"]) == config


@pytest.mark.parametrize(
    ("space_text", "message"),
    [
        (
            "{seed: [1, 2]}",
            "tune.space.seed: expected a key of data, model, finetune, augment, train, or augment.strength",
        ),
        ("{train.lr: {low: 1, high: 1}}", "tune.space.train.lr: expected low below high"),
        ("{train.lr: {low: 0, high: 1, log: true}}", "tune.space.train.lr.low: expected more than 0 with log"),
        ("{train.lr: {low: a, high: 1}}", "tune.space.train.lr.low: expected a number, got 'a'"),
        ("{train.lr: {low: 1, hihg: 2}}", "tune.space.train.lr: unknown: hihg"),
        ("{train.lr: [1]}", "tune.space.train.lr: expected at least two choices"),
        ("{train.lr: 1}", "tune.space.train.lr: expected {low: ..., high: ...}, a list of choices, or auto, got '1'"),
        ("{train.lr: {low: 1e-5, high: 1, log: true, step: 0.1}}", "tune.space.train.lr.step: not together with log"),
        ("{train.wieght_decay: [0, 1]}", "train.wieght_decay: unknown key. Did you mean train.weight_decay"),
        ("{train.wieght_decay: {low: 0, high: 1}}", "train.wieght_decay: unknown key. Did you mean train.weight_decay"),
        ("{model.drop_rate: {low: 0.5, high: 1.5}}", "model.drop_rate: expected 0 or more and less than 1, got 1.5"),
        ("{train.optimizer: auto}", "tune.space.train.optimizer: it has no default range"),
        ("{augment.strength: {low: 0, high: 9}}", "tune.space.augment.strength: expected a range within 0 to 2"),
    ],
)
def test_invalid_spaces_are_rejected_before_anything_starts(base: Path, space_text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_search_space(config_with(base, f"tune.space={space_text}"), RATES)
    assert message in str(error.value)


class TestStrength:
    def test_a_factor_scales_all_strengths_and_nothing_else(self) -> None:
        config = AugmentConfig(crop_scale=(0.5, 1.0), rotate=10.0, zoom=(0.8, 1.25), erasing=0.6, mixup=0.2, vflip=0.5)
        changes = scale_strengths(config, 2.0)
        assert changes == {
            "augment.rotate": 20.0,
            "augment.erasing": 1.0,
            "augment.mixup": 0.4,
            "augment.zoom": [0.64, 1.562],
            "augment.crop_scale": [0.05, 1.0],
        }
        assert scale_strengths(config, 0.0)["augment.crop_scale"] == [1.0, 1.0]
        assert scale_strengths(config, 1.0)["augment.zoom"] == [0.8, 1.25]

    def test_a_config_without_strengths_uses_those_of_medium_except_crops(self) -> None:
        config = AugmentConfig(crop_scale=(1.0, 1.0), hflip=0.5, rot90=True)
        changes = scale_strengths(config, 0.5)
        assert changes["augment.rotate"] == 5.0
        assert changes["augment.brightness"] == 0.1
        assert "augment.crop_scale" not in changes
        assert "augment.hflip" not in changes
        nothing = scale_strengths(config, 0.0)
        assert AugmentConfig(crop_scale=(1.0, 1.0)).rotate == nothing["augment.rotate"] == 0.0
