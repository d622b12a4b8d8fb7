"""Random changes to training images, and presets of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from choral.config.fields import check
from choral.core.errors import ConfigError, did_you_mean

_WORDS = {"true": True, "false": False, "null": None, "none": None, "~": None}


def plain(value: Any) -> Any:
    """Return what strings from a YAML file mean, in lists and mappings as well.

    Finite numbers are numbers; true and false, and null, none and ~ in any case, are what Python calls so; all else is
    text, "nan" and "inf" too. A transform that takes the text "none" cannot be given it.
    """
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(plain(item) for item in value)
    if not isinstance(value, str):
        return value
    if value.lower() in _WORDS:
        return _WORDS[value.lower()]
    for kind in (int, float):
        try:
            number = kind(value)
        except ValueError:
            continue
        return value if isinstance(number, float) and not math.isfinite(number) else number
    return value


@dataclass(frozen=True, kw_only=True)
class HostTransform:
    """A transform of Albumentations, applied to the cropped and resized uint8 image by the decoding workers."""

    name: str
    """As in `albumentations.NAME`."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """What its constructor takes; `p` is its probability. Strings mean what `plain` says: finite numbers, true, false, null
    (or none, ~), else text; lists become tuples."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "arguments", {name: plain(value) for name, value in self.arguments.items()})


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes to training images, and to nothing else. In this order, each with parameters a sample.

    A preset stands for a value of every key but `host`. Keys beside it, or set later, win.
    """

    preset: Literal["none", "light", "medium", "heavy"] = "light"
    crop_scale: tuple[float, float] = (0.35, 1.0)
    """Share of the area that a random crop keeps; [1, 1]: the whole image, cropped as in evaluation."""
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)
    """Aspect ratios (width / height) of a random crop."""
    host: tuple[HostTransform, ...] = ()
    """Transforms of Albumentations: [{name: CLAHE, arguments: {clip_limit: 4, p: 0.5}}]."""
    hflip: float = 0.5
    """Probability."""
    vflip: float = 0.0
    """Probability."""
    rot90: bool = False
    """Turn by 0, 90, 180 or 270 degrees, each as likely."""
    policy: Literal["none", "randaugment", "trivialaugment"] = "none"
    """randaugment: `policy_ops` operations of strength `policy_magnitude` (Cubuk et al. 2020); trivialaugment: one
    operation of random strength (Müller and Hutter 2021)."""
    policy_ops: int = 2
    policy_magnitude: float = 9.0
    """0 to 30."""
    rotate: float = 0.0
    """Degrees: turned by an angle from [-x, x]."""
    translate: float = 0.0
    """Share of the side: moved by [-x, x] in each direction."""
    zoom: tuple[float, float] = (1.0, 1.0)
    """Factor drawn from [low, high]; above 1: larger."""
    shear: float = 0.0
    """Degrees, in each direction."""
    perspective: float = 0.0
    """Share of the side by which corners move at most."""
    geometry_prob: float = 1.0
    """Probability of rotation, translation, zoom, shear and perspective, which are one resampling. What comes in from
    outside is the image, mirrored; with a policy, the mean colour that images are normalised with."""
    brightness: float = 0.0
    """Factor drawn from [1 - x, 1 + x]."""
    contrast: float = 0.0
    """Factor drawn from [1 - x, 1 + x], about the image's mean."""
    saturation: float = 0.0
    """Factor drawn from [1 - x, 1 + x]; 0 is grey."""
    hue: float = 0.0
    """Turn of the colour circle (of YIQ) drawn from [-x, x]; 0.5 is half of it."""
    grey: float = 0.0
    """Probability of losing all colour."""
    blur: float = 0.0
    """Probability of a Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Standard deviation, in pixels of a side of 224."""
    noise: float = 0.0
    """Probability of Gaussian noise."""
    noise_std: tuple[float, float] = (0.02, 0.1)
    """Standard deviation, of values from 0 to 1."""
    erasing: float = 0.0
    """Probability that a rectangle is erased (Zhong et al. 2020)."""
    erasing_area: tuple[float, float] = (0.02, 0.33)
    """Share of the image."""
    mixup: float = 0.0
    """Alpha of the beta distribution of weights (Zhang et al. 2018); 0: none."""
    cutmix: float = 0.0
    """Alpha of the beta distribution of areas (Yun et al. 2019); 0: none. With mixup: one or the other, each as likely."""
    mix_prob: float = 1.0
    """Probability that a sample is mixed at all."""

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        check(0 < low <= high <= 1, "augment.crop_scale", "expected [low, high] with 0 < low <= high <= 1")
        for key in ("crop_ratio", "zoom", "blur_sigma"):
            low, high = getattr(self, key)
            check(0 < low <= high, f"augment.{key}", "expected [low, high] with 0 < low <= high")
        for key in ("noise_std", "erasing_area"):
            low, high = getattr(self, key)
            check(0 <= low <= high <= 1, f"augment.{key}", "expected [low, high] with 0 <= low <= high <= 1")
        shares = (
            "hflip",
            "vflip",
            "translate",
            "geometry_prob",
            "brightness",
            "contrast",
            "saturation",
            "grey",
            "blur",
        )
        for key in (*shares, "noise", "erasing", "mix_prob"):
            check(0 <= getattr(self, key) <= 1, f"augment.{key}", "expected 0 to 1")
        for key, most in (
            ("rotate", 180),
            ("shear", 60),
            ("perspective", 0.45),
            ("hue", 0.5),
            ("policy_magnitude", 30),
        ):
            check(0 <= getattr(self, key) <= most, f"augment.{key}", f"expected 0 to {most}")
        check(self.policy_ops >= 1, "augment.policy_ops", "expected at least 1")
        for key in ("mixup", "cutmix"):
            check(getattr(self, key) >= 0, f"augment.{key}", "expected 0 (none) or more")

    @property
    def crops(self) -> bool:
        """Whether training images are cropped at random."""
        return self.crop_scale != (1.0, 1.0)

    @property
    def mixes(self) -> bool:
        """Whether training images are mixed with others."""
        return (self.mixup > 0 or self.cutmix > 0) and self.mix_prob > 0


