"""Predictions of a network under several views, averaged in three ways, compared with formulas."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from choral.config import Average
from choral.config.files import load_config
from choral.core.errors import ConfigError
from choral.data.loading.crop import Crop
from choral.data.loading.input_spec import ImageSpec, InputSpec
from choral.inference.predict_chunk import InferenceOptions, predict_batch
from choral.models.output_spec import OutputSpec

VIEWS = ("identity", "hflip", "rot90")
INPUT_SPEC = InputSpec(ImageSpec(4, Crop("center"), "antialias"), (0.5,) * 3, (0.25,) * 3)
OUTPUTS = {
    "multiclass": OutputSpec("multiclass", ("x", "y", "z")),
    "against all": OutputSpec("multiclass", ("x", "y", "z"), one_against_all=True),
    "multilabel": OutputSpec("multilabel", ("x", "y", "z")),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 3))


def predict_by_hand(kind: str, average: Average) -> tuple[np.ndarray, np.ndarray]:
    """Return the (views, B, 3) predictions of each view, and the (B, 3) average, in float64."""
    images = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(1)) * 3
    options = InferenceOptions(VIEWS, (*VIEWS, "tta"), nullcontext, average)
    (found,) = predict_batch([(network().eval(), OUTPUTS[kind])], INPUT_SPEC, images, options)
    assert list(found) == [*VIEWS, "tta"]
    views = np.stack([found[view].numpy().astype(np.float64) for view in VIEWS])
    return views, found["tta"].numpy().astype(np.float64)


def geometric(views: np.ndarray, kind: str) -> np.ndarray:
    powers = np.exp(np.log(views).mean(axis=0))
    others = np.exp(np.log(1 - views).mean(axis=0)) if kind == "multilabel" else 0
    return powers / (powers + others if kind == "multilabel" else powers.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("kind", OUTPUTS)
def test_averages(kind: str) -> None:
    views, mean = predict_by_hand(kind, "probabilities")
    np.testing.assert_allclose(mean, views.mean(axis=0), atol=1e-7)
    expected = geometric(views, kind)
    assert np.abs(expected - mean).max() > 0.01, "the averages should differ here"
    np.testing.assert_allclose(predict_by_hand(kind, "geometric")[1], expected, atol=1e-6)
    by_logits = predict_by_hand(kind, "logits")[1]
    if kind == "against all":  # the sigmoid of a mean is no mean of logarithms of sigmoids
        assert np.abs(by_logits - expected).max() > 0.01
        np.testing.assert_allclose(by_logits.sum(axis=1), 1, atol=1e-6)
    else:
        np.testing.assert_allclose(by_logits, expected, atol=1e-6)


def test_weighted_views() -> None:
    images = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(1)) * 3
    options = InferenceOptions(VIEWS, (*VIEWS, "tta"), nullcontext, weights=(0.5, 0.25, 0.25))
    (found,) = predict_batch([(network().eval(), OUTPUTS["multiclass"])], INPUT_SPEC, images, options)
    expected = sum(share * found[view] for view, share in zip(VIEWS, options.weights, strict=True))
    assert (found["tta"] - torch.stack([found[view] for view in VIEWS]).mean(0)).abs().max() > 0.01
    assert (found["tta"] - expected).abs().max() < 1e-6


def test_geometric_mean_clips_zero_probabilities() -> None:
    """Without clipping, a probability of 0 under one view would decide alone."""
    outputs, options = (
        OUTPUTS["multiclass"],
        InferenceOptions(("identity", "hflip"), ("tta",), nullcontext, "geometric"),
    )

    class Turns(nn.Module):
        calls = 0

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return torch.tensor([[0.0, -200, -200]] if self.calls == 1 else [[-200.0, 0, -200]]).expand(len(images), 3)

    (found,) = predict_batch([(Turns(), outputs)], INPUT_SPEC, torch.zeros(1, 3, 2, 2), options)
    np.testing.assert_allclose(found["tta"].numpy(), [[0.4998, 0.4998, 0.0002]], atol=2e-4)


def test_regression_has_a_single_average(config_file: object) -> None:
    message = r"evaluate\.average: logits averages probabilities, which task: regression does not"
    with pytest.raises(ConfigError, match=message):
        load_config(str(config_file), ["task=regression", "data.targets=[x]", "evaluate.average=logits"])
