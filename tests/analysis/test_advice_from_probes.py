"""Advice from made-up probes: a planted variation is advised at its strength, and nothing else is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from choral.analysis.advice import Advice
from choral.analysis.advice_from_probes import make_advice
from choral.analysis.probe_curves import ProbePredictions, compute_curves
from choral.analysis.probe_evidence import UNDONE_BY, compute_other_class_share, find_shown_strength
from choral.analysis.probes.families import FAMILY_BY_NAME, Family, Probe, parse_families
from choral.config import AugmentConfig
from choral.inference.ledger import Ledger, LedgerMeta, build_ledger_table, feature_column_name, merge_parts, write_part

N, CLASSES = 300, ("x", "y", "z")
NONE = AugmentConfig(preset="none", crop_scale=(1.0, 1.0), hflip=0.0)
NAMES = ("rotation", "darker", "lighter", "high_contrast", "low_contrast", "compression", "vflip", "sharpening")


def said(
    labels: NDArray[np.int64], right: NDArray[np.bool_], sure: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Return probabilities: about `sure` of the label, where it is right, of another class where not."""
    top = np.clip(sure + rng.normal(0, 0.02, N), 0.4, 0.999)
    values = np.repeat((1 - top)[:, None] / 2, 3, axis=1)
    values[np.arange(N), np.where(right, labels, (labels + 1) % 3)] = top
    return values.astype(np.float32)


def probed(
    folder: Path,
    shown: Mapping[Probe, float],
    turned: Probe | None = None,
    alike: Probe | None = None,
    families: tuple[Family, ...] = parse_families(NAMES),
    right: float = 0.4,
) -> ProbePredictions:
    """Return probes of images of which half show something, so that 40 % of these are right.

    Args:
        folder: for the ledger.
        shown: probe to the share of that half that is right, and sure, when it is made; every other probe makes any image a
            matter of chance.
        turned: a probe that gives images the features of the next class.
        alike: one that leaves them theirs; every other one moves them away.
        families: that are probed.
        right: share of that half that is right unchanged.
    """
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, N)
    half = np.arange(N) < N // 2
    probes = [probe for family in families for probe in family.probes]
    meta = LedgerMeta(
        CLASSES, ("soft",), ("identity", *(probe.name for probe in probes)), "val", "d", "e-p", features=64
    )
    chance = said(labels, rng.random(N) < right, 0.5, rng)
    plain = np.where(half[:, None], chance, said(labels, rng.random(N) < max(0.98, right), 0.97, rng))
    centres = rng.normal(size=(3, 64))
    near = rng.normal(0, 0.1, (N, 64))
    columns = {
        ("soft", "identity"): plain,
        ("soft", feature_column_name("identity")): (centres[labels] + near).astype(np.float32),
    }
    for probe in probes:
        values = said(labels, rng.random(N) < 0.4, 0.5, rng)
        if probe in shown:
            values = np.where(half[:, None], said(labels, rng.random(N) < shown[probe], 0.97, rng), values)
        columns["soft", probe.name] = values
        at = (labels + 1) % 3 if probe == turned else labels
        away = 0 if probe in (turned, alike) else 0.5
        columns["soft", feature_column_name(probe.name)] = (centres[at] + away + near).astype(np.float32)
    keys = [f"val{number:05d}" for number in range(N)]
    write_part(folder / "parts", 0, 1, build_ledger_table(meta, keys, labels, columns))
    merge_parts(folder / "parts", 1, keys, folder / "val.parquet", meta)
    return ProbePredictions(Ledger.open(folder / "val.parquet"))


def advised(found: ProbePredictions, augment: AugmentConfig = NONE) -> Advice:
    return make_advice(found, compute_curves(found, "made"), augment)


def reasons(advice: Advice) -> dict[str, str]:
    return {one.family: one.reason for one in advice.rejected}


def test_what_is_planted_is_advised_with_its_strength_and_figures(tmp_path: Path) -> None:
    advice = advised(probed(tmp_path, {Probe("lighter", 0.5): 0.97, Probe("high_contrast", 0.5): 0.7}))
    (line,) = advice.lines
    assert (line.family, line.key, line.value, line.settings) == ("darker", "brightness", 0.4, {"brightness": 0.4})
    assert line.p_drop < 0.05 and line.p_gain < 0.05 and line.gain["low"] > 0 and line.drop["low"] > 0
    assert 0.7 < line.plausibility <= 1 and line.score == pytest.approx(line.drop["value"] * line.plausibility)
    assert "lighter up to 0.5" in line.reason
    why = reasons(advice)
    assert "lighter corrects the same errors" in why["low_contrast"]
    assert "nothing undoes it" in why["compression"]
    assert "no key of augment" in why["sharpening"]
    assert "undoing it corrects nothing significant" in why["rotation"]
    assert set(why) | {"darker"} == set(NAMES)