_LIGHT: dict[str, Any] = {
    item.name: item.default for item in fields(AugmentConfig) if item.name not in ("preset", "host")
}
PRESETS: dict[str, dict[str, Any]] = {
    "none": _LIGHT | {"crop_scale": (1.0, 1.0), "hflip": 0.0},
    "light": _LIGHT,
    # As fastai's aug_transforms, of which many small data sets have profited (Howard and Gugger 2020): turned by 10 degrees,
    # zoomed by 10 %, lighting by 20 %, three times out of four; a little erasing, as in torchvision's recipe of 2021.
    "medium": _LIGHT
    | {
        "rotate": 10.0,
        "translate": 0.05,
        "zoom": (0.9, 1.1),
        "perspective": 0.05,
        "geometry_prob": 0.75,
        "brightness": 0.2,
        "contrast": 0.2,
        "saturation": 0.2,
        "erasing": 0.1,
    },
    # RandAugment 2 x 9 and erasing 0.25 of DeiT (Touvron et al. 2021), mixup 0.2 and cutmix 1 of ResNet strikes back
    # (Wightman et al. 2021), some blur and grey as in DeiT III (Touvron et al. 2022). For long runs on much data.
    "heavy": _LIGHT
    | {
        "crop_scale": (0.2, 1.0),
        "policy": "randaugment",
        "grey": 0.05,
        "blur": 0.1,
        "erasing": 0.25,
        "mixup": 0.2,
        "cutmix": 1.0,
    },
}


def expand_preset(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the augment section of one file or override with its preset, if it names one, written out below its keys.

    Raises:
        ConfigError: no such preset; the nearest is named.
    """
    name = section.get("preset")
    if name is None:
        return dict(section)
    if name not in PRESETS:
        hint = did_you_mean(str(name), PRESETS)
        raise ConfigError(f"augment.preset: expected {', '.join(PRESETS)}, got '{name}'.{hint}")
    written_out = {key: list(value) if isinstance(value, tuple) else value for key, value in PRESETS[name].items()}
    return {**written_out, **section}
