"""What an augment section covers, and how settings widen it."""

from __future__ import annotations

import pytest

from choral.analysis.augment_coverage import find_covering_setting, widen_settings
from choral.analysis.probes.families import FAMILIES, augment_settings
from choral.config import AugmentConfig, Config, DataConfig
from choral.config.augment import HostTransform
from choral.config.files import with_overrides

NONE = AugmentConfig(preset="none", crop_scale=(1.0, 1.0), hflip=0.0)


def changed(augment: AugmentConfig, settings: dict[str, object]) -> AugmentConfig:
    config = Config(data=DataConfig(shards="s"), augment=augment)
    return with_overrides(config, {f"augment.{key}": value for key, value in settings.items()}, "test").augment


def compressing(**arguments: object) -> AugmentConfig:
    return AugmentConfig(host=(HostTransform(name="ImageCompression", arguments=arguments),))


@pytest.mark.parametrize("family", [one.name for one in FAMILIES if one.key])
def test_what_is_advised_is_covered_afterwards_and_not_before(family: str) -> None:
    for strength in next(one for one in FAMILIES if one.name == family).strengths:
        assert not find_covering_setting(NONE, family, strength)
        settings = widen_settings(NONE, augment_settings(family, strength))
        assert find_covering_setting(changed(NONE, settings), family, strength).startswith("augment.")


@pytest.mark.parametrize(
    ("augment", "family", "strength", "by"),
    [
        (AugmentConfig(rotate=30), "rotation", 30, "augment.rotate: 30"),
        (AugmentConfig(rotate=30), "rotation", 45, ""),
        (AugmentConfig(rotate=30, geometry_prob=0), "rotation", 10, ""),
        (AugmentConfig(crop_scale=(0.25, 1)), "larger", 1.0, "augment.crop_scale: [0.25, 1]"),
        (AugmentConfig(crop_scale=(0.25, 1)), "smaller", 0.2, ""),
        (AugmentConfig(policy="randaugment", policy_magnitude=15), "rotation", 15, "augment.policy: randaugment"),
        (AugmentConfig(policy="randaugment", policy_magnitude=15), "rotation", 20, ""),
        (AugmentConfig(policy="trivialaugment"), "darker", 0.8, "augment.policy: trivialaugment"),
        (compressing(), "compression", 50, ""),  # quality 99 and more
        (compressing(quality_range=[20, 90], p=0), "compression", 50, ""),
        (compressing(quality_range=[20, 90], compression_type="webp"), "compression", 50, ""),
        (compressing(quality_range=[20, 90]), "compression", 85, ""),
        (
            compressing(quality_range=[20, 90]),
            "compression",
            70,
            "augment.host: ImageCompression, quality_range: [20, 90]",
        ),
        (AugmentConfig(blur=0, blur_sigma=(0.1, 9)), "blur", 1, ""),
    ],
)
def test_what_covers_a_family(augment: AugmentConfig, family: str, strength: float, by: str) -> None:
    assert find_covering_setting(augment, family, strength) == by


def test_nothing_that_was_shown_is_lost() -> None:
    there = AugmentConfig(rotate=20, zoom=(0.9, 1.5), noise=0.8, noise_std=(0.1, 0.2), geometry_prob=0.75)
    assert widen_settings(there, augment_settings("rotation", 10)) == {"rotate": 20}
    assert widen_settings(there, augment_settings("smaller", 0.5)) == {"zoom": [0.5, 1.5]}
    assert widen_settings(there, augment_settings("noise", 0.05)) == {"noise": 0.8, "noise_std": [0.0, 0.2]}
    assert widen_settings(AugmentConfig(geometry_prob=0), augment_settings("rotation", 10)) == {
        "rotate": 10,
        "geometry_prob": 1.0,
    }
    assert widen_settings(there, augment_settings("blur", 3)) == {"blur": 0.5, "blur_sigma": [0.1, 3]}
