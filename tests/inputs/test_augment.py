"""Random changes: exact where pixels move, in range where values change, and the same whoever asks."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch

from choral.errors import ConfigError
from choral.inputs.augment.parameters import GREY_WEIGHTS, Augment, apply, turn

D4 = Augment(hflip=0.5, vflip=0.5, rot90=True, seed=3)
ROWS = np.arange(4000)


def tensors(parameters: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(values) for name, values in parameters.items()}


def test_parameters_depend_on_seed_epoch_and_row_alone() -> None:
    augment = dataclasses.replace(D4, brightness=0.3, contrast=0.2)
    whole = augment.parameters(2, ROWS)
    for part in (slice(7, 9), slice(None, None, -1)):
        for name, values in augment.parameters(2, ROWS[part]).items():
            np.testing.assert_array_equal(values, whole[name][part])
    for other in (augment.parameters(3, ROWS), dataclasses.replace(augment, seed=4).parameters(2, ROWS)):
        for name, values in other.items():
            assert (values != whole[name]).mean() > 0.4


def test_switching_one_change_on_leaves_the_others() -> None:
    flips = Augment(hflip=0.5, seed=3).parameters(0, ROWS)
    more = Augment(hflip=0.5, brightness=0.4, seed=3).parameters(0, ROWS)
    np.testing.assert_array_equal(flips["hflip"], more["hflip"])
    assert (flips["brightness"] == 1).all() and (more["brightness"] != 1).all()


def test_d4_brings_all_eight_evenly() -> None:
    parameters = D4.parameters(0, ROWS)
    names = ("transpose", "hflip", "vflip")
    counts = Counter(zip(*(parameters[name].tolist() for name in names), strict=True))
    assert len(counts) == 8 and min(counts.values()) > 400
    for name in names:
        assert parameters[name].dtype == np.int64


@pytest.mark.parametrize("hflip", [0.0, 0.3, 1.0])
def test_flips_come_as_often_as_asked_for(hflip: float) -> None:
    parameters = Augment(hflip=hflip).parameters(0, ROWS)
    assert abs(parameters["hflip"].mean() - hflip) < 0.03
    assert not parameters["transpose"].any() and not parameters["vflip"].any()


def test_quarter_turns_alone_are_rotations() -> None:
    parameters = Augment(rot90=True).parameters(0, ROWS)
    image = np.arange(9).reshape(1, 3, 3)
    turned = turn(torch.from_numpy(image).expand(len(ROWS), 1, 3, 3), tensors(parameters)).numpy()
    rotations = {np.rot90(image[0], k).tobytes() for k in range(4)}
    counts = Counter(item.tobytes() for item in turned)
    assert set(counts) == rotations and min(counts.values()) > 850


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("channels_last", [False, True])
def test_turning_is_transpose_then_flips_exactly(dtype: torch.dtype, channels_last: bool) -> None:
    images = torch.randint(0, 256, (64, 3, 5, 5)).to(dtype)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    parameters = D4.parameters(1, np.arange(64))
    turned = turn(images, tensors(parameters))
    for i, image in enumerate(images.numpy()):
        expected = image.transpose(0, 2, 1) if parameters["transpose"][i] else image
        expected = expected[:, :, ::-1] if parameters["hflip"][i] else expected
        expected = expected[:, ::-1] if parameters["vflip"][i] else expected
        np.testing.assert_array_equal(turned[i].numpy(), expected)


def test_brightness_and_contrast_stay_in_their_ranges() -> None:
    parameters = Augment(brightness=0.4, contrast=0.1).parameters(0, ROWS)
    for name, strength in (("brightness", 0.4), ("contrast", 0.1)):
        assert parameters[name].dtype == np.float32
        assert abs(parameters[name] - 1).max() <= strength + 1e-6
        assert abs(parameters[name].mean() - 1) < strength / 10 and parameters[name].std() > strength / 2


def test_colours_change_as_documented() -> None:
    images = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    ones = torch.ones(2)
    flags = {name: torch.zeros(2, dtype=torch.int64) for name in ("transpose", "hflip", "vflip")}
    same = apply(images, {**flags, "brightness": ones, "contrast": ones})
    torch.testing.assert_close(same, images)
    bright = apply(images, {**flags, "brightness": torch.tensor([0.5, 1.5]), "contrast": ones})
    torch.testing.assert_close(bright, (images * torch.tensor([0.5, 1.5]).view(2, 1, 1, 1)).clamp(0, 1))
    flat = apply(images, {**flags, "brightness": ones, "contrast": torch.zeros(2)})
    grey = (images.mean((2, 3)) * torch.tensor(GREY_WEIGHTS, dtype=torch.float64)).sum(1)
    torch.testing.assert_close(flat, grey.view(2, 1, 1, 1).expand_as(flat))


@pytest.mark.parametrize("wrong", [{"hflip": 1.1}, {"vflip": -0.1}, {"brightness": 2.0}, {"contrast": -1.0}])
def test_nonsense_is_refused(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(ConfigError, match=f"augment {name} .*: expected 0 to 1"):
        Augment(**wrong)  # type: ignore[arg-type]