def test_both_directions_of_an_angle_undo_it(tmp_path: Path) -> None:
    left, right = Probe("rotation", 30, 1), Probe("rotation", 30, -1)
    (line,) = advised(probed(tmp_path, {left: 0.97, right: 0.97})).lines
    assert (line.family, line.value, line.unit) == ("rotation", 30, "degrees")


def test_where_nothing_is_shown_nothing_is_advised_and_changed_labels_are_told(tmp_path: Path) -> None:
    advice = advised(probed(tmp_path, {}, turned=Probe("vflip", 1)))
    assert advice.lines == () and advice.settings == {}
    assert advice.note.startswith("Nothing is advised")
    assert "100 % are nearest to an image of another class (0 % unchanged)" in reasons(advice)["vflip"]
    assert "another class" not in reasons(advice)["rotation"]


def test_a_flip_that_half_of_the_images_show_costs_nothing_on_average_and_is_advised(tmp_path: Path) -> None:
    flip = Probe("vflip", 1)
    found = probed(tmp_path, {flip: 0.97})
    assert compute_curves(found, "made").curves[-1].points[0].drop < 0.1
    (line,) = advised(found).lines
    assert (line.family, line.settings) == ("vflip", {"vflip": 0.5})
    assert line.drop == line.gain


def test_what_costs_though_it_looks_like_its_class_is_advised_where_nothing_is_undone(tmp_path: Path) -> None:
    found = probed(tmp_path, {}, turned=Probe("vflip", 1), alike=Probe("compression", 70))
    (line,) = advised(found).lines
    assert (line.family, line.strength, line.evidence) == ("compression", 70, "alike")
    assert line.settings == {
        "host": [{"name": "ImageCompression", "arguments": {"quality_range": [30, 100], "p": 0.5}}]
    }
    assert line.gain is None and line.plausibility == 1.0 and line.score == pytest.approx(line.drop["value"])
    assert "nearest neighbour is of the other kind" in line.reason
    assert (
        "for 0 % of the perturbed images the nearest neighbour is of the other kind"
        in reasons(advised(found))["rotation"]
    )


def test_what_validation_shows_comes_before_what_it_might(tmp_path: Path) -> None:
    found = probed(tmp_path, {Probe("lighter", 0.5): 0.97}, alike=Probe("compression", 70))
    assert [(line.family, line.evidence) for line in advised(found).lines] == [("darker", "undone")]


def test_nothing_is_advised_where_hardly_anything_is_wrong(tmp_path: Path) -> None:
    found = probed(tmp_path, {}, alike=Probe("compression", 70), right=1.0)
    assert advised(found).lines == ()


def test_what_the_run_was_trained_with_is_not_advised_again(tmp_path: Path) -> None:
    found = probed(tmp_path, {Probe("lighter", 0.5): 0.97})
    advice = advised(found, AugmentConfig(brightness=0.4))
    assert advice.lines == ()
    assert "augment.brightness: 0.4 covers it already" in reasons(advice)["darker"]
    (line,) = advised(found, AugmentConfig(brightness=0.3)).lines
    assert line.value == 0.4


def test_lines_of_one_key_are_one_value(tmp_path: Path) -> None:
    families = parse_families(("smaller", "larger"))
    found = probed(tmp_path, {Probe("larger", 1.0): 0.97, Probe("smaller", 0.2): 0.0}, families=families)
    (line,) = advised(found, AugmentConfig(crop_scale=(1, 1), zoom=(0.9, 1.5))).lines
    assert (line.family, line.settings) == ("smaller", {"zoom": [0.5, 1.5]})


@pytest.mark.parametrize(
    ("family", "undone", "shown"),
    [
        ("rotation", 20, 20),
        ("darker", 1.0, 0.6),  # twice as bright: it was half, of which 0.6 is the next that was probed
        ("lighter", 0.4, 1.0),
        ("smaller", 1.0, 0.5),
        ("larger", 0.5, 1.0),
        ("blur", 1, 2),
        ("blur", 3, 5),
        ("noise", 5, 0.2),
        ("vflip", 1, 1),
    ],
)
def test_the_strength_that_images_show(family: str, undone: float, shown: float) -> None:
    assert find_shown_strength(family, undone) == shown


def test_what_undoes_a_family_is_one() -> None:
    assert set(UNDONE_BY) | set(UNDONE_BY.values()) <= set(FAMILY_BY_NAME)
    assert len(set(UNDONE_BY.values())) == len(UNDONE_BY)


def test_the_share_next_to_another_class(tmp_path: Path) -> None:
    found = probed(tmp_path, {}, turned=Probe("vflip", 1))
    assert compute_other_class_share(found, None) == 0
    assert compute_other_class_share(found, Probe("vflip", 1)) == 1
