"""The contact sheet: its content, its size, and invalid arguments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from choral.config import AugmentConfig, Config, DataConfig
from choral.config.augment import PRESETS
from choral.core.errors import ChoralError, ConfigError, DataError
from choral.data.loading import contact_sheet
from choral.data.loading.contact_sheet import write_contact_sheet
from choral.data.loading.targets import Targets
from toy_data import CLASSES, Choral


def config_of(shards: Path, preset: str = "none", size: int = 32) -> Config:
    data = DataConfig(shards=str(shards), image_size=size, eval_crop="resized")
    return Config(run="toy", data=data, augment=AugmentConfig(preset=preset, **PRESETS[preset]))  # type: ignore[arg-type]


def test_cells_are_the_pixels_of_the_input_pipeline(shards: Path, tmp_path: Path) -> None:
    config = config_of(shards)
    rows = contact_sheet._load_rows(config, 3, 2)
    path = write_contact_sheet(config, tmp_path / "sheet.png", 3, 2)
    with Image.open(path) as opened:
        sheet = np.asarray(opened)
    for cells in rows:
        for cell in cells:  # without augmentation all columns are equal
            np.testing.assert_array_equal(cell.image, cells[0].image)
            assert cell.caption in CLASSES
    enlarged = np.kron(rows[0][0].image, np.ones((5, 5, 1), np.uint8))
    assert any(
        (sheet[top : top + 160, contact_sheet._MARGIN : contact_sheet._MARGIN + 160] == enlarged).all()
        for top in range(40, 140)
    ), "whole factors, no blur"


def test_mixed_samples_name_both_classes(shards: Path) -> None:
    rows = contact_sheet._load_rows(config_of(shards, "heavy"), 5, 6)
    captions = [cell.caption for cells in rows for cell in cells[1:]]
    mixed = [caption.split("\n") for caption in captions if "\n" in caption]
    assert len(rows) == 5 and len(mixed) > 10
    for first, second in mixed:
        assert sum(int(line.split(" % ")[0]) for line in (first, second)) == 100
        assert {line.split(" % ")[1] for line in (first, second)} <= set(CLASSES)
    assert all("\n" not in cells[0].caption for cells in rows)
    assert len(contact_sheet._load_rows(config_of(shards, "heavy"), 1, 1)) == 1
    assert len(contact_sheet._load_rows(config_of(shards), 100, 1)) == 37


def test_title_names_preset_and_changes(shards: Path) -> None:
    augment = config_of(shards, "medium").augment
    assert contact_sheet._describe_preset(augment) == "augmentation preset medium"
    assert contact_sheet._describe_preset(augment.replace(hue=0.1)) == "augmentation preset medium, changed"
    changes = contact_sheet._describe_changes(augment.replace(hue=0.1))
    assert "zoom 0.9 to 1.1" in changes and "hue 0.1" in changes and "mixup" not in changes
    assert contact_sheet._describe_changes(config_of(shards).augment) == "no augmentation"


@pytest.mark.parametrize(
    ("size", "side"), [(16, 160), (32, 160), (64, 192), (80, 160), (128, 128), (224, 224), (1024, 512)]
)
def test_cells_are_legible_and_scaled_by_whole_factors(size: int, side: int) -> None:
    assert contact_sheet._cell_side(size) == side


def test_truncated_labels_end_in_an_ellipsis() -> None:
    from PIL import ImageFont

    font = ImageFont.load_default(14)
    for text in ("a b", "a class whose name is long and goes on for more lines than there are " * 2, "W" * 60, "a\nb"):
        lines = contact_sheet._wrap(text, font, 128)
        assert all(font.getlength(line) <= 128 for line in lines) and len(lines) <= 3
        assert " ".join(lines).replace("\n", " ") == text.replace("\n", " ") or lines[-1].endswith("…")


def test_labels_of_other_tasks(shards: Path) -> None:
    config = config_of(shards)
    index = contact_sheet._open_training_split(config).index
    several = Targets("multilabel", ("a", "b", "c"), index)
    assert (
        contact_sheet._format_label([1.0, 0.0, 1.0], several) == "a, c"
        and contact_sheet._format_label([0.0] * 3, several) == "no label"
    )
    assert contact_sheet._format_label([0.25], Targets("regression", ("age",), index)) == "age 0.25"


@pytest.mark.parametrize(
    ("out", "samples", "message"),
    [
        ("sheet.gif", 1, r"expected a file name that ends in \.png, \.jpg or \.jpeg"),
        ("nowhere/sheet.png", 1, r"folder .*nowhere does not exist"),
        ("sheet.png", 0, "expected at least 1"),
    ],
)
def test_invalid_arguments_are_refused(shards: Path, tmp_path: Path, out: str, samples: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        write_contact_sheet(config_of(shards), tmp_path / out, samples, 1)


def test_missing_data_set_error_suggests_pack(tmp_path: Path) -> None:
    with pytest.raises(ChoralError, match="choral pack SOURCE") as caught:
        write_contact_sheet(config_of(tmp_path / "nothing"), tmp_path / "sheet.png", 1, 1)
    assert isinstance(caught.value, DataError)


def test_the_verb_writes_a_file_and_prints_its_path(choral: Choral, config_file: Path, tmp_path: Path) -> None:
    done = choral("show", config_file, "augment.preset=heavy", "--samples", 2, "--epochs", 1, "--out", "sheet.jpg")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "sheet.jpg\n"
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        assert sheet.format == "JPEG"
