"""One number for how strong the augmentation is: a factor on all strengths of a config's augmentation together.

Probabilities of flips, quarter turns, host transforms and the choice of a policy are no strengths: they stay. A config whose
augmentation has no strength at all takes those of the preset `medium`, its random crops apart: what is not cropped has
been decided so. Factor 1 is then the preset, and 0 the config.
"""

from __future__ import annotations

from typing import Any

from choral.config import AugmentConfig
from choral.config.augment import PRESETS

LARGEST = 2.0
_PROPORTIONAL = {  # key to the most that it can be
    **dict.fromkeys(("translate", "brightness", "contrast", "saturation", "grey", "blur", "noise", "erasing"), 1.0),
    "rotate": 180.0,
    "shear": 60.0,
    "perspective": 0.45,
    "hue": 0.5,
}
_ALPHAS = ("mixup", "cutmix")


def has_strength(config: AugmentConfig) -> bool:
    """Return whether the augmentation of a config has anything that a factor would change."""
    return bool(_strengths(config)) or config.crops


def strengthened(config: AugmentConfig, factor: float) -> dict[str, Any]:
    """Return the keys of `augment` that a factor changes, with their new values.

    Args:
        config: the augmentation at factor 1, or without any strength.
        factor: 0 (none) to `LARGEST`; a value that reaches the most it can be stays there.
    """
    own = has_strength(config)
    start = config if own else AugmentConfig(**{**PRESETS["medium"], "preset": "medium"})
    changes: dict[str, Any] = {}
    for key in _strengths(start):
        value = getattr(start, key)
        if key in _PROPORTIONAL:
            changes[key] = _rounded(min(_PROPORTIONAL[key], value * factor))
        elif key in _ALPHAS:
            changes[key] = _rounded(value * factor)
        elif key == "policy_magnitude":
            changes[key] = _rounded(min(30.0, value * factor))
        else:
            assert key == "zoom"
            low, high = value
            changes[key] = [_rounded(max(0.1, low**factor)), _rounded(high**factor)]  # as large as small
    if not own:
        changes["geometry_prob"] = start.geometry_prob
    elif config.crops:
        low, high = config.crop_scale
        changes["crop_scale"] = [
            _rounded(max(0.05, 1 - (1 - low) * factor)),
            _rounded(max(0.05, 1 - (1 - high) * factor)),
        ]
    return {f"augment.{key}": value for key, value in changes.items()}


def _strengths(config: AugmentConfig) -> list[str]:
    """Return the keys that are more than nothing, random crops apart."""
    found = [key for key in (*_PROPORTIONAL, *_ALPHAS) if getattr(config, key) > 0]
    if config.zoom != (1.0, 1.0):
        found.append("zoom")
    if config.policy == "randaugment" and config.policy_magnitude > 0:
        found.append("policy_magnitude")
    return found


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
