"""Configs: what is read, what is rejected, and with which message."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from choral.config import Config, DataConfig, ResampleConfig, binding_difference
from choral.config.files import load_config, to_dict, to_yaml, with_overrides
from choral.core.errors import ConfigError

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "cells.yaml"
    path.write_text("data: {shards: shards}\ntrain:\n  lr: 3e-4\n  batch_size: 32\n", encoding="utf-8")
    return path


def test_values_are_read_by_the_type_of_their_field(file: Path) -> None:
    config = load_config(file, ["model.name=no", "augment.rot90=yes", "train.max_grad_norm=null", "train.steps=1e3"])
    assert config.train.lr == 3e-4
    assert config.model.name == "no"
    assert config.augment.rot90 is True
    assert config.train.max_grad_norm is None
    assert config.train.steps == 1000
    assert config.run == "cells"


def test_resolved_config_is_enough_to_run_again(file: Path, tmp_path: Path) -> None:
    overrides = [
        'data.source=it\'s "quoted" # and ünïcode',
        "augment.crop_scale=[0.5, 1]",
        "evaluate.views=identity,d4",
        "ensemble.members=[{name: a, set: {seed: 1, model.name: resnet18, train.max_grad_norm: null}}, {name: b}]",
    ]
    config = load_config(file, overrides)
    again = tmp_path / "run" / "config.yaml"
    again.parent.mkdir()
    again.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(again) == config
    assert binding_difference(load_config(again), config) == []


def test_a_file_overrides_its_base_and_overrides_override_the_file(file: Path) -> None:
    above = file.parent / "sub" / "above.yaml"
    above.parent.mkdir()
    above.write_text("base: ../cells.yaml\ntrain: {lr: 1e-2}\nrun: mine\n", encoding="utf-8")
    config = load_config(above, ["train.epochs=2"])
    assert (config.train.lr, config.train.batch_size, config.train.epochs, config.run) == (1e-2, 32, 2, "mine")


def test_a_base_passes_on_everything_but_its_names(file: Path) -> None:
    file.write_text(file.read_text() + "run: first\nstep: baseline\nproject: cells\n")
    above = file.parent / "above.yaml"
    above.write_text("base: cells.yaml\n", encoding="utf-8")
    config = load_config(above)
    assert (config.run, config.step, config.project) == ("above", "", "cells")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {shards: s}\noptim: {lr: 1}", "optim: unknown key. Known keys: run, seed"),
        (
            "data: {shards: s}\ntrain: {wieght_decay: 1}",
            "train.wieght_decay: unknown key. Did you mean train.weight_decay?",
        ),
        ("data: {shards: s}\ntrain: {lr: fast}", "train.lr: expected a number, or auto, got 'fast'"),
        ("data: {shards: s}\ntrain: {lr: -1}", "train.lr: expected a learning rate above 0, got -1"),
        (
            "data: {shards: s}\ntrain: {ddp_static_graph: true, accumulate_steps: 2}",
            "train.ddp_static_graph: expected false with train.accumulate_steps above 1",
        ),
        ("data: {shards: s}\ntrain: {lr: nan}", "train.lr: expected a number, or auto, got 'nan'"),
        ("data: {shards: s, image_size: 1.5}", "data.image_size: expected a whole number, got '1.5'"),
        ("data: {shards: s, resize: bicubic}", "data.resize: expected antialias or fast, got 'bicubic'"),
        (
            "data: {shards: s}\naugment: {crop_scale: 0.5}",
            "augment.crop_scale: expected a list of 2 numbers, got '0.5'",
        ),
        ("data: {shards: s}\naugment: {rot90: maybe}", "augment.rot90: expected true or false, got 'maybe'"),
        ("data: {shards: s}\ntrain: {epochs: 0}", "train.epochs: expected more than 0, got 0"),
        ("data: {shards: s}\ntrain: {steps: -1}", "train.steps: expected 1 or more, or null, got -1"),
        ("data: {shards: s}\ntrain: {batch_size: auto}", "train.batch_size: auto: the number of samples in an update"),
        ("data: {shards: s, image_size: 8}", "data.image_size: expected 16 to 4096, got 8"),
        ("data: {shards: s}\naugment: {host: [{name: CLAHE, p: 1}]}", r"augment.host\[0\].p: unknown key"),
        ("data: {shards: s}\naugment: {zoom: [1, far]}", r"augment.zoom\[1\]: expected a number, got 'far'"),
        ("data: {shards: s}\ntrain: {label_probabilities: {a: [b]}}", "train.label_probabilities.a: expected text"),
        ("data: {shards: s}\ntrain: [1]", "train: expected a section with keys"),
        ("data: {shards: s}\ntrain: {lr: [1]}", r"train.lr: expected a number, or auto, got '\['1'\]'"),
        ("data: {shards: s}\ntrain: {batch_size: 30, accumulate_steps: 4}", "train.accumulate_steps: must divide"),
        ("data: {shards: s, lanes: 3}", "data.lanes: must divide the micro-batch"),
        ("data: {shards: s, val_split: train}", "data.val_split: training and validation must be different"),
        ("seed: 1", "data.shards: expected the folder that `choral pack"),
        ("data: {shards: s}\nensemble: {members: [{name: a}, {name: a}]}", "two members are called 'a'"),
        ("data: {shards: s}\nensemble: {members: [{set: {}}]}", r"ensemble.members\[0\].name: missing"),
        ("data: {shards: s}\nensemble: {members: [{name: ../a}]}", "is not a member name"),
        ("data: {shards: s}\nmodel: {weights: imagenet}", "model.weights: expected auto, hub, none, package:MODULE"),
        ("data: {shards: s}\nrun: ../up", "'../up' is not a run name"),
        ("data: {shards: s}\ndata: {shards: t}", "line 2: duplicate key 'data'"),
        ("data: {shards: s", "not valid YAML"),
        ("- a", "expected keys and values"),
        ("base: missing.yaml", "missing.yaml: no such config file"),
        ("base: cells.yaml", "base: leads back"),
    ],
)
def test_mistakes_are_named_with_file_and_key(file: Path, text: str, message: str) -> None:
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(file)
    assert str(file.parent) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr", "expected key=value"),
        ("train.l=1", "train.l: unknown key. Did you mean train.lr?"),
        ("trian.lr=1", "trian: unknown key. Did you mean train?"),
        ("seed.x=1", "seed: has no keys below it"),
        ("train.lr={", "not valid YAML"),
    ],
)
def test_mistakes_in_overrides_are_named(file: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(file, [override])


def test_missing_file() -> None:
    with pytest.raises(ConfigError, match="nowhere.yaml: no such config file"):
        load_config("nowhere.yaml")


def test_difference_lists_binding_values_only(file: Path) -> None:
    old = load_config(file)
    faster = load_config(file, ["data.workers=3", "train.log_every_steps=1", "tracking.wandb=off", "run=other"])
    assert binding_difference(old, faster) == []
    assert binding_difference(old, load_config(file, ["train.lr=1e-3"])) == ["train.lr: 0.0003 -> 0.001"]


def test_overrides_change_what_they_set(file: Path) -> None:
    config = load_config(file)
    changed = with_overrides(config, {"train.lr": "1e-2", "model.name": "resnet34"}, "here")
    assert (changed.train.lr, changed.model.name, changed.train.batch_size) == (1e-2, "resnet34", 32)
    with pytest.raises(ConfigError, match="here: train.lrr: unknown key"):
        with_overrides(config, {"train.lrr": 1}, "here")


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_configs_load_and_say_how_to_run_them(path: Path) -> None:
    overrides = ["data.shards=anywhere"] if path.name == "default.yaml" else []
    config = load_config(path, overrides)
    assert to_dict(config)["data"]["shards"]
    modeline, command, *_ = opening = path.read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    assert modeline == "# yaml-language-server: $schema=schema.json"
    assert command.startswith("# ")
    assert any("choral run" in line for line in opening) and any("# Hardware: " in line for line in opening)


def test_auto_views_include_flips_only_if_training_flips(file: Path) -> None:
    for changes, views in (
        ([], ("identity", "hflip")),
        (["augment.hflip=0"], ("identity",)),
        (["augment.preset=none"], ("identity",)),
        (["augment.hflip=0", "evaluate.views=d4"], ("d4",)),
        (["evaluate.views=identity"], ("identity",)),
    ):
        assert load_config(file, changes).test_views == views


def test_config_is_frozen() -> None:
    config = Config(data=DataConfig(shards="s"))
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        config.data.image_size = 3  # type: ignore[misc]


def test_sections_are_compared_and_hashed_by_value() -> None:
    assert DataConfig(shards="s") == DataConfig(shards="s") != DataConfig(shards="t")
    assert len({ResampleConfig(kind="bag"), ResampleConfig(kind="bag"), ResampleConfig()}) == 2


def test_replace_validates_like_a_file() -> None:
    config = Config(data=DataConfig(shards="s"))
    changed = config.replace(seed=3, train=config.train.replace(lr="3e-4"))
    assert (changed.seed, changed.train.lr, config.seed) == (3, 3e-4, 0)
    with pytest.raises(ConfigError, match="sed: unknown key. Did you mean seed?"):
        config.replace(sed=3)
    with pytest.raises(ConfigError, match="epochs: expected more than 0, got -1"):
        config.train.replace(epochs=-1)
    with pytest.raises(ConfigError, match="data.lanes: must divide the micro-batch"):
        config.replace(data=config.data.replace(lanes=3))


def test_configs_import_nothing_heavy() -> None:
    heavy = ["numpy", "torch", "pyarrow", "rich"]
    code = f"import sys, choral.config.files; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_arguments_of_host_transforms_survive_being_stored(tmp_path: Path) -> None:
    file, stored = tmp_path / "file.yaml", tmp_path / "stored.yaml"
    arguments = "{clip_limit: 4, tile_grid_size: [8, 8], p: 0.5, how: null, fast: true, name: word}"
    file.write_text(f"data: {{shards: s}}\naugment: {{host: [{{name: CLAHE, arguments: {arguments}}}]}}\n")
    config = load_config(file)
    expected = {"clip_limit": 4, "tile_grid_size": (8, 8), "p": 0.5, "how": None, "fast": True, "name": "word"}
    assert config.augment.host[0].arguments == expected
    stored.write_text(to_yaml(config))
    assert load_config(stored, ["run=file"]) == config


def test_a_preset_sets_keys_and_later_keys_override_it(tmp_path: Path) -> None:
    below, file = tmp_path / "below.yaml", tmp_path / "run.yaml"
    below.write_text("data: {shards: s}\naugment: {rotate: 77, host: [{name: CLAHE}]}\n")
    file.write_text("base: below.yaml\naugment: {preset: medium, brightness: 0.9}\n")
    augment = load_config(file).augment
    assert (augment.rotate, augment.brightness, augment.erasing) == (10, 0.9, 0.1)
    assert [transform.name for transform in augment.host] == ["CLAHE"], "a preset does not change host transforms"
    changed = load_config(file, ["augment.hue=0.1", "augment.preset=none", "augment.contrast=0.5"]).augment
    assert (changed.preset, changed.hue, changed.brightness, changed.contrast) == ("none", 0, 0, 0.5)
    stored = tmp_path / "stored.yaml"
    stored.write_text(to_yaml(load_config(file)))
    assert load_config(stored).augment == augment
    with pytest.raises(ConfigError, match=r"augment\.preset: expected none, light, medium, heavy, got 'hevy'.*heavy"):
        load_config(file, ["augment.preset=hevy"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.targets=[age]", "data.targets: needs task: regression or multilabel"),
        ("train.loss=huber", "train.loss: with task: multiclass, expected one of auto, cross_entropy, bce, focal"),
        ("train.best_by=rmse", "train.best_by: with task: multiclass, expected one of auto, accuracy, log_loss"),
        ("finetune.strategy=linear train.loss=focal", "train.loss: with finetune.strategy: linear, whose head"),
        ("finetune.strategy=svm train.loss=bce", "expected auto or cross_entropy, got bce"),
        (
            "finetune.strategy=auto train.loss=focal",
            "train.loss: with finetune.strategy: auto, whose head may be fitted",
        ),
        ("finetune.strategy=gradual finetune.trained_stages=0", "with gradual, expected at least 1, or null (all)"),
        ("finetune.trained_stages=-1", "finetune.trained_stages: expected 0 (the head alone) or more"),
        ("train.lr=fast", "train.lr: expected a number, or auto, got 'fast'"),
    ],
)
def test_combinations_that_are_rejected(tmp_path: Path, override: str, message: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("data: {shards: s}")
    assert load_config(file, ["train.lr=auto"]).train.lr == "auto"
    load_config(file, ["finetune.strategy=lp_ft", "train.loss=focal"])  # trains with it after the linear phase
    load_config(file, ["finetune.strategy=linear", "task=multilabel", "data.targets=[a]", "train.loss=bce"])
    with pytest.raises(ConfigError) as found:
        load_config(file, override.split())
    assert message in str(found.value)
