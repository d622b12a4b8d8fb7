"""An analysis of a run as a whole: planted duplicates, unreadable and constant images, and plain JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from choral.analysis.results import Analysis
from choral.analysis.run_analysis import run_analysis
from choral.core.errors import DataError
from choral.runs.run_dir import RunDir
from made_data import VARIANTS, packed, picture, run_about, saved

PLACES = [(split, name) for split in ("train", "val", "test") for name in "xyz"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("analysis")


@pytest.fixture(scope="module")
def analysis(place: Path) -> Analysis:
    folder = place
    files = {}
    for number in range(99):
        split, name = PLACES[number % len(PLACES)]
        files[f"{split}/{name}/{number:03d}.png"] = saved(picture(number))
    for number, (variant, change) in enumerate(VARIANTS.items()):
        files[f"test/y/{variant}.png"] = change(picture(9 * number))  # the original: train, x
    files["val/x/flat.png"] = saved(np.full((40, 60, 3), 90, np.uint8))
    files["train/z/wide.png"] = saved(picture(500, 96)[:12])
    run, config = run_about(folder / "run", packed(folder, files))
    return run_analysis(run, config, "val", processes=1)


def test_every_planted_duplicate_is_found_and_nothing_else(analysis: Analysis) -> None:
    found = analysis.duplicates
    pairs = {tuple(sample.key for sample in group.samples) for group in found.groups}
    for number, variant in enumerate(VARIANTS):
        assert any(
            any(f"{9 * number:03d}" in key for key in pair) and any(variant in key for key in pair) for pair in pairs
        ), (variant, pairs)
    assert found.found == len(VARIANTS) == found.across == found.conflicts
    assert found.leaked == {"val": 0, "test": len(VARIANTS)}


def test_it_is_plain_json(analysis: Analysis) -> None:
    content = json.loads(json.dumps(analysis.to_json(), allow_nan=False))
    assert content["n"] == len(content["samples"]["keys"]) == len(content["samples"]["votes"])


def test_what_stands_out_of_the_images_is_named(analysis: Analysis) -> None:
    health = analysis.health
    assert [(bad.split, "flat" in bad.key) for bad in health.constant] == [("val", True)]
    assert health.constant_found == 1 and health.unreadable_found == 0
    assert any(one.quantity == "aspect" and "wide" in one.key and one.value == 8 for one in health.outliers)
    assert sum(health.samples.values()) == health.measured == 99 + len(VARIANTS) + 2
    assert health.class_counts["train"] == (11, 11, 12)
    assert any("constant" in note for note in health.notes)
    for quantity in health.quantities:
        for split, histogram in quantity.splits.items():
            assert histogram.counts.sum() == health.samples[split], quantity.name


def test_slices_by_what_was_measured_part_the_samples(analysis: Analysis) -> None:
    slices = analysis.groups.slices
    assert {"brightness", "contrast", "sharpness"} <= set(slices)
    for groups in slices.values():
        assert sum(group.n for group in groups) == analysis.n
    assert analysis.groups.comparisons == len(analysis.groups.classes) + sum(
        1 if len(groups) == 2 else len(groups) for groups in slices.values()
    )


def test_the_second_time_no_image_is_opened(analysis: Analysis, place: Path) -> None:
    opened: list[str] = []
    folder = RunDir(place / "run")
    again = run_analysis(folder, folder.config(), "val", progress=lambda what, done, total: opened.append(what))
    assert not opened
    assert again.duplicates == analysis.duplicates
    assert {**again.to_json(), "date": ""} == {**analysis.to_json(), "date": ""}


def test_other_data_than_were_evaluated_are_refused(analysis: Analysis, place: Path, shards: Path) -> None:
    folder = RunDir(place / "run")
    config = folder.config()
    path = folder.path / "config.yaml"
    text = path.read_text()
    try:
        path.write_text(text.replace(config.data.shards, str(shards)))
        with pytest.raises(DataError, match="other data"):
            run_analysis(folder, folder.config(), "val")
    finally:
        path.write_text(text)


def test_a_use_of_test_data_is_counted(analysis: Analysis, place: Path) -> None:
    folder = RunDir(place / "run")
    found = run_analysis(folder, folder.config(), "test")
    assert found.label_errors.sources[0].split == "test"
    assert list((place / "scoreboard" / "_test_set_uses").glob("test-*.jsonl"))
