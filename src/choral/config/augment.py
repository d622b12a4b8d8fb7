"""Random augmentation of training images, and its presets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Le
from pydantic import Field, field_validator, model_validator

from choral.config.fields import NonNegativeFloat, PositiveInt, Probability, check
from choral.config.section import Section
from choral.config.text import parse_untyped
from choral.core.errors import ConfigError, did_you_mean


class HostTransform(Section, frozen=True):
    """An Albumentations transform, which decoding workers apply to the cropped and resized uint8 image."""

    name: str
    """Class name in `albumentations`."""
    arguments: Mapping[str, Any] = Field(default_factory=dict)
    """Arguments of its constructor; `p` is its probability. Finite numbers, true, false and null (or none, ~) are read as
    such, everything else as text; lists become tuples."""

    @field_validator("arguments")
    @classmethod
    def _parse_arguments(cls, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        return {name: parse_untyped(value) for name, value in arguments.items()}


class AugmentConfig(Section, frozen=True):
    """Random augmentation of training images, in this order, with separate parameters for each sample.

    A preset sets every key but `host`. Keys beside it, or set later, override it.
    """

    preset: Literal["none", "light", "medium", "heavy"] = "light"
    """Values for all other keys but `host`."""
    crop_scale: tuple[float, float] = (0.35, 1.0)
    """Fraction of the area that a random crop keeps; [1, 1]: the whole image, cropped as in evaluation."""
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)
    """Aspect ratio (width / height) of a random crop."""
    host: tuple[HostTransform, ...] = ()
    """Albumentations transforms: [{name: CLAHE, arguments: {clip_limit: 4, p: 0.5}}]."""
    hflip: Probability = 0.5
    """Probability of a horizontal flip."""
    vflip: Probability = 0.0
    """Probability of a vertical flip."""
    rot90: bool = False
    """Rotate by 0, 90, 180 or 270 degrees, with equal probability."""
    policy: Literal["none", "randaugment", "trivialaugment"] = "none"
    """randaugment: `policy_ops` operations of strength `policy_magnitude` (Cubuk et al. 2020). trivialaugment: one operation
    of random strength (Müller and Hutter 2021)."""
    policy_ops: PositiveInt = 2
    """With randaugment: operations an image."""
    policy_magnitude: Annotated[float, Ge(0), Le(30)] = 9.0
    """With randaugment: strength, 0 to 30."""
    rotate: Annotated[float, Ge(0), Le(180)] = 0.0
    """Degrees: rotate by an angle from [-x, x]."""
    translate: Probability = 0.0
    """Fraction of the side: translate by [-x, x] in each direction."""
    zoom: tuple[float, float] = (1.0, 1.0)
    """Scale by a factor from [low, high]; above 1 enlarges."""
    shear: Annotated[float, Ge(0), Le(60)] = 0.0
    """Degrees: shear by an angle from [-x, x] in each direction."""
    perspective: Annotated[float, Ge(0), Le(0.45)] = 0.0
    """Fraction of the side by which corners move at most."""
    geometry_prob: Probability = 1.0
    """Probability of rotation, translation, zoom, shear and perspective, which are applied in one resampling. Areas outside
    the image are filled by reflection; with a policy, with the mean colour of the normalization."""
    brightness: Probability = 0.0
    """Multiply by a factor from [1 - x, 1 + x]."""
    contrast: Probability = 0.0
    """Scale the difference from the image's mean by a factor from [1 - x, 1 + x]."""
    saturation: Probability = 0.0
    """Scale the saturation by a factor from [1 - x, 1 + x]; 0 is grey."""
    hue: Annotated[float, Ge(0), Le(0.5)] = 0.0
    """Rotate the hue (in YIQ) by [-x, x] of a full turn; 0.5 covers the whole circle."""
    grey: Probability = 0.0
    """Probability of conversion to greyscale."""
    blur: Probability = 0.0
    """Probability of Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Standard deviation in pixels, for images with a side of 224."""
    noise: Probability = 0.0
    """Probability of Gaussian noise."""
    noise_std: tuple[float, float] = (0.02, 0.1)
    """Standard deviation, for values from 0 to 1."""
    erasing: Probability = 0.0
    """Probability of erasing a rectangle (Zhong et al. 2020)."""
    erasing_area: tuple[float, float] = (0.02, 0.33)
    """Fraction of the image to erase."""
    mixup: NonNegativeFloat = 0.0
    """Alpha of the beta distribution of mixup weights (Zhang et al. 2018); 0: none."""
    cutmix: NonNegativeFloat = 0.0
    """Alpha of the beta distribution of CutMix areas (Yun et al. 2019); 0: none. With mixup, one of the two is chosen, with
    equal probability."""
    mix_prob: Probability = 1.0
    """Probability that a sample is mixed."""

    @model_validator(mode="after")
    def _check_ranges(self) -> Self:
        low, high = self.crop_scale
        check(0 < low <= high <= 1, "augment.crop_scale", "expected [low, high] with 0 < low <= high <= 1")
        for key in ("crop_ratio", "zoom", "blur_sigma"):
            low, high = getattr(self, key)
            check(0 < low <= high, f"augment.{key}", "expected [low, high] with 0 < low <= high")
        for key in ("noise_std", "erasing_area"):
            low, high = getattr(self, key)
            check(0 <= low <= high <= 1, f"augment.{key}", "expected [low, high] with 0 <= low <= high <= 1")
        return self

    @property
    def crops(self) -> bool:
        """Whether training images are cropped at random."""
        return self.crop_scale != (1.0, 1.0)

    @property
    def mixes(self) -> bool:
        """Whether training images are mixed with others."""
        return (self.mixup > 0 or self.cutmix > 0) and self.mix_prob > 0


_LIGHT: dict[str, Any] = {
    name: field.default for name, field in AugmentConfig.model_fields.items() if name not in ("preset", "host")
}
PRESETS: dict[str, dict[str, Any]] = {
    "none": _LIGHT | {"crop_scale": (1.0, 1.0), "hflip": 0.0},
    "light": _LIGHT,
    # fastai's aug_transforms, proven on many small data sets (Howard and Gugger 2020): rotation by 10 degrees, zoom by 10 %,
    # lighting by 20 %, three times out of four; plus a little erasing, as in torchvision's recipe of 2021.
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
    # RandAugment 2 x 9 and erasing 0.25 from DeiT (Touvron et al. 2021), mixup 0.2 and cutmix 1 from ResNet strikes back
    # (Wightman et al. 2021), some blur and grey as in DeiT III (Touvron et al. 2022). For long training on large data sets.
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
    """Return the augment section of one file or override, with the values of the preset it names below its own keys.

    Raises:
        ConfigError: there is no such preset; the message names the nearest one.
    """
    name = section.get("preset")
    if name is None:
        return dict(section)
    if name not in PRESETS:
        hint = did_you_mean(str(name), PRESETS)
        raise ConfigError(f"augment.preset: expected {', '.join(PRESETS)}, got '{name}'.{hint}")
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in PRESETS[name].items()}
    return {**values, **section}
