"""Compares a family of perturbations with an `augment:` section: is it covered, and which settings would cover it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from choral.config import AugmentConfig
from choral.config.files import to_dict

_GEOMETRY = ("rotate", "translate", "zoom", "shear", "perspective")
_RANGES = ("zoom", "blur_sigma", "noise_std", "erasing_area")
_RANGE_OF_PROBABILITY = {"blur": "blur_sigma", "noise": "noise_std", "erasing": "erasing_area"}
_SHEAR = tuple(math.degrees(math.atan(tangent)) for tangent in (0.3, 0.99))
_POLICY_STRENGTHS = {  # largest: of randaugment at magnitude 30, of trivialaugment; see choral.data.augment.rand_augment
    "rotation": (30.0, 135.0),
    "translation": (150 / 331, 32 / 224),
    "shear": _SHEAR,
    **dict.fromkeys(("darker", "lighter", "low_contrast", "high_contrast", "pale", "vivid"), (0.9, 0.99)),
}
_TOLERANCE = 1e-6


def find_covering_setting(augment: AugmentConfig, family: str, strength: float) -> str:
    """Return the setting that covers a family up to a strength, such as "augment.rotate: 30"; "" where none does.

    Args:
        augment: of a run.
        family: name from `choral.analysis.probes.families`.
        strength: in the family's unit.
    """
    if _policy_strength(augment, family) >= strength - _TOLERANCE:
        return f"augment.policy: {augment.policy}"
    smallest_crop = augment.crop_scale[0]
    if family == "larger" and smallest_crop <= 1 / (1 + strength) ** 2 + _TOLERANCE:
        return f"augment.crop_scale: [{smallest_crop:g}, {augment.crop_scale[1]:g}]"
    if family == "compression" and (transform := _compression_transform(augment, strength)):
        return f"augment.host: {transform}"
    setting = _family_setting(augment, family)
    if setting is None:
        return ""
    key, covered, largest = setting
    if covered < min(strength, largest) - _TOLERANCE:
        return ""
    return f"augment.{key}: {_format_value(getattr(augment, key))}"


def _policy_strength(augment: AugmentConfig, family: str) -> float:
    if augment.policy == "none" or family not in _POLICY_STRENGTHS:
        return -1.0
    randaugment, trivialaugment = _POLICY_STRENGTHS[family]
    return randaugment * augment.policy_magnitude / 30 if augment.policy == "randaugment" else trivialaugment


def _compression_transform(augment: AugmentConfig, strength: float) -> str:
    """Return the host transform that saves as JPEG down to quality 100 - strength; "" where none does."""
    for transform in augment.host:
        arguments = {  # Albumentations' defaults
            "compression_type": "jpeg",
            "quality_range": (99, 100),
            "p": 0.5,
            **transform.arguments,
        }
        is_jpeg = transform.name == "ImageCompression" and arguments["compression_type"] == "jpeg"
        if is_jpeg and arguments["p"] > 0 and arguments["quality_range"][0] <= round(100 - strength):
            return f"ImageCompression, quality_range: {_format_value(arguments['quality_range'])}"
    return ""


def _family_setting(augment: AugmentConfig, family: str) -> tuple[str, float, float] | None:
    """Return the key of a family, the strength that its value covers, and the largest it can cover; None: no key."""
    low, high = augment.zoom
    has_geometry = augment.geometry_prob > 0
    settings: dict[str, tuple[str, float, float]] = {
        "smaller": ("zoom", 1 - low if has_geometry else 0, math.inf),
        "larger": ("zoom", high - 1 if has_geometry else 0, math.inf),
        "rotation": ("rotate", augment.rotate if has_geometry else 0, 180),
        "translation": ("translate", augment.translate if has_geometry else 0, 1),
        "shear": ("shear", augment.shear if has_geometry else 0, 60),
        "perspective": ("perspective", augment.perspective if has_geometry else 0, 0.45),
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
    return settings.get(family)


def widen_settings(augment: AugmentConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings extended to what the augment section covers already, so that nothing is lost.

    Args:
        augment: of a run.
        settings: keys to values, as `choral.analysis.probes.families.augment_settings` returns.
    """
    widened: dict[str, Any] = {}
    for key, value in settings.items():
        current = getattr(augment, key)
        is_off = any(key == name and getattr(augment, prob) == 0 for prob, name in _RANGE_OF_PROBABILITY.items())
        if key == "host":
            widened[key] = [*to_dict(augment)["host"], *value]
        elif key in _RANGES and not is_off:
            widened[key] = [min(current[0], value[0]), max(current[1], value[1])]
        elif key in _RANGES:
            widened[key] = list(value)
        else:
            widened[key] = max(current, value)
    if augment.geometry_prob == 0 and any(key in _GEOMETRY for key in settings):
        widened["geometry_prob"] = AugmentConfig().geometry_prob
    return widened


def _format_value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(f'{item:g}' for item in value)}]"
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"
