"""Toy data for all tests: images whose colour is the label, with prime numbers of samples so that nothing divides evenly."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from choral.runs.run_dir import RunDir

REPOSITORY = Path(__file__).parents[2]
CLASSES = {"rot": (200, 60, 60), 'grün "hell"': (60, 190, 70), "blau's": (60, 70, 200)}
COUNTS = {"train": 37, "val": 13, "test": 11}
Choral = Callable[..., subprocess.CompletedProcess[str]]


def colour_image(colour: tuple[int, int, int], seed: int) -> Image.Image:
    """Return a noisy image of one colour, 24 x 20 pixels; every seed gives a different image."""
    noise = np.random.default_rng(seed).normal(0, 45, (20, 24, 3))
    return Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8))


def make_run_dir(path: Path) -> RunDir:
    """Create and return a run directory."""
    path.mkdir()
    return RunDir(path)
