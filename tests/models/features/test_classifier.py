"""Features are the input of the last layer: for every family of networks, or a clear error."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from torch import nn

from choral.config import ModelConfig
from choral.core.errors import ConfigError
from choral.models.build import build_model
from choral.models.features.classifier import ClassifierLayer, hash_backbone


class PointwiseHead(nn.Module):
    """A network whose classifier is a 1 x 1 convolution, on a pooled feature map or on one that is not pooled."""

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 5, 1)
        self.pool = nn.AdaptiveAvgPool2d(1) if pooled else nn.Identity()

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.pool(self.stem(images))).mean((2, 3))


def network(name: str, size: int = 32) -> nn.Module:
    return build_model(ModelConfig(name=name, weights="none", drop_rate=0.5), 5, size, 0).eval()


@pytest.mark.parametrize(
    "name",
    ["test_resnet", "test_vit", "test_convnext", "test_efficientnet", "mobilenetv3_small_050", "densenet121", "conv"],
)
def test_the_network_computes_what_the_written_head_computes(name: str) -> None:
    """Whatever comes before the classifier: pooling, a norm, another layer, dropout."""
    model = PointwiseHead(pooled=True).eval() if name == "conv" else network(name)
    images = torch.randn(3, 3, 32, 32)
    classifier = ClassifierLayer(model)
    features = classifier.compute_features(images).numpy()
    assert features.shape == (3, classifier.width) and features.dtype == np.float32
    random = np.random.default_rng(0)
    weight, bias = random.normal(size=(5, classifier.width)), random.normal(size=5)
    before = hash_backbone(model) if name != "conv" else ""
    classifier.write(weight, bias)
    with torch.no_grad():
        np.testing.assert_allclose(model(images).numpy(), features @ weight.T + bias, rtol=1e-4, atol=1e-4)
    assert name == "conv" or hash_backbone(model) == before
    np.testing.assert_array_equal(classifier.compute_features(images).numpy(), features)
    if name not in ("conv", "densenet121"):  # compare with timm's pre-logits
        with torch.no_grad():
            expected = model.forward_head(model.forward_features(images), pre_logits=True)
        np.testing.assert_allclose(features, expected.numpy(), rtol=1e-6)


def test_the_hash_covers_everything_but_the_head() -> None:
    model = network("test_resnet")
    before = hash_backbone(model)
    assert before == hash_backbone(build_model(ModelConfig(name="test_resnet", weights="none"), 5, 32, 0))
    model.bn1.running_mean[0] += 1e-3
    assert hash_backbone(model) != before


def test_networks_that_do_not_end_in_one_linear_layer_are_rejected() -> None:
    with pytest.raises(ConfigError, match=r"finetune\.strategy: VisionTransformerDistilled ends in tuple, not in one"):
        ClassifierLayer(network("deit_tiny_distilled_patch16_224"))
    bare = timm.create_model("test_resnet", num_classes=5)
    bare.fc = nn.Linear(96, 5, bias=False)
    with pytest.raises(ConfigError, match="ResNet ends in a layer without bias"):
        ClassifierLayer(bare)
    with pytest.raises(ConfigError, match="PointwiseHead does not end in one linear layer on pooled features"):
        ClassifierLayer(PointwiseHead(pooled=False).eval()).compute_features(torch.randn(2, 3, 32, 32))
    changed = network("test_resnet")
    changed.forward = lambda images, old=changed.forward: 2 * old(images)
    with pytest.raises(
        ConfigError, match="ResNet does not end in one linear layer .*; use head, partial, gradual or full"
    ):
        ClassifierLayer(changed).compute_features(torch.randn(2, 3, 32, 32))
