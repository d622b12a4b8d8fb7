"""Augmentation parameters: deterministic, in their configured ranges; flips are exact."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch
from torchvision.transforms import RandAugment, TrivialAugmentWide

from augment_configs import ALL_AUGMENTATIONS, build_augment
from choral.data.augment.colour import GREY_WEIGHTS, adjust_colours
from choral.data.augment.geometry import transpose_and_flip
from choral.data.augment.rand_augment import OPERATION_NAMES

ROWS = np.arange(4000)
D4 = build_augment(hflip=0.5, vflip=0.5, rot90=True)


def tensors(parameters: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(values) for name, values in parameters.items()}


def test_parameters_depend_on_seed_epoch_and_row_alone() -> None:
    augment = build_augment(**ALL_AUGMENTATIONS)
    whole = augment.parameters(2, ROWS, 32)
    assert len(whole) == 18
    for part in (slice(7, 8), slice(7, 9), slice(None, None, -1)):
        for name, values in augment.parameters(2, ROWS[part], 32).items():
            np.testing.assert_array_equal(values, whole[name][part], err_msg=name)
    for other in (augment.parameters(3, ROWS, 32), dataclasses.replace(augment, seed=4).parameters(2, ROWS, 32)):
        for name, values in other.items():
            assert (values != whole[name]).any(tuple(range(1, values.ndim))).mean() > 0.2, name


def test_draws_of_the_first_augmentations_never_change() -> None:
    """A config with flips, quarter turns, brightness and contrast gives the same images in all versions."""
    keys = {key: ALL_AUGMENTATIONS[key] for key in ("hflip", "vflip", "rot90", "brightness", "contrast")}
    for more in (keys, ALL_AUGMENTATIONS):
        parameters = build_augment(7, **more).parameters(1, ROWS[:6], 32)
        assert parameters["transpose"].tolist() == [1, 0, 0, 1, 0, 1]
        assert parameters["hflip"].tolist() == [1, 0, 1, 0, 0, 1]
        assert parameters["vflip"].tolist() == [1, 0, 1, 0, 1, 1]
        expected = [0.6099410057067871, 0.6908285617828369, 0.68345046043396, 0.7569729089736938, 1.308995246887207]
        assert parameters["brightness"].tolist()[:5] == expected
        expected = [0.7285302877426147, 1.386702299118042, 0.8963044881820679, 1.0207000970840454, 0.8320813179016113]
        assert parameters["contrast"].tolist()[:5] == expected


def test_switching_one_augmentation_on_does_not_change_the_others() -> None:
    flips = build_augment(hflip=0.5).parameters(0, ROWS, 32)
    more = build_augment(hflip=0.5, brightness=0.4).parameters(0, ROWS, 32)
    np.testing.assert_array_equal(flips["hflip"], more["hflip"])
    assert (flips["brightness"] == 1).all() and (more["brightness"] != 1).all()
    everything = build_augment(**ALL_AUGMENTATIONS).parameters(0, ROWS, 32)
    for names in (("blur", "blur_sigma"), ("noise",), ("erasing",), ("rotate",), ("hue",), ("policy",)):
        some = {name: ALL_AUGMENTATIONS[name] for name in names if name in ALL_AUGMENTATIONS}
        alone = build_augment(**some).parameters(0, ROWS, 32)
        shared = {"blurred", "blur", "noise", "noise_key", "erased", "policy", "policy_strength"} & alone.keys()
        assert shared or names[0] in ("rotate", "hue")
        for name in shared:
            np.testing.assert_array_equal(alone[name], everything[name], err_msg=name)


def test_d4_draws_all_eight_symmetries_evenly() -> None:
    parameters = D4.parameters(0, ROWS, 32)
    names = ("transpose", "hflip", "vflip")
    counts = Counter(zip(*(parameters[name].tolist() for name in names), strict=True))
    assert len(counts) == 8 and min(counts.values()) > 400
    for name in names:
        assert parameters[name].dtype == np.int64


@pytest.mark.parametrize("hflip", [0.0, 0.3, 1.0])
def test_flips_have_the_configured_frequency(hflip: float) -> None:
    parameters = build_augment(hflip=hflip).parameters(0, ROWS, 32)
    assert abs(parameters["hflip"].mean() - hflip) < 0.03
    assert not parameters["transpose"].any() and not parameters["vflip"].any()


def test_quarter_turns_alone_are_rotations() -> None:
    parameters = build_augment(rot90=True).parameters(0, ROWS, 32)
    image = np.arange(9).reshape(1, 3, 3)
    turned = transpose_and_flip(torch.from_numpy(image).expand(len(ROWS), 1, 3, 3), tensors(parameters)).numpy()
    rotations = {np.rot90(image[0], k).tobytes() for k in range(4)}
    counts = Counter(item.tobytes() for item in turned)
    assert set(counts) == rotations and min(counts.values()) > 850


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("channels_last", [False, True])
def test_transpose_and_flip_is_exact(dtype: torch.dtype, channels_last: bool) -> None:
    images = torch.randint(0, 256, (64, 3, 5, 5)).to(dtype)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    parameters = D4.parameters(1, np.arange(64), 5)
    turned = transpose_and_flip(images, tensors(parameters))
    for i, image in enumerate(images.numpy()):
        expected = image.transpose(0, 2, 1) if parameters["transpose"][i] else image
        expected = expected[:, :, ::-1] if parameters["hflip"][i] else expected
        expected = expected[:, ::-1] if parameters["vflip"][i] else expected
        np.testing.assert_array_equal(turned[i].numpy(), expected)


def test_brightness_and_contrast_stay_in_their_ranges() -> None:
    parameters = build_augment(brightness=0.4, contrast=0.1).parameters(0, ROWS, 32)
    for name, strength in (("brightness", 0.4), ("contrast", 0.1)):
        assert parameters[name].dtype == np.float32
        assert abs(parameters[name] - 1).max() <= strength + 1e-6
        assert abs(parameters[name].mean() - 1) < strength / 10 and parameters[name].std() > strength / 2


def test_colours_change_as_documented() -> None:
    images = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    ones = torch.ones(2)
    flags = {name: torch.zeros(2, dtype=torch.int64) for name in ("transpose", "hflip", "vflip")}
    same = adjust_colours(images, {**flags, "brightness": ones, "contrast": ones})
    torch.testing.assert_close(same, images)
    bright = adjust_colours(images, {**flags, "brightness": torch.tensor([0.5, 1.5]), "contrast": ones})
    torch.testing.assert_close(bright, (images * torch.tensor([0.5, 1.5]).view(2, 1, 1, 1)).clamp(0, 1))
    flat = adjust_colours(images, {**flags, "brightness": ones, "contrast": torch.zeros(2)})
    grey = (images.mean((2, 3)) * torch.tensor(GREY_WEIGHTS, dtype=torch.float64)).sum(1)
    torch.testing.assert_close(flat, grey.view(2, 1, 1, 1).expand_as(flat))


def test_textures_have_the_configured_frequency_and_range() -> None:
    keys = ALL_AUGMENTATIONS | {"noise_std": (0.05, 0.1), "blur_sigma": (1.0, 2.0), "erasing_area": (0.1, 0.4)}
    parameters = build_augment(**keys).parameters(0, ROWS, 224)
    noise, erased = parameters["noise"], parameters["erased"]
    for chosen in (parameters["warped"], parameters["blurred"], noise > 0, erased.any(1)):
        assert abs(chosen.mean() - 0.5) < 0.03
    assert 0.05 <= noise[noise > 0].min() < 0.052 and 0.098 < noise.max() <= 0.1
    sigma = np.sqrt((parameters["blur"] * np.arange(-6, 7) ** 2).sum(1))
    assert 0.95 < sigma.min() < 1.05 and 1.8 < sigma.max() < 2.0, "cut off at three standard deviations"
    np.testing.assert_allclose(parameters["blur"].sum(1), 1, rtol=1e-6)
    area = (erased[:, 2] - erased[:, 0]) * (erased[:, 3] - erased[:, 1]) / 224**2
    assert abs(area[area > 0].min() - 0.1) < 0.01 and abs(area.max() - 0.4) < 0.01
    assert abs(area[area > 0].mean() - 0.25) < 0.01
    assert erased.min() == 0 and erased.max() == 224


def test_policy_operations_have_the_frequency_and_strength_of_torchvision() -> None:
    space = RandAugment()._augmentation_space(31, (331, 331))
    parameters = build_augment(policy="randaugment", policy_ops=3, policy_magnitude=12.0).parameters(0, ROWS, 331)
    assert parameters["policy"].shape == (4000, 3)
    assert set(space) == set(OPERATION_NAMES)
    for number, name in enumerate(OPERATION_NAMES):
        chosen = parameters["policy"] == number
        assert abs(chosen.mean() - 1 / len(OPERATION_NAMES)) < 0.01
        strengths, signed = space[name]
        expected = float(strengths[12]) if strengths.ndim else 0.0
        expected = 8 - expected if name == "Posterize" else expected / 331 if name.startswith("Translate") else expected
        found = parameters["policy_strength"][chosen]
        np.testing.assert_allclose(abs(found), expected, rtol=1e-5)
        assert (abs((found < 0).mean() - 0.5) < 0.08) if signed else (found >= 0).all()
    wide = TrivialAugmentWide()._augmentation_space(31)
    parameters = build_augment(policy="trivialaugment").parameters(0, ROWS, 224)
    for number, name in enumerate(OPERATION_NAMES):
        found = np.unique(abs(parameters["policy_strength"][parameters["policy"] == number]))
        strengths = np.atleast_1d(wide[name][0].numpy())
        strengths = (
            8 - strengths if name == "Posterize" else strengths / 224 if name.startswith("Translate") else strengths
        )
        np.testing.assert_allclose(found, np.unique(strengths.astype(np.float32)), rtol=1e-5, atol=1e-6)
