"""What an `augment:` section shows training already, and how it is widened to show more."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from choral.config import AugmentConfig
from choral.config.files import to_values

_GEOMETRY = ("rotate", "translate", "zoom", "shear", "perspective")
_RANGES = ("zoom", "blur_sigma", "noise_std", "erasing_area")
_RARE = {"blur": "blur_sigma", "noise": "noise_std", "erasing": "erasing_area"}  # probability, and how strong
_SHEAR = tuple(math.degrees(math.atan(tangent)) for tangent in (0.3, 0.99))
_POLICY = {  # strengths at most, of randaugment at magnitude 30 and of trivialaugment; see choral.data.augment.rand_augment
    "rotation": (30.0, 135.0),
    "translation": (150 / 331, 32 / 224),
    "shear": _SHEAR,
    **dict.fromkeys(("darker", "lighter", "low_contrast", "high_contrast", "pale", "vivid"), (0.9, 0.99)),
}
_ROUNDING = 1e-6


def covering(augment: AugmentConfig, family: str, strength: float) -> str:
    """Return what shows training a family of changes at a strength already: "augment.rotate: 30"; "" where nothing does.

    Args:
        augment: of a run.
        family: of `choral.analysis.probes.families`.
        strength: of it.
    """
    policy = _policy_strength(augment, family)
    if policy >= strength - _ROUNDING:
        return f"augment.policy: {augment.policy}"
    crops = augment.crop_scale[0]
    if family == "larger" and crops <= 1 / (1 + strength) ** 2 + _ROUNDING:
        return f"augment.crop_scale: [{crops:g}, {augment.crop_scale[1]:g}]"
    if family == "compression" and (host := _compressing(augment, strength)):
        return f"augment.host: {host}"
    own = _own_strength(augment, family)
    if own is None or own[1] < min(strength, own[2]) - _ROUNDING:
        return ""
    return f"augment.{own[0]}: {_shown(getattr(augment, own[0]))}"


def _policy_strength(augment: AugmentConfig, family: str) -> float:
    if augment.policy == "none" or family not in _POLICY:
        return -1.0
    randaugment, trivialaugment = _POLICY[family]
    return randaugment * augment.policy_magnitude / 30 if augment.policy == "randaugment" else trivialaugment


def _compressing(augment: AugmentConfig, strength: float) -> str:
    """Return the host transform that saves as JPEG of a quality down to 100 less a strength; "" where none does."""
    for transform in augment.host:
        own = {
            "compression_type": "jpeg",
            "quality_range": (99, 100),
            "p": 0.5,
            **transform.arguments,
        }  # Albumentations'
        jpeg = transform.name == "ImageCompression" and own["compression_type"] == "jpeg" and own["p"] > 0
        if jpeg and own["quality_range"][0] <= round(100 - strength):
            return f"ImageCompression, quality_range: {_shown(own['quality_range'])}"
    return ""


def _own_strength(augment: AugmentConfig, family: str) -> tuple[str, float, float] | None:
    """Return the key that shows a family, up to which strength it does, and the largest that it can; None: none does."""
    low, high = augment.zoom
    moves = augment.geometry_prob > 0
    found: dict[str, tuple[str, float, float]] = {
        "smaller": ("zoom", 1 - low if moves else 0, math.inf),
        "larger": ("zoom", high - 1 if moves else 0, math.inf),
        "rotation": ("rotate", augment.rotate if moves else 0, 180),
        "translation": ("translate", augment.translate if moves else 0, 1),
        "shear": ("shear", augment.shear if moves else 0, 60),
        "perspective": ("perspective", augment.perspective if moves else 0, 0.45),
        **dict.fromkeys(("darker", "lighter"), ("brightness", augment.brightness, 1.0)),
        **dict.fromkeys(("low_contrast", "high_contrast"), ("contrast", augment.contrast, 1.0)),
        **dict.fromkeys(("pale", "vivid"), ("saturation", augment.saturation, 1.0)),
        "hue": ("hue", augment.hue, 0.5),
        "blur": ("blur_sigma", augment.blur_sigma[1] if augment.blur > 0 else 0, math.inf),
        "noise": ("noise_std", augment.noise_std[1] if augment.noise > 0 else 0, 1.0),
        "occlusion": ("erasing_area", augment.erasing_area[1] if augment.erasing > 0 else 0, 1.0),
        "hflip": ("hflip", float(augment.hflip > 0), 1.0),
        "vflip": ("vflip", float(augment.vflip > 0), 1.0),
        "rot90": ("rot90", float(augment.rot90), 1.0),
    }
    return found.get(family)


def widened(augment: AugmentConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of the augment section, widened to what it shows already: nothing that was shown is no longer.

    Args:
        augment: of a run.
        settings: keys to values, as `choral.analysis.probes.families.augment_of` returns.
    """
    found: dict[str, Any] = {}
    for key, value in settings.items():
        there = getattr(augment, key)
        off = any(key == strength and getattr(augment, share) == 0 for share, strength in _RARE.items())
        if key == "host":
            found[key] = [*to_values(augment)["host"], *value]
        elif key in _RANGES and not off:
            found[key] = [min(there[0], value[0]), max(there[1], value[1])]
        elif key in _RANGES:
            found[key] = list(value)
        else:
            found[key] = max(there, value)
    if augment.geometry_prob == 0 and any(key in _GEOMETRY for key in settings):
        found["geometry_prob"] = AugmentConfig().geometry_prob
    return found


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(f'{item:g}' for item in value)}]"
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"
