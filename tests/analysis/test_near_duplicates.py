"""Near-duplicates among similar images, unreadable images, and stored results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from choral.analysis.data_health import compute_data_health
from choral.analysis.duplicates import find_duplicates
from choral.analysis.image_survey import SURVEY_DIR, survey_images
from choral.data.shards.index import Dataset
from made_data import VARIANTS, packed, picture, saved


def stripes(seed: int) -> np.ndarray:
    """As cells of one make: the same bars everywhere, and a little that is a cell's own."""
    bars = np.full((96, 96, 3), 150, np.uint8)
    bars[20:24] = bars[48:52] = bars[76:80] = 30
    bars[:, 46:48] = 90
    return picture(seed, common=bars)


def test_what_all_images_share_makes_no_duplicates(tmp_path: Path) -> None:
    files = {
        f"{split}/{'xy'[number % 2]}/{number}.png": saved(stripes(10 * number + len(split)))
        for split in ("train", "test")
        for number in range(12)
    }
    for number, name in enumerate(("jpeg", "half", "cut", "dark")):
        files[f"test/x/{name}.png"] = VARIANTS[name](stripes(10 * number + len("train")))
    found = find_duplicates(survey_images(packed(tmp_path, files), processes=1), train="train", processes=1)
    assert found.found == found.across == 4
    for number, name in enumerate(("jpeg", "half", "cut", "dark")):
        assert any(f"_{number}-" in own.samples[0].key and f"_{name}-" in own.samples[1].key for own in found.groups), (
            name,
            found.groups,
        )


def test_an_image_that_became_unreadable_is_named_and_skipped(tmp_path: Path) -> None:
    dataset = packed(
        tmp_path,
        {
            f"{split}/{'xyx'[n]}/{n}.png": saved(picture(n + 50 * len(split)))
            for split in ("train", "val")
            for n in range(3)
        },
    )
    shard = next(dataset.folder.glob("val-*.tar"))
    data = bytearray(shard.read_bytes())
    start = data.index(b"IDAT") + 40
    data[start : start + 400] = bytes(400)
    shard.write_bytes(data)
    found = survey_images(dataset, processes=1)
    health = compute_data_health(found, train="train")
    assert health.unreadable_found == 1 and health.unreadable[0].split == "val" and health.unreadable[0].reason
    assert "1 of 6 images cannot be decoded." in health.notes
    assert find_duplicates(found, train="train", processes=1).compared == 5


def test_what_is_kept_of_other_data_or_damaged_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = packed(
        tmp_path,
        {f"{split}/{name}/{n}.png": saved(picture(n)) for split in ("train", "val") for n, name in enumerate("xyx")},
    )
    first = survey_images(dataset, processes=1)
    kept = next((dataset.folder / SURVEY_DIR).glob("train-*.arrow"))
    content = kept.read_bytes()
    kept.write_bytes(content[: len(content) // 2])
    again = survey_images(Dataset.open(dataset.folder), processes=1)
    assert "damaged" in caplog.text and kept.read_bytes() == content
    for name, values in first["train"].measures.items():
        assert np.array_equal(values, again["train"].measures[name])
    found = find_duplicates(again, train="train", processes=1)
    stored = next((dataset.folder / SURVEY_DIR).glob("near-duplicates-*.json"))
    right = stored.read_text(encoding="utf-8")
    for wrong in (right[:-9], right.replace('"pairs"', '"pears"'), right.replace("[", "[7, ", 1), "\udcff\udcfe"):
        stored.write_text(wrong, encoding="utf-8", errors="surrogateescape")
        assert find_duplicates(again, train="train", processes=1) == found
        assert stored.read_text(encoding="utf-8") == right, wrong
