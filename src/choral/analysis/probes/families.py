"""The families of perturbations, their strengths, and the augmentation that applies the same in training. Needs no torch.

A strength is the distance from the unchanged image in the unit of a key of `augment`: where the key draws from [-x, x], the
probe uses x itself, in one direction or the other. So a strength of a curve is a value of that key. The direction, the
position of a rectangle and the noise depend only on the family and on the sample's key, so two runs are probed with the same
images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from choral.core.errors import ConfigError, did_you_mean

IDENTITY = "identity"
"""The name of the unchanged image among probes."""


@dataclass(frozen=True)
class Family:
    """One kind of perturbation.

    Attributes:
        name: of its curve.
        key: of `augment`, that applies the same in training; "": there is none.
        unit: printed behind strengths; "" for factors, and for families without a strength.
        strengths: ascending; 0 would be the unchanged image.
        both: whether each strength is probed in both directions; else there is one, or it depends on the sample.
        text: what is done, x being the strength.
    """

    name: str
    key: str
    unit: str
    strengths: tuple[float, ...]
    text: str
    both: bool = False

    @property
    def probes(self) -> tuple[Probe, ...]:
        """The probes of the family, strengths ascending."""
        signs = (1, -1) if self.both else (1,)
        return tuple(Probe(self.name, strength, sign) for strength in self.strengths for sign in signs)


@dataclass(frozen=True)
class Probe:
    """One perturbation: a family, a strength, and a sign, -1 for the second direction of a family that has both."""

    family: str
    strength: float
    sign: int = 1

    @property
    def name(self) -> str:
        """Name of its view in the ledger: rotation@30, rotation@-30."""
        return f"{self.family}@{'-' if self.sign < 0 else ''}{self.strength:g}"


FAMILIES = (
    Family("smaller", "zoom", "", (0.2, 0.35, 0.5), "scaled to 1 - x times the size, mirrored beyond the edges"),
    Family("larger", "zoom", "", (0.25, 0.5, 1.0), "scaled to 1 + x times the size, cropped at the edges"),
    Family("rotation", "rotate", "degrees", (10, 20, 30, 45, 60), "rotated by x degrees, both ways", both=True),
    Family(
        "translation",
        "translate",
        "of the side",
        (0.05, 0.1, 0.2),
        "shifted by x of the side, horizontally and vertically",
    ),
    Family("shear", "shear", "degrees", (10, 20), "sheared by x degrees, horizontally and vertically"),
    Family("perspective", "perspective", "of the side", (0.05, 0.1, 0.2), "corners moved by x of the side"),
    Family("darker", "brightness", "", (0.2, 0.4, 0.6, 0.8), "1 - x times as bright"),
    Family("lighter", "brightness", "", (0.25, 0.5, 1.0), "1 + x times as bright"),
    Family("low_contrast", "contrast", "", (0.25, 0.5, 0.75), "1 - x times the contrast"),
    Family("high_contrast", "contrast", "", (0.5, 1.0), "1 + x times the contrast"),
    Family("pale", "saturation", "", (0.5, 1.0), "1 - x times the saturation"),
    Family("vivid", "saturation", "", (0.5, 1.0), "1 + x times the saturation"),
    Family("hue", "hue", "of the circle", (0.05, 0.1, 0.25), "hue rotated by x of the colour circle"),
    Family("blur", "blur", "pixels", (1, 2, 3, 5), "Gaussian blur of x pixels at a side of 224"),
    Family("sharpening", "", "", (1, 3), "x times the difference to a blur of 2 pixels added"),
    Family("noise", "noise", "", (0.05, 0.1, 0.2), "Gaussian noise of standard deviation x, for values of 0 to 1"),
    Family("compression", "host", "", (50, 70, 85, 93), "saved as JPEG of quality 100 - x"),
    Family("occlusion", "erasing", "of the area", (0.05, 0.1, 0.2, 0.33), "a rectangle of x of the area covered"),
    Family("hflip", "hflip", "", (1,), "mirrored left to right"),
    Family("vflip", "vflip", "", (1,), "mirrored top to bottom"),
    Family("rot90", "rot90", "", (1,), "rotated by 90, 180 or 270 degrees"),
)
FAMILY_BY_NAME = {family.name: family for family in FAMILIES}
_PROBABILITY = 0.5  # of blur, noise, compression and occlusion in training


def parse_families(names: Sequence[str]) -> tuple[Family, ...]:
    """Return the families of these names, in the order of `FAMILIES`; no names: all.

    Raises:
        ConfigError: there is no such family; the message suggests the nearest name.
    """
    for name in names:
        if name not in FAMILY_BY_NAME:
            raise ConfigError(
                f"no family '{name}'.{did_you_mean(name, FAMILY_BY_NAME)} Families: {', '.join(FAMILY_BY_NAME)}"
            )
    return tuple(family for family in FAMILIES if not names or family.name in names)


def augment_settings(name: str, strength: float) -> dict[str, Any]:
    """Return the keys of `augment` that vary training images as a family does, up to a strength.

    Blur, noise, compression and occlusion are applied to half of the images, since they destroy information; flips to half
    by definition. `sharpening` has no key.

    Args:
        name: of the family.
        strength: one of the family's, or between them.
    """
    share = min(1.0, strength)  # factors are drawn from [1 - x, 1 + x], never below 0
    quality = [round(100 - strength), 100]
    settings: dict[str, dict[str, Any]] = {
        "smaller": {"zoom": [round(1 - strength, 6), 1.0]},
        "larger": {"zoom": [1.0, round(1 + strength, 6)]},
        "rotation": {"rotate": strength},
        "translation": {"translate": strength},
        "shear": {"shear": strength},
        "perspective": {"perspective": strength},
        "darker": {"brightness": share},
        "lighter": {"brightness": share},
        "low_contrast": {"contrast": share},
        "high_contrast": {"contrast": share},
        "pale": {"saturation": share},
        "vivid": {"saturation": share},
        "hue": {"hue": strength},
        "blur": {"blur": _PROBABILITY, "blur_sigma": [0.1, strength]},
        "sharpening": {},
        "noise": {"noise": _PROBABILITY, "noise_std": [0.0, strength]},
        "compression": {
            "host": [{"name": "ImageCompression", "arguments": {"quality_range": quality, "p": _PROBABILITY}}],
        },
        "occlusion": {"erasing": _PROBABILITY, "erasing_area": [0.02, max(0.02, strength)]},
        "hflip": {"hflip": 0.5},
        "vflip": {"vflip": 0.5},
        "rot90": {"rot90": True},
    }
    return settings[name]
