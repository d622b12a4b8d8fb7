"""Each augmentation compared with another library (SciPy, torchvision, colorsys) or a formula."""

from __future__ import annotations

import colorsys
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage, stats
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from augment_configs import build_augment
from choral.data.augment import rand_augment as policy
from choral.data.augment.colour import adjust_colours
from choral.data.augment.geometry import warp_batch, warp_image
from choral.data.augment.parameters import add_positions
from choral.data.augment.texture import add_noise_to_batch, add_noise_to_image, blur_batch, blur_image
from choral.data.loading.normalize_cpu import CpuNormalizer
from image_bytes import photo

SIZE = 48
ROWS = np.arange(30)
FILL = (124, 116, 104)
FILL_TENSOR = torch.tensor(FILL, dtype=torch.float32).view(3, 1, 1)


def images_of(count: int = 30) -> NDArray[np.uint8]:
    return np.stack([photo(SIZE, SIZE, seed=number) for number in range(count)])


def planes(images: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def changed(images: NDArray[np.uint8], **keys: Any) -> NDArray[np.float32]:
    """Return images augmented by the CPU path, not normalized, with values from 0 to 255."""
    parameters = build_augment(**keys).parameters(0, ROWS[: len(images)], SIZE)
    return 255 * CpuNormalizer((0, 0, 0), (1, 1, 1), True)(images, parameters).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(
    "keys", [{"rotate": 40.0}, {"shear": 20.0, "zoom": (0.5, 2.0)}, {"perspective": 0.3, "translate": 0.2}]
)
def test_resampling_equals_scipy(keys: dict[str, Any]) -> None:
    images = images_of(10)
    homographies = build_augment(**keys).parameters(0, ROWS[:10], SIZE)["homography"]
    found = warp_batch(planes(images), torch.from_numpy(homographies), None).permute(0, 2, 3, 1).numpy()
    filled = warp_batch(planes(images), torch.from_numpy(homographies), FILL_TENSOR).permute(0, 2, 3, 1).numpy()
    down, right = np.mgrid[:SIZE, :SIZE].astype(float)
    for i, image in enumerate(images):
        u, v, w = np.einsum("ij,jyx->iyx", homographies[i], np.stack([right, down, np.ones_like(down)]))
        for channel in range(3):
            source = image[..., channel].astype(float)
            expected = ndimage.map_coordinates(source, [v / w, u / w], order=1, mode="mirror")
            other = ndimage.map_coordinates(source, [v / w, u / w], order=1, mode="grid-constant", cval=FILL[channel])
            assert abs(found[i, ..., channel] - expected).max() < 0.6, "rounded to whole levels"
            assert abs(filled[i, ..., channel] - other).max() < 0.6
        assert abs(warp_image(image, homographies[i], None).astype(int) - found[i]).max() <= 1
        assert abs(warp_image(image, homographies[i], FILL).astype(int) - filled[i]).max() <= 1


def test_rotation_turns_by_degrees_about_the_centre() -> None:
    image = images_of(1)[0]
    parameters = build_augment(rotate=180.0).parameters(0, ROWS, SIZE)
    angles = np.degrees(np.arctan2(parameters["homography"][:, 1, 0], parameters["homography"][:, 0, 0]))
    many = build_augment(rotate=180.0).parameters(0, np.arange(2000), SIZE)["homography"]
    drawn = np.degrees(np.arctan2(many[:, 1, 0], many[:, 0, 0]))
    assert stats.kstest(drawn, stats.uniform(-180, 360).cdf).pvalue > 0.01
    for angle, homography in zip(angles[:5], parameters["homography"], strict=False):
        expected = F.rotate(planes(image[None]), float(angle), InterpolationMode.BILINEAR, fill=list(FILL))
        found = warp_image(image, homography, FILL)
        inner = warp_image(np.full_like(image, 255), homography, (0, 0, 0)) == 255
        assert inner.mean() > 0.7
        assert abs(found.astype(int) - expected[0].permute(1, 2, 0).numpy())[inner].max() <= 1


def test_perspective_shifts_each_corner_independently_within_the_limit() -> None:
    homographies = build_augment(perspective=0.2).parameters(0, np.arange(500), SIZE)["homography"]
    corners = np.array([[0, 0, 1], [SIZE - 1, 0, 1], [SIZE - 1, SIZE - 1, 1], [0, SIZE - 1, 1]], float)
    moved = np.einsum("bij,cj->bci", np.linalg.inv(homographies), corners)
    offsets = moved[..., :2] / moved[..., 2:] - corners[:, :2]
    assert abs(offsets).max() <= 0.2 * SIZE + 1e-6 and abs(offsets).max() > 0.19 * SIZE
    assert abs(np.corrcoef(offsets.reshape(500, 8).T) - np.eye(8)).max() < 0.2


def test_saturation_and_grey_equal_torchvision() -> None:
    images = images_of()
    values = planes(images).float() / 255
    matrices = build_augment(saturation=1.0).parameters(0, ROWS, SIZE)["colour"]
    found = changed(images, saturation=1.0)
    for i, factor in enumerate((matrices[:, 0, 0] - 0.299) / (1 - 0.299)):
        expected = 255 * F.adjust_saturation(values[i], float(factor)).permute(1, 2, 0).numpy()
        assert abs(found[i] - expected).max() < 0.05, "torchvision rounds the weights of grey to four digits"
    grey = 255 * F.rgb_to_grayscale(values, 3).permute(0, 2, 3, 1).numpy()
    assert abs(changed(images, grey=1.0) - grey).max() < 0.05
    some = abs(changed(images, grey=0.4) - grey).max((1, 2, 3)) < 0.05
    assert 0.2 < some.mean() < 0.6


def test_hue_rotates_the_iq_plane() -> None:
    images = (images_of(3) // 2) + 60  # no value is clipped
    matrices = build_augment(hue=0.3).parameters(0, ROWS[:3], SIZE)["colour"]
    found = changed(images, hue=0.3)
    for i, image in enumerate(images):
        for at in ((0, 0), (5, 40), (30, 20)):
            luma, in_phase, quadrature = colorsys.rgb_to_yiq(*(image[at] / 255))
            other = colorsys.rgb_to_yiq(*(found[i][at] / 255))
            assert abs(other[0] - luma) < 0.004, "colorsys has weights of two digits"
            assert np.hypot(*other[1:]) == pytest.approx(np.hypot(in_phase, quadrature), abs=0.012)
        np.testing.assert_allclose(matrices[i].sum(1), 1, atol=1e-6, err_msg="grey stays grey")
    angles = []
    for matrix in build_augment(hue=0.3).parameters(0, np.arange(1000), SIZE)["colour"]:
        _, i_of_red, q_of_red = colorsys.rgb_to_yiq(*(matrix @ (1.0, 0.0, 0.0)))
        angles.append(np.arctan2(q_of_red, i_of_red) - np.arctan2(0.21, 0.6))
    turns = np.array(angles) / (2 * np.pi)
    assert abs(turns).max() < 0.31 and turns.max() > 0.28 and turns.min() < -0.28


def test_the_combined_colour_matrix_equals_the_sequence() -> None:
    keys = {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3}
    images = images_of() // 3 + 80
    parameters = build_augment(**keys).parameters(0, ROWS, SIZE)
    found = changed(images, **keys)
    for i, image in enumerate(planes(images).float() / 255):
        factor = float((parameters["colour"][i, 0, 0] - 0.299) / (1 - 0.299))
        expected = F.adjust_brightness(image, float(parameters["brightness"][i]))
        expected = F.adjust_contrast(expected, float(parameters["contrast"][i]))
        expected = F.adjust_saturation(expected, factor).permute(1, 2, 0).numpy()
        assert abs(found[i] - 255 * expected).max() < 0.1


@pytest.mark.parametrize("sigma", [(0.1, 0.5), (1.0, 8.0), (100.0, 200.0)])
def test_blur_equals_scipy(sigma: tuple[float, float]) -> None:
    images = images_of(4)
    kernels = build_augment(blur=1.0, blur_sigma=sigma).parameters(0, ROWS[:4], SIZE)["blur"]
    batch = blur_batch(planes(images).float(), torch.from_numpy(kernels)).permute(0, 2, 3, 1).numpy()
    for i, image in enumerate(images):
        weights = kernels[i].astype(float)
        expected = ndimage.correlate1d(image.astype(float), weights, 0, mode="mirror")
        expected = ndimage.correlate1d(expected, weights, 1, mode="mirror")
        assert abs(batch[i] - expected).max() < 1e-3
        assert abs(blur_image(image.astype(np.float32), kernels[i]) - expected).max() < 1e-3
        if sigma == (1.0, 8.0):
            own = np.sqrt(-0.5 / np.log(weights[len(weights) // 2 + 1] / weights[len(weights) // 2]))
            assert sigma[0] * SIZE / 224 - 1e-6 <= own <= sigma[1] * SIZE / 224 + 1e-6
            smooth = ndimage.gaussian_filter(image.astype(float), (own, own, 0), mode="mirror", truncate=6)
            assert abs(batch[i] - smooth).max() < 1.5, "cut off at three standard deviations"


def test_noise_is_normal_and_differs_between_samples() -> None:
    images = np.full((4, SIZE, SIZE, 3), 128, np.uint8)
    keys = {"noise": 1.0, "noise_std": (0.05, 0.05)}
    noise = (changed(images, **keys) - 128) / 255 / 0.05
    assert stats.kstest(noise.ravel(), stats.norm.cdf).statistic < 0.01
    assert abs(noise.std() - 1) < 0.01 and abs(stats.kurtosis(noise.ravel())) < 0.25
    flat = noise.reshape(4, -1)
    assert abs(np.corrcoef(flat) - np.eye(4)).max() < 0.05
    for lag in (1, 3, 3 * SIZE, 64, 4096):
        assert abs(np.corrcoef(flat[0, :-lag], flat[0, lag:])[0, 1]) < 0.05
    parameters = build_augment(**keys).parameters(1, ROWS[:4], SIZE)
    tensors = {name: torch.from_numpy(values) for name, values in parameters.items()}
    batch = add_noise_to_batch(torch.full((4, 3, SIZE, SIZE), 0.5), tensors).permute(0, 2, 3, 1).numpy()
    for i, key in enumerate(parameters["noise_key"].tolist()):
        one = np.full((SIZE, SIZE, 3), 0.5, np.float32)
        add_noise_to_image(one, 0.05, key)
        np.testing.assert_allclose(one, batch[i], atol=1e-7)
    assert abs(np.corrcoef(batch[0].ravel(), flat[0])[0, 1]) < 0.05, "noise differs between epochs"


def test_erasing_sets_a_rectangle_to_the_mean_and_nothing_else() -> None:
    images = images_of()
    parameters = build_augment(erasing=0.7).parameters(0, ROWS, SIZE)
    normalize = CpuNormalizer((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), False)
    found, plain = normalize(images, parameters), normalize(images, None)
    for i, (top, left, bottom, right) in enumerate(parameters["erased"].tolist()):
        inside = torch.zeros(SIZE, SIZE, dtype=torch.bool)
        inside[top:bottom, left:right] = True
        assert (found[i][:, inside] == 0).all()
        assert torch.equal(found[i][:, ~inside], plain[i][:, ~inside])


def torchvision_result(name: str, image: torch.Tensor, strength: float) -> torch.Tensor:
    """Return the result of torchvision's RandAugment operation, with linear interpolation."""
    if name in ("ShearX", "ShearY"):
        # Use the matrix directly: F.affine flips the sign of the angle, and the sign is random anyway.
        matrix = [1.0, strength, 0.0, 0.0, 1.0, 0.0] if name == "ShearX" else [1.0, 0.0, 0.0, strength, 1.0, 0.0]
        picture = F.to_pil_image(image)
        centre = 0.5 * strength  # Pillow counts from the corner of the first pixel, we from its centre
        matrix[2 if name == "ShearX" else 5] = -centre
        fill = tuple(FILL)
        return F.pil_to_tensor(picture.transform(picture.size, 0, matrix, resample=2, fillcolor=fill))
    if name in ("TranslateX", "TranslateY"):
        by = round(strength * SIZE)
        shift = [by, 0] if name == "TranslateX" else [0, by]
        return F.affine(image, 0.0, shift, 1.0, [0.0, 0.0], InterpolationMode.BILINEAR, fill=list(FILL))
    other = {
        "Identity": lambda: image,
        "Rotate": lambda: F.rotate(image, strength, InterpolationMode.BILINEAR, fill=list(FILL)),
        "Brightness": lambda: F.adjust_brightness(image, 1 + strength),
        "Color": lambda: F.adjust_saturation(image, 1 + strength),
        "Contrast": lambda: F.adjust_contrast(image, 1 + strength),
        "Sharpness": lambda: F.adjust_sharpness(image, 1 + strength),
        "Posterize": lambda: F.posterize(image, 8 - int(strength)),
        "Solarize": lambda: F.solarize(image, strength),
        "AutoContrast": lambda: F.autocontrast(image),
        "Equalize": lambda: F.equalize(image),
    }
    return other[name]()


@pytest.mark.parametrize("name", policy.OPERATION_NAMES)
def test_policy_operations_equal_torchvision(name: str) -> None:
    rows = np.arange(300)
    parameters = build_augment(policy="randaugment", policy_ops=1, policy_magnitude=15.0).parameters(0, rows, SIZE)
    if name.startswith("Translate"):  # whole pixels, as torchvision
        whole = np.rint(parameters["policy_homography"][..., :2, 2])
        parameters["policy_homography"][..., :2, 2] = whole
    chosen = np.flatnonzero(parameters["policy"][:, 0] == policy.OPERATION_NAMES.index(name))[:6]
    assert len(chosen) == 6
    own = {key: values[chosen] for key, values in parameters.items()}
    images = images_of(6)
    images[1] = 77  # one level only
    tensors = {key: torch.from_numpy(values) for key, values in add_positions(own).items()}
    batch = policy.apply_policy(planes(images), tensors, FILL_TENSOR)
    for i in range(6):
        one = torch.from_numpy(policy.apply_policy_to_image(images[i], own, i, FILL)).permute(2, 0, 1)
        expected = torchvision_result(name, planes(images)[i], float(own["policy_strength"][i, 0]))
        for found in (one, batch[i]):
            difference = (found.int() - expected.int()).abs()
            if name.startswith("Shear") or name == "Rotate":  # the edge is blended with the fill colour in another way
                assert (difference > 1).float().mean() < 0.06
            else:
                assert difference.max() <= 1


def test_colours_of_doubles_stay_in_range() -> None:
    parameters = build_augment(brightness=1.0, saturation=1.0).parameters(0, ROWS, SIZE)
    tensors = {name: torch.from_numpy(values) for name, values in parameters.items()}
    values = adjust_colours(planes(images_of()).float() / 255, tensors)
    assert values.min() >= 0 and values.max() <= 1
