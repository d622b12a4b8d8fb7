"""Images of letters, with a variation planted in half of the validation and test images that training does not contain."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

LETTERS = "AEFHKRSB"
COUNTS = {"train": 640, "val": 400, "test": 400}
SIDE = 48
WEAKNESSES = {
    "rotation": "rotation",
    "dark": "darker",
    "small": "smaller",
    "faded": "low_contrast",
    "upside-down": "vflip",
}
"""Planted variation to the family that should be advised."""


def letter(which: str, rng: np.random.Generator, weakness: str = "", side: int = SIDE) -> Image.Image:
    """Return one letter, light on dark, with varied size, position, angle and brightness; a weakness exceeds that."""
    scale = rng.uniform(0.45, 0.65) if weakness == "small" else 1.0
    angle = rng.uniform(25, 55) * rng.choice([-1, 1]) if weakness == "rotation" else rng.uniform(-6, 6)
    light = rng.uniform(0.25, 0.5) if weakness == "dark" else 1.0
    contrast = rng.uniform(0.25, 0.4) if weakness == "faded" else 1.0
    large, jitter = 2 * side, side / 8
    image = Image.new("L", (large, large))
    font = ImageFont.load_default(int(large * scale * rng.uniform(0.62, 0.75)))
    place = tuple(side + rng.uniform(-jitter, jitter, 2))
    ImageDraw.Draw(image).text(place, which, fill=255, font=font, anchor="mm")
    image = image.rotate(angle, resample=Image.Resampling.BICUBIC).resize((side, side), Image.Resampling.BOX)
    dark, bright = rng.uniform(50, 110), rng.uniform(150, 230)
    values = dark + (bright - dark) * np.asarray(image, dtype=np.float64) / 255 + rng.normal(0, 8, (side, side))
    values = light * (values.mean() + contrast * (values - values.mean()))
    return Image.fromarray(np.clip(values[::-1] if weakness == "upside-down" else values, 0, 255).astype(np.uint8))


def planted(
    root: Path,
    weakness: str,
    counts: Mapping[str, int] = COUNTS,
    letters: str = LETTERS,
    side: int = SIDE,
    seed: int = 0,
) -> Path:
    """Write train/, val/ and test/ with a folder per letter; half of the val and test images have the weakness ("": none)."""
    rng = np.random.default_rng(seed)
    for split, count in counts.items():
        for number in range(count):
            which = letters[number % len(letters)]
            variation = weakness if split != "train" and number // len(letters) % 2 else ""
            path = root / split / which / f"{number:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            letter(which, rng, variation, side).save(path)
    return root
