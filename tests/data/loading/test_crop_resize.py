"""Boxes of crops, and resizing compared with Pillow."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from choral.core.errors import ConfigError
from choral.data.loading.crop import Box, Crop
from choral.data.loading.resize import resize_into
from image_bytes import photo

SIDES = st.integers(1, 700)


@settings(deadline=None, max_examples=60)
@given(height=SIDES, width=SIDES, row=st.integers(0, 2**40), low=st.floats(0.01, 1))
def test_random_crops_lie_in_the_image(height: int, width: int, row: int, low: float) -> None:
    crop = Crop("random", scale=(low, 1.0), seed=7)
    box = crop.box(height, width, crop.draws(3, np.array([row]))[0].tolist())
    assert 0 <= box.top <= box.top + box.height <= height and box.height >= 1
    assert 0 <= box.left <= box.left + box.width <= width and box.width >= 1


def test_random_crops_have_the_configured_areas_and_ratios() -> None:
    crop = Crop("random", scale=(0.2, 0.6), ratio=(0.5, 2.0))
    boxes = np.array([crop.box(400, 500, draws) for draws in crop.draws(0, np.arange(3000)).tolist()])
    areas = boxes[:, 2] * boxes[:, 3] / (400 * 500)
    ratios = np.log(boxes[:, 3] / boxes[:, 2])
    assert 0.19 < areas.min() < 0.21 and 0.59 < areas.max() < 0.61 and abs(areas.mean() - 0.4) < 0.02
    assert abs(np.abs(ratios).max() - np.log(2)) < 0.02 and abs(ratios.mean()) < 0.05
    centres = (boxes[:, 0] + boxes[:, 2] / 2) / 400, (boxes[:, 1] + boxes[:, 3] / 2) / 500
    assert all(abs(centre.mean() - 0.5) < 0.02 for centre in centres)


def test_an_image_too_narrow_for_the_ratios_is_cropped_at_its_centre() -> None:
    crop = Crop("random", scale=(0.9, 1.0), ratio=(0.9, 1.1))
    assert crop.box(10, 200, crop.draws(0, np.arange(1))[0].tolist()) == Box(0, 94, 10, 11)
    assert crop.box(200, 10, crop.draws(0, np.arange(1))[0].tolist()) == Box(94, 0, 11, 10)


def test_draws_depend_on_seed_epoch_and_row_alone() -> None:
    crop = Crop("random", seed=1)
    rows = np.array([5, 900, 7])
    draws = crop.draws(2, rows)
    np.testing.assert_array_equal(crop.draws(2, rows[::-1])[::-1], draws)
    np.testing.assert_array_equal(crop.draws(2, rows[1:2]), draws[1:2])
    assert (crop.draws(3, rows) != draws).all()
    assert (dataclasses.replace(crop, seed=2).draws(2, rows) != draws).all()


def test_other_crops_take_the_whole_image() -> None:
    for kind in ("resized", "center"):
        crop = Crop(kind)
        assert crop.draws(0, np.arange(3)).shape == (3, 0)
        assert crop.box(30, 40, []) == Box(0, 0, 30, 40)
    assert Crop("resized").resized_shape(Box(0, 0, 30, 40), 24) == (24, 24)
    assert Crop("center", crop_pct=0.8).resized_shape(Box(0, 0, 30, 40), 24) == (30, 40)
    assert Crop("center", crop_pct=1.0).resized_shape(Box(0, 0, 90, 60), 24) == (36, 24)


@pytest.mark.parametrize(
    ("invalid", "message"),
    [
        ({"kind": "centre"}, "crop kind 'centre': expected one of resized, center, random"),
        ({"crop_pct": 0.0}, "crop_pct 0.0"),
        ({"scale": (0.0, 1.0)}, "crop scale"),
        ({"scale": (0.5, 0.4)}, "crop scale"),
        ({"scale": (0.5, 1.1)}, "crop scale"),
        ({"ratio": (0.0, 1.0)}, "crop ratio"),
    ],
)
def test_invalid_values_are_refused(invalid: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Crop(**invalid)  # type: ignore[arg-type]


def resized(image: NDArray[np.uint8], shape: tuple[int, int], resize: str) -> NDArray[np.uint8]:
    out = np.zeros((*shape, 3), np.uint8)
    resize_into(image, out, resize)  # type: ignore[arg-type]
    return out


@pytest.mark.parametrize("shape", [(224, 224), (64, 50), (301, 200), (7, 9)])
def test_antialias_equals_pillow_within_one_level(shape: tuple[int, int]) -> None:
    image = photo(150, 210)
    expected = np.asarray(Image.fromarray(image).resize(shape[::-1], Image.Resampling.BILINEAR))
    assert np.abs(resized(image, shape, "antialias").astype(int) - expected).max() <= 1


def test_fast_equals_opencv_linear() -> None:
    image = photo(150, 210)
    expected = cv2.resize(image, (64, 50), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(resized(image, (50, 64), "fast"), expected)


@pytest.mark.parametrize("resize", ["antialias", "fast"])
def test_parts_and_read_only_images_are_resized_like_copies(resize: str) -> None:
    image = photo(150, 210)
    part = image[11:131, 20:177]
    image.flags.writeable = False
    np.testing.assert_array_equal(resized(part, (64, 64), resize), resized(part.copy(), (64, 64), resize))
    np.testing.assert_array_equal(resized(image, (64, 64), resize), resized(image.copy(), (64, 64), resize))
    np.testing.assert_array_equal(resized(image, (150, 210), resize), image)
