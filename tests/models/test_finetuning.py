"""Fine-tuning strategies: the stages of several families of networks, phases, and frozen BatchNorm."""

from __future__ import annotations

import copy
import io
import itertools
from pathlib import Path

import pytest
import timm
import torch
from rich.console import Console
from torch import nn

from choral.config import FinetuneConfig, ModelConfig, TrainConfig
from choral.core.errors import ConfigError
from choral.models.build import build_model
from choral.models.finetuning import apply_phase, build_phases, classifier_parameter_names, list_stages, train_mode
from choral.models.trainable_table import StageRow, build_table, log_table, render_rich, render_text
from choral.training.optimizer import build_optimizer

FAMILIES = {  # stages before the head
    "resnet10t": 5,
    "tf_efficientnet_lite0": 8,
    "vit_tiny_patch16_224": 13,
    "convnext_atto": 5,
    "densenet121": 5,
    "test_resnet": 5,
}


def network(name: str = "test_resnet") -> nn.Module:
    return build_model(ModelConfig(name=name, weights="none"), 3, 32, 0)


def trained_names(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def only_phase(model: nn.Module, **finetune: object) -> frozenset[str]:
    (phase,) = build_phases(model, FinetuneConfig(**finetune), 10, 100)  # type: ignore[arg-type]
    assert phase.start_step == 0
    return phase.trained


@pytest.mark.parametrize(("name", "count"), FAMILIES.items())
def test_stages_have_each_parameter_once_and_end_with_the_classifier(name: str, count: int) -> None:
    model = network(name)
    stages = list_stages(model)
    names = [parameter for stage in stages for parameter in stage]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert len(stages) == count + 1
    assert all(stages) and stages[-1] == classifier_parameter_names(model)
    assert sum(parameter.numel() for parameter in model.get_classifier().parameters()) == sum(
        dict(model.named_parameters())[name].numel() for name in stages[-1]
    )


def test_trained_parameters_of_each_strategy() -> None:
    model = network()
    stages = list_stages(model)
    everything = {name for name, _ in model.named_parameters()}
    for strategy in ("full", "lp_ft"):
        assert only_phase(model, strategy=strategy) == everything
    for strategy in ("head", "linear", "svm"):
        assert only_phase(model, strategy=strategy) == {"fc.weight", "fc.bias"}
    assert only_phase(model, strategy="partial", trained_stages=2) == {*stages[3], *stages[4], *stages[5]}
    assert only_phase(model, strategy="partial", trained_stages=0) == set(stages[-1])
    assert only_phase(model, strategy="partial") == {*stages[4], *stages[5]}
    with pytest.raises(ConfigError, match="has 5 stages before its head, got 9"):
        only_phase(model, strategy="partial", trained_stages=9)


@pytest.mark.parametrize(
    ("finetune", "total", "starts"),
    [
        ({}, 100, [0, 10, 20, 30, 40, 50]),
        ({"trained_stages": 2}, 100, [0, 10, 20]),
        ({"trained_stages": None}, 20, [0, 10]),  # no phase starts at the end of the run
        ({"unfreeze_every_epochs": 0.25}, 100, [0, 2, 5, 8, 10, 12]),
        (
            {"trained_stages": 5, "unfreeze_every_epochs": 0.01},
            100,
            [0, 1],
        ),  # several stages per step
    ],
)
def test_gradual_unfreezes_one_stage_at_a_time(finetune: dict[str, float], total: int, starts: list[int]) -> None:
    model = network()
    stages = list_stages(model)
    steps_per_epoch = 10 if finetune.get("unfreeze_every_epochs") != 0.01 else 20
    config = FinetuneConfig(strategy="gradual", **finetune)  # type: ignore[arg-type]
    phases = build_phases(model, config, steps_per_epoch, total)
    assert [phase.start_step for phase in phases] == starts
    for before, after in itertools.pairwise(phases):
        assert before.trained < after.trained
    for phase in phases:  # always the last stages
        count = len([stage for stage in stages if set(stage) <= phase.trained])
        assert phase.trained == {name for stage in stages[len(stages) - count :] for name in stage}


@pytest.mark.parametrize("name", FAMILIES)
def test_frozen_tensors_do_not_change_in_a_step(name: str) -> None:
    """Neither weights, despite weight decay, nor BatchNorm statistics; all others change."""
    model = network(name)
    trained = only_phase(model, strategy="partial", trained_stages=1)
    apply_phase(model, build_phases(model, FinetuneConfig(strategy="partial", trained_stages=1), 1, 1)[0])
    assert trained_names(model) == trained
    optimizer = build_optimizer(model, TrainConfig(weight_decay=0.5, lr=0.1))
    in_optimizer = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert in_optimizer == {id(p) for p_name, p in model.named_parameters() if p_name in trained}
    before = copy.deepcopy(model.state_dict())
    train_mode(model)
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    modules = {key.rpartition(".")[0] for key in trained}
    assert changed and all(key in trained or key.rpartition(".")[0] in modules for key in changed)
    assert {key for key in changed if key in trained} >= set(classifier_parameter_names(model))


def test_batchnorm_without_parameters_is_frozen_with_its_stage() -> None:
    def bare(module: nn.Module) -> None:
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Sequential(nn.BatchNorm2d(child.num_features, affine=False), nn.ReLU()))
            else:
                bare(child)

    model = network()
    bare(model)
    for count, frozen in (
        (0, {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}),
        (2, {"conv1", "bn1", "layer1", "layer2"}),
    ):
        apply_phase(model, build_phases(model, FinetuneConfig(strategy="partial", trained_stages=count), 1, 1)[0])
        train_mode(model)
        norms = {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
        assert {name.split(".")[0] for name, norm in norms.items() if not norm.training} == frozen
        assert all(norm.training != (name.split(".")[0] in frozen) for name, norm in norms.items())


def test_frozen_statistics_stay_frozen_if_wrapped_and_synchronized() -> None:
    from choral.models.sync_batchnorm import CpuSyncBatchNorm, synchronize_batchnorm

    model = network()
    apply_phase(model, build_phases(model, FinetuneConfig(strategy="head"), 1, 1)[0])
    wrapped = nn.Sequential(synchronize_batchnorm(model, "cpu"))
    train_mode(wrapped)
    norms = [module for module in wrapped.modules() if isinstance(module, CpuSyncBatchNorm)]
    assert norms and not any(norm.training for norm in norms)
    assert model.training and model.fc.training
    apply_phase(model, build_phases(model, FinetuneConfig(), 1, 1)[0])  # a later phase unfreezes them
    train_mode(wrapped)
    assert all(norm.training for norm in norms)


def test_lp_ft_trains_everything_but_the_statistics() -> None:
    """The head was fitted to features computed with the pretrained statistics, so training starts from the same outputs."""
    model = network()
    apply_phase(model, build_phases(model, FinetuneConfig(strategy="lp_ft"), 1, 1)[0])
    assert trained_names(model) == {name for name, _ in model.named_parameters()}
    train_mode(model)
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(model(images), model.eval()(images))


def test_a_network_without_a_classifier_is_rejected() -> None:
    with pytest.raises(ConfigError, match="has no classifier"):
        list_stages(timm.create_model("test_resnet", num_classes=0))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "mobilenetv3_small_050", "convnext_atto"])
