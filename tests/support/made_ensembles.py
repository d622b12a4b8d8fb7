"""Small members with random weights, and ways to answer, for tests of what is made of both."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from choral.data.loading.crop import Crop
from choral.data.loading.input_spec import ImageSpec, InputSpec
from choral.deploy.bundle.engine import EngineInput, LoadedMember, build_engine_inputs
from choral.models.output_spec import OutputSpec
from choral.scoring.apply_policy import build_default_policy
from choral.scoring.policy import PredictionPolicy

CLASSES = ("x", "y", "z")


class Tiny(nn.Module):
    """A convolution, BatchNorm, and a head that sees positions, so that views differ."""

    def __init__(self, seed: int, size: int, classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * size * size, classes)

    def forward(self, images: Tensor) -> Tensor:
        return 3 * self.head(self.norm(self.conv(images)).relu().flatten(1))


def members(
    task: str = "multiclass", sizes: tuple[int, ...] = (8, 8, 6), against_all: bool = False
) -> list[LoadedMember]:
    """Members a, b, c of these sizes; the second is normalised otherwise."""
    outputs = OutputSpec(task, CLASSES, one_against_all=against_all)  # type: ignore[arg-type]
    found = []
    for number, size in enumerate(sizes):
        form = ImageSpec(size, Crop("resized"), "antialias")
        mean = (0.4, 0.5, 0.6) if number == 1 else (0.5,) * 3
        if task == "regression":
            outputs = OutputSpec("regression", CLASSES, (10.0, float(number), -1.0), (2.0, 1.0 + number, 0.1))
        input_spec = InputSpec(form, mean, (0.25,) * 3, number != 1)
        found.append(LoadedMember("abc"[number], Tiny(number, size).eval(), input_spec, outputs))
    return found


def plain(task: str = "multiclass", views: tuple[str, ...] = ("identity", "hflip"), **options: str) -> PredictionPolicy:
    """The mean over members and views."""
    return build_default_policy(task, CLASSES, ("a", "b", "c"), views, **options)  # type: ignore[arg-type]


def batch(own: list[LoadedMember], count: int, seed: int = 0) -> list[NDArray[np.uint8]]:
    """Prepared images of each input."""
    rng = np.random.default_rng(seed)
    sizes = [given.image_spec.size for given in inputs(own)]
    return [rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8) for size in sizes]


def inputs(own: list[LoadedMember]) -> tuple[EngineInput, ...]:
    return build_engine_inputs([member.input_spec for member in own])
