"""An analysis of a run as a whole: planted duplicates, unreadable and constant images, and plain JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest

from choral.analyze.analyse import analysis_of
from choral.analyze.analysis import Analysis
from made_data import VARIANTS, packed, picture, run_about, saved

PLACES = [(split, name) for split in ("train", "val", "test") for name in "xyz"]


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    folder = tmp_path_factory.mktemp("analysis")
    files = {}
    for number in range(99):
        split, name = PLACES[number % len(PLACES)]
        files[f"{split}/{name}/{number:03d}.png"] = saved(picture(number))
    for number, (variant, change) in enumerate(VARIANTS.items()):
        files[f"test/y/{variant}.png"] = change(picture(9 * number))  # the original: train, x
    files["val/x/flat.png"] = saved(np.full((40, 60, 3), 90, np.uint8))
    run, config = run_about(folder / "run", packed(folder, files))
    return analysis_of(run, config, "val", processes=1)


def test_every_planted_duplicate_is_found_and_nothing_else(analysis: Analysis) -> None:
    found = analysis.duplicates
    pairs = {tuple(place.key for place in twins.places) for twins in found.twins}
    for number, variant in enumerate(VARIANTS):
        assert any(
            any(f"{9 * number:03d}" in key for key in pair) and any(variant in key for key in pair) for pair in pairs
        ), (variant, pairs)
    assert found.found == len(VARIANTS) == found.across == found.conflicts
    assert found.leaked == {"val": 0, "test": len(VARIANTS)}


def test_it_is_plain_json(analysis: Analysis) -> None:
    content = json.loads(json.dumps(analysis.to_json(), allow_nan=False))
    assert content["n"] == len(content["samples"]["keys"]) == len(content["samples"]["votes"])