def test_the_table_has_rates_and_fits_80_columns(name: str) -> None:
    model = network(name)
    apply_phase(model, build_phases(model, FinetuneConfig(strategy="partial", trained_stages=2), 1, 1)[0])
    optimizer = build_optimizer(model, TrainConfig(lr=1e-3))
    for group in optimizer.param_groups[1:]:
        group["lr_scale"] = 0.25
    rows = build_table(model, optimizer, 1e-3)
    assert [row.trained > 0 for row in rows] == [*[False] * (len(rows) - 3), True, True, True]
    assert sum(row.parameters for row in rows) == sum(parameter.numel() for parameter in model.parameters())
    assert (rows[-1].stage, rows[-1].low_rate, rows[-1].high_rate) == ("head", 2.5e-4, 1e-3)
    assert rows[0].high_rate == 0.0
    lines = render_text(rows, "two stages of so many are trained")
    assert max(map(len, lines)) <= 80
    assert lines[2].split()[-2:] == ["frozen", "-"] and lines[-2].endswith("2.5e-4 to 1e-3")
    output = io.StringIO()
    Console(file=output, width=80, force_terminal=True, color_system=None).print(render_rich(rows, "the same"))
    assert "2.5e-4 to 1e-3" in output.getvalue() and "…" not in output.getvalue()


def test_the_file_contains_each_table_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "choral.models.trainable_table.Console", lambda **options: Console(file=io.StringIO(), force_terminal=True)
    )
    row = StageRow("head", "fc", "fc", 1, 10, 10, 1e-3, 1e-3)
    file = tmp_path / "run" / "trained.txt"
    for step in (0, 4, 0, 4):  # a restarted run, on a terminal, where nothing is logged
        log_table([row], f"trained from step {step} on", file)
    first, second = (render_text([row], f"trained from step {step} on") for step in (0, 4))
    assert file.read_text().splitlines() == [*first, "", *second]
