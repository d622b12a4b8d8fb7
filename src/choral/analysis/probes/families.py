"""The families of changes, their strengths, and the augmentation that would show the same in training. Needs no torch.

A strength is the distance from the unchanged image in the unit of a key of `augment`: what the key draws from [-x, x] is
here x itself, in one direction or the other. So a curve over strengths is read as a value of that key. Which direction,
where a rectangle lies and what noise looks like depends on the family and the key of the sample alone, not on the run:
two runs are shown the same images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from choral.core.errors import ConfigError, did_you_mean

IDENTITY = "identity"
"""What the unchanged image is called among probes."""


@dataclass(frozen=True)
class Family:
    """One kind of change.

    Attributes:
        name: of its curve.
        key: of `augment`, that shows the same in training; "": there is none.
        unit: of the strengths, as it is printed behind them; "" of factors, and of what is made or not.
        strengths: that are tried, ascending; 0 would be the unchanged image.
        both: whether each strength is tried in both directions; else there is one, or the sample decides.
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
        """The changes of the family, strengths ascending."""
        signs = (1, -1) if self.both else (1,)
        return tuple(Probe(self.name, strength, sign) for strength in self.strengths for sign in signs)


@dataclass(frozen=True)
class Probe:
    """One change: a family, a strength, and of a family with both directions, -1 for the other one."""

    family: str
    strength: float
    sign: int = 1

    @property
    def name(self) -> str:
        """Of its column: rotation@30, rotation@-30."""
        return f"{self.family}@{'-' if self.sign < 0 else ''}{self.strength:g}"


FAMILIES = (
    Family("smaller", "zoom", "", (0.2, 0.35, 0.5), "1 - x times as large, mirrored beyond its edges"),
    Family("larger", "zoom", "", (0.25, 0.5, 1.0), "1 + x times as large, cut off at the edges"),
    Family("rotation", "rotate", "degrees", (10, 20, 30, 45, 60), "turned by x degrees, both ways", both=True),
    Family("translation", "translate", "of the side", (0.05, 0.1, 0.2), "moved by x of the side, across and down"),
    Family("shear", "shear", "degrees", (10, 20), "slanted by x degrees, across and down"),
    Family("perspective", "perspective", "of the side", (0.05, 0.1, 0.2), "corners moved by x of the side each way"),
    Family("darker", "brightness", "", (0.2, 0.4, 0.6, 0.8), "1 - x times as bright"),
    Family("lighter", "brightness", "", (0.25, 0.5, 1.0), "1 + x times as bright"),
    Family("low_contrast", "contrast", "", (0.25, 0.5, 0.75), "1 - x times the contrast"),
    Family("high_contrast", "contrast", "", (0.5, 1.0), "1 + x times the contrast"),
    Family("pale", "saturation", "", (0.5, 1.0), "1 - x times the saturation"),
    Family("vivid", "saturation", "", (0.5, 1.0), "1 + x times the saturation"),
    Family("hue", "hue", "of the circle", (0.05, 0.1, 0.25), "colours turned by x of the circle"),
    Family("blur", "blur", "pixels", (1, 2, 3, 5), "Gaussian blur of x pixels, of a side of 224"),
    Family("sharpening", "", "", (1, 3), "x times the difference to a blur of 2 pixels, added"),
    Family("noise", "noise", "", (0.05, 0.1, 0.2), "Gaussian noise of x, values being 0 to 1"),
    Family("compression", "host", "", (50, 70, 85, 93), "saved as JPEG of quality 100 - x"),
    Family("occlusion", "erasing", "of the area", (0.05, 0.1, 0.2, 0.33), "a rectangle of x of the area is covered"),
    Family("hflip", "hflip", "", (1,), "left and right exchanged"),
    Family("vflip", "vflip", "", (1,), "top and bottom exchanged"),
    Family("rot90", "rot90", "", (1,), "turned by 90, 180 or 270 degrees"),
)
BY_NAME = {family.name: family for family in FAMILIES}
_SHARE = 0.5  # of the training images that rare changes are made to, where they are made


def families_of(names: Sequence[str]) -> tuple[Family, ...]:
    """Return the families of these names in their own order; none: all.

    Raises:
        ConfigError: there is no such family; the nearest is shown.
    """
    for name in names:
        if name not in BY_NAME:
            raise ConfigError(f"no family '{name}'.{did_you_mean(name, BY_NAME)} There are: {', '.join(BY_NAME)}")
    return tuple(family for family in FAMILIES if not names or family.name in names)


def augment_of(name: str, strength: float) -> dict[str, Any]:
    """Return the keys of `augment` under which training images are changed like those of a family up to a strength.

    Changes that an image survives once but hardly always (blur, noise, compression, occlusion) come to half of them, and
    flips to half, by definition. Of `sharpening`, which no key does, there are none.

    Args:
        name: of the family.
        strength: one of its own, or between them.
    """
    share = min(1.0, strength)  # factors are drawn from [1 - x, 1 + x], never below 0
    quality = [round(100 - strength), 100]
    found: dict[str, dict[str, Any]] = {
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
        "blur": {"blur": _SHARE, "blur_sigma": [0.1, strength]},
        "sharpening": {},
        "noise": {"noise": _SHARE, "noise_std": [0.0, strength]},
        "compression": {
            "host": [{"name": "ImageCompression", "arguments": {"quality_range": quality, "p": _SHARE}}],
        },
        "occlusion": {"erasing": _SHARE, "erasing_area": [0.02, max(0.02, strength)]},
        "hflip": {"hflip": 0.5},
        "vflip": {"vflip": 0.5},
        "rot90": {"rot90": True},
    }
    return found[name]
