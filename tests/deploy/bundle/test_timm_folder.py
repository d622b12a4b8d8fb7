"""What timm makes of a folder that is written for it: the same network, and the same pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.data import create_transform, resolve_model_data_config

from choral.config import ModelConfig
from choral.data.loading.crop import Crop
from choral.data.loading.input_spec import ImageSpec, InputSpec
from choral.data.loading.sample_pipeline import resize_and_crop
from choral.deploy.bundle.fuse import find_foldable, fold
from choral.deploy.bundle.timm_folder import write_timm_folder
from choral.models.build import build_model
from choral.models.output_spec import OutputSpec

NAMES = ("rot", 'grün "hell"', "blau's")


def look_of(size: int, kind: Literal["resized", "center"] = "resized") -> InputSpec:
    return InputSpec(ImageSpec(size, Crop(kind, crop_pct=0.8), "antialias"), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit", "test_convnext"])
def test_timm_builds_the_same_network(name: str, tmp_path: Path) -> None:
    config = ModelConfig(name=name, weights="none", channels_last=False, drop_rate=0.2)
    network = build_model(config, 3, 64, seed=5).eval()  # not the size of the architecture's own weights
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    write_timm_folder(tmp_path / "member", network, look_of(64), OutputSpec("multiclass", NAMES))
    loaded = timm.create_model(f"local-dir:{tmp_path / 'member'}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(loaded(images), network(images))
    assert loaded.pretrained_cfg["label_names"] == list(NAMES)
    assert sorted(path.name for path in (tmp_path / "member").iterdir()) == ["config.json", "model.safetensors"]


def test_timm_loads_folded_weights(tmp_path: Path) -> None:
    network = build_model(ModelConfig(name="test_efficientnet", weights="none"), 3, 48, seed=5).eval()
    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    for module in network.modules():
        if hasattr(module, "running_var"):
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    with torch.no_grad():
        before = network(images)
        pairs = find_foldable(network, images[:1])
        assert pairs
        fold(network, pairs)
    write_timm_folder(tmp_path, network, look_of(48), OutputSpec("multiclass", NAMES))
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), before, rtol=1e-5, atol=1e-6)
    assert all(tensor.is_contiguous() for tensor in load_file(tmp_path / "model.safetensors").values())


@pytest.mark.parametrize("kind", ["resized", "center"])
@pytest.mark.parametrize("height", [50, 131])
def test_timms_own_transform_prepares_the_same_pixels(
    kind: Literal["resized", "center"], height: int, tmp_path: Path
) -> None:
    input_spec = look_of(40, kind)
    network = build_model(ModelConfig(name="test_resnet", weights="none"), 3, 40, seed=5)
    write_timm_folder(tmp_path, network, input_spec, OutputSpec("multiclass", NAMES))
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    transform = create_transform(**resolve_model_data_config(loaded))
    smooth = np.random.default_rng(3).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(smooth).resize((97, height), Image.Resampling.BICUBIC))
    own = np.empty((40, 40, 3), np.uint8)
    resize_and_crop(image, input_spec.image_spec.crop, input_spec.image_spec.resize, own)
    theirs = transform(Image.fromarray(image)) * torch.tensor(input_spec.std)[:, None, None]
    theirs = 255 * (theirs + torch.tensor(input_spec.mean)[:, None, None])
    difference = theirs.permute(1, 2, 0).numpy() - own
    assert np.abs(difference).max() <= 1.01


def test_how_numbers_are_to_be_read_is_said(tmp_path: Path) -> None:
    network = build_model(ModelConfig(name="test_resnet", weights="none"), 2, 32, seed=5)
    said = {}
    for outputs in (
        OutputSpec("regression", ("width", "height"), (3.0, 4.0), (0.5, 2.0)),
        OutputSpec("multilabel", ("crack", "dust")),
        OutputSpec("multiclass", ("a", "b"), one_against_all=True),
    ):
        write_timm_folder(tmp_path, network, look_of(32), outputs)
        said[outputs.task] = json.loads((tmp_path / "config.json").read_text())["choral"]
    assert said["regression"]["target_mean"] == [3.0, 4.0]
    assert said["regression"]["predictions"] == "outputs * target_std + target_mean"
    assert said["multilabel"]["predictions"] == "sigmoid(logits)"
    assert said["multiclass"]["predictions"] == "sigmoid(logits), divided by their sum over classes"
