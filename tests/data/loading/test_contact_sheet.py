"""The contact sheet: what is on it, how large, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from choral.config import AugmentConfig, Config, DataConfig
from choral.config.augment import PRESETS
from choral.core.errors import ChoralError, ConfigError, DataError
from choral.data.loading import contact_sheet as show
from choral.data.loading.contact_sheet import contact_sheet
from choral.data.loading.targets import Targets
from toys import CLASSES, Choral


def config_of(shards: Path, preset: str = "none", size: int = 32) -> Config:
    data = DataConfig(shards=str(shards), image_size=size, eval_crop="resized")
    return Config(run="toy", data=data, augment=AugmentConfig(preset=preset, **PRESETS[preset]))  # type: ignore[arg-type]


def test_a_sheet_shows_the_pixels_that_the_network_sees(shards: Path, tmp_path: Path) -> None:
    config = config_of(shards)
    rows = show._rows(config, 3, 2)
    path = contact_sheet(config, tmp_path / "sheet.png", 3, 2)
    with Image.open(path) as opened:
        sheet = np.asarray(opened)
    for cells in rows:
        for cell in cells:  # nothing is changed: all columns are as evaluated
            np.testing.assert_array_equal(cell.image, cells[0].image)
            assert cell.caption in CLASSES
    enlarged = np.kron(rows[0][0].image, np.ones((5, 5, 1), np.uint8))
    assert any(
        (sheet[top : top + 160, show._MARGIN : show._MARGIN + 160] == enlarged).all() for top in range(40, 140)
    ), "whole factors, no blur"


def test_mixed_samples_name_both_classes(shards: Path) -> None:
    rows = show._rows(config_of(shards, "heavy"), 5, 6)
    captions = [cell.caption for cells in rows for cell in cells[1:]]
    mixed = [caption.split("\n") for caption in captions if "\n" in caption]
    assert len(rows) == 5 and len(mixed) > 10
    for own, other in mixed:
        assert sum(int(line.split(" % ")[0]) for line in (own, other)) == 100
        assert {line.split(" % ")[1] for line in (own, other)} <= set(CLASSES)
    assert all("\n" not in cells[0].caption for cells in rows)
    assert len(show._rows(config_of(shards, "heavy"), 1, 1)) == 1
    assert len(show._rows(config_of(shards), 100, 1)) == 37


def test_the_title_says_what_is_on(shards: Path) -> None:
    augment = config_of(shards, "medium").augment
    assert show._preset(augment) == "augmentation preset medium"
    assert show._preset(dataclasses.replace(augment, hue=0.1)) == "augmentation preset medium, changed"
    on = show._switched_on(dataclasses.replace(augment, hue=0.1))
    assert "zoom 0.9 to 1.1" in on and "hue 0.1" in on and "mixup" not in on
    assert show._switched_on(config_of(shards).augment) == "nothing is changed"


@pytest.mark.parametrize(
    ("size", "side"), [(16, 160), (32, 160), (64, 192), (80, 160), (128, 128), (224, 224), (1024, 512)]
)
def test_cells_are_legible_and_scaled_by_whole_factors(size: int, side: int) -> None:
    assert show._side(size) == side


def test_labels_are_not_cut_off_without_a_sign() -> None:
    from PIL import ImageFont

    font = ImageFont.load_default(14)
    for text in ("a b", "a class whose name is long and goes on for more lines than there are " * 2, "W" * 60, "a\nb"):
        lines = show._wrapped(text, font, 128)
        assert all(font.getlength(line) <= 128 for line in lines) and len(lines) <= 3
        assert " ".join(lines).replace("\n", " ") == text.replace("\n", " ") or lines[-1].endswith("…")


def test_labels_of_other_tasks(shards: Path) -> None:
    config = config_of(shards)
    index = show._split_of(config).index
    several = Targets("multilabel", ("a", "b", "c"), index)
    assert show._named([1.0, 0.0, 1.0], several) == "a, c" and show._named([0.0] * 3, several) == "no label"
    assert show._named([0.25], Targets("regression", ("age",), index)) == "age 0.25"


@pytest.mark.parametrize(
    ("out", "samples", "message"),
    [
        ("sheet.gif", 1, r"expected a name that ends in \.png or \.jpg"),
        ("nowhere/sheet.png", 1, "there is no folder"),
        ("sheet.png", 0, "expected at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused(shards: Path, tmp_path: Path, out: str, samples: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        contact_sheet(config_of(shards), tmp_path / out, samples, 1)


def test_data_that_are_not_packed_are_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ChoralError, match="choral pack SOURCE") as caught:
        contact_sheet(config_of(tmp_path / "nothing"), tmp_path / "sheet.png", 1, 1)
    assert isinstance(caught.value, DataError)


def test_the_verb_writes_a_file_and_prints_its_path(choral: Choral, config_file: Path, tmp_path: Path) -> None:
    done = choral("show", config_file, "augment.preset=heavy", "--samples", 2, "--epochs", 1, "--out", "sheet.jpg")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "sheet.jpg\n"
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        assert sheet.format == "JPEG"
