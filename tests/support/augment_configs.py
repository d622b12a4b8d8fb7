"""Augmentation configs for tests."""

from __future__ import annotations

from choral.config import AugmentConfig
from choral.config.augment import PRESETS
from choral.data.augment.parameters import Augment

ALL_AUGMENTATIONS = {
    "hflip": 0.5,
    "vflip": 0.5,
    "rot90": True,
    "policy": "randaugment",
    "rotate": 20.0,
    "translate": 0.1,
    "zoom": (0.5, 2.0),
    "shear": 10.0,
    "perspective": 0.1,
    "geometry_prob": 0.5,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.1,
    "grey": 0.1,
    "blur": 0.5,
    "noise": 0.5,
    "erasing": 0.5,
}


def build_augment(seed: int = 3, **keys: object) -> Augment:
    return Augment(AugmentConfig(preset="none", **{**PRESETS["none"], **keys}), seed)  # type: ignore[arg-type]
