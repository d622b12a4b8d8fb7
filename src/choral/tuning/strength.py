"""`augment.strength`: one factor that scales all strengths of a config's augmentation.

Probabilities of flips, of quarter turns and of host transforms, and the choice of a policy, are not strengths and stay
unchanged. If the config's augmentation has no strength at all, those of the preset `medium` are scaled instead, except for
its random crops, since the config has chosen not to crop. Factor 1 is then the preset, and 0 the config.
"""

from __future__ import annotations

from typing import Any

from choral.config import AugmentConfig
from choral.config.augment import PRESETS

MAX_FACTOR = 2.0
_PROPORTIONAL = {  # key to its largest value
    **dict.fromkeys(("translate", "brightness", "contrast", "saturation", "grey", "blur", "noise", "erasing"), 1.0),
    "rotate": 180.0,
    "shear": 60.0,
    "perspective": 0.45,
    "hue": 0.5,
}
_ALPHAS = ("mixup", "cutmix")


def has_own_strength(config: AugmentConfig) -> bool:
    """Return whether the augmentation has a strength to scale (crops count); if not, `scale_strengths` scales `medium`."""
    return bool(_strength_keys(config)) or config.crops


def scale_strengths(config: AugmentConfig, factor: float) -> dict[str, Any]:
    """Return the overrides of `augment` keys for a factor.

    Args:
        config: the augmentation at factor 1, or one without any strength.
        factor: 0 (none) to `MAX_FACTOR`; values are clipped to the largest that is valid.
    """
    has_own = has_own_strength(config)
    start = config if has_own else AugmentConfig(**{**PRESETS["medium"], "preset": "medium"})
    changes: dict[str, Any] = {}
    for key in _strength_keys(start):
        value = getattr(start, key)
        if key in _PROPORTIONAL:
            changes[key] = _round(min(_PROPORTIONAL[key], value * factor))
        elif key in _ALPHAS:
            changes[key] = _round(value * factor)
        elif key == "policy_magnitude":
            changes[key] = _round(min(30.0, value * factor))
        else:
            assert key == "zoom"
            low, high = value
            changes[key] = [_round(max(0.1, low**factor)), _round(high**factor)]  # symmetric in the logarithm
    if not has_own:
        changes["geometry_prob"] = start.geometry_prob
    elif config.crops:
        low, high = config.crop_scale
        changes["crop_scale"] = [
            _round(max(0.05, 1 - (1 - low) * factor)),
            _round(max(0.05, 1 - (1 - high) * factor)),
        ]
    return {f"augment.{key}": value for key, value in changes.items()}


def _strength_keys(config: AugmentConfig) -> list[str]:
    """Return the keys with a strength above 0, except for random crops."""
    keys = [key for key in (*_PROPORTIONAL, *_ALPHAS) if getattr(config, key) > 0]
    if config.zoom != (1.0, 1.0):
        keys.append("zoom")
    if config.policy == "randaugment" and config.policy_magnitude > 0:
        keys.append("policy_magnitude")
    return keys


def _round(value: float) -> float:
    return float(f"{value:.4g}")
