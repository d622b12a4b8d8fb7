"""Each change against its definition, or another library's: Pillow, SciPy, torchvision, colorsys."""

from __future__ import annotations

import colorsys
import io

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from choral.analysis.probes import perturb as perturb_module
from choral.analysis.probes.families import FAMILIES, Probe
from choral.analysis.probes.jpeg import compress_jpeg
from choral.analysis.probes.perturb import Perturbation, make_draws, perturb
from choral.data.loading.crop import Crop
from choral.data.loading.input_spec import ImageSpec, InputSpec

SIZE, COUNT = 40, 6
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
KEYS = [f"sample {number}" for number in range(COUNT)]


def photos(size: int = SIZE, count: int = COUNT) -> torch.Tensor:
    """(B, 3, S, S) uint8: smooth colours with some noise, not near black or white."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(60, 190, (count, 3, 5, 5))
    smooth = np.stack([[ndimage.zoom(plane, size / 5, order=1) for plane in image] for image in coarse])
    return torch.from_numpy(np.clip(smooth + rng.normal(0, 6, smooth.shape), 40, 210).round().astype(np.uint8))


def normalised(images: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (images / 255 - mean) / std


def changed(images: torch.Tensor, family: str, strength: float, sign: int = 1) -> torch.Tensor:
    """Return what a probe makes of uint8 images, as values from 0 to 1."""
    draws = make_draws(family, KEYS[: len(images)])
    found = perturb(normalised(images), Probe(family, strength, sign), draws, MEAN, STD)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return found * std + mean


def homographies(monkeypatch: pytest.MonkeyPatch, family: str, strength: float) -> NDArray[np.float64]:
    """Return (B, 3, 3) matrices from places of the image to places of the result."""
    seen: list[torch.Tensor] = []

    def warp(levels: torch.Tensor, matrices: torch.Tensor, fill: None) -> torch.Tensor:
        seen.append(matrices)
        return levels

    monkeypatch.setattr(perturb_module, "warp_batch", warp)
    changed(photos(), family, strength)
    return np.linalg.inv(seen[0].double().numpy())


def places(matrices: NDArray[np.float64], points: list[tuple[float, float]]) -> NDArray[np.float64]:
    """Return (B, points, 2): where points go."""
    moved = np.einsum("bij,cj->bci", matrices, np.array([(*point, 1.0) for point in points]))
    found: NDArray[np.float64] = moved[..., :2] / moved[..., 2:]
    return found


@pytest.mark.parametrize("sign", [1, -1])
def test_rotation_is_torchvisions(sign: int) -> None:
    """Clockwise with a positive sign."""
    images = photos()
    expected = F.rotate(images, -sign * 30.0, InterpolationMode.BILINEAR)
    inner = F.rotate(torch.full_like(images, 255), -sign * 30.0, InterpolationMode.BILINEAR) == 255
    assert inner.float().mean() > 0.7
    assert (255 * changed(images, "rotation", 30, sign) - expected).abs()[inner].max() < 1.01


@pytest.mark.parametrize(("family", "strength", "factor"), [("smaller", 0.5, 0.5), ("larger", 1.0, 2.0)])
def test_zoom_is_about_the_centre(monkeypatch: pytest.MonkeyPatch, family: str, strength: float, factor: float) -> None:
    middle = (SIZE - 1) / 2
    found = places(homographies(monkeypatch, family, strength), [(middle, middle), (middle + 8, middle - 4)])
    np.testing.assert_allclose(found[:, 0], middle, atol=1e-4)
    np.testing.assert_allclose(found[:, 1], [[middle + 8 * factor, middle - 4 * factor]] * COUNT, atol=1e-3)


def test_translation_moves_by_so_many_pixels() -> None:
    images = photos()
    found = (255 * changed(images, "translation", 0.05)).round()  # two pixels
    ways = set()
    for image, result in zip(images.float(), found, strict=True):
        shifts = [(down, right) for down in (-2, 2) for right in (-2, 2)]
        inner = (slice(None), slice(2, -2), slice(2, -2))
        same = [shift for shift in shifts if torch.equal(torch.roll(image, shift, (1, 2))[inner], result[inner])]
        assert len(same) == 1
        ways.add(same[0])
    assert len(ways) > 1


def test_shear_slants_by_the_angle(monkeypatch: pytest.MonkeyPatch) -> None:
    middle = (SIZE - 1) / 2
    found = places(
        homographies(monkeypatch, "shear", 20), [(middle, middle), (middle, middle + 10), (middle + 10, middle)]
    )
    np.testing.assert_allclose(found[:, 0], middle, atol=1e-4)
    slant = 10 * np.tan(np.radians(20))
    np.testing.assert_allclose(abs(found[:, 1, 0] - middle), slant, rtol=1e-4)
    np.testing.assert_allclose(abs(found[:, 2, 1] - middle), slant, rtol=1e-4)


def test_perspective_moves_every_corner(monkeypatch: pytest.MonkeyPatch) -> None:
    end = SIZE - 1
    corners = [(0, 0), (end, 0), (end, end), (0, end)]
    moved = places(homographies(monkeypatch, "perspective", 0.1), corners) - np.array(corners, float)  # type: ignore[arg-type]
    np.testing.assert_allclose(abs(moved), 0.1 * SIZE, rtol=1e-3)
    assert 0.2 < (moved > 0).mean() < 0.8


@pytest.mark.parametrize(
    ("family", "strength", "factor"), [("darker", 0.4, 0.6), ("darker", 0.8, 0.2), ("lighter", 0.5, 1.5)]
)
def test_brightness_is_a_factor(family: str, strength: float, factor: float) -> None:
    expected = (photos() / 255 * factor).clamp(0, 1)
    torch.testing.assert_close(changed(photos(), family, strength), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("family", "strength"), [("low_contrast", 0.75), ("high_contrast", 1.0)])
def test_contrast_is_torchvisions(family: str, strength: float) -> None:
    factor = 1 - strength if family == "low_contrast" else 1 + strength
    expected = torch.stack([F.adjust_contrast(image, factor) for image in photos() / 255])
    assert (changed(photos(), family, strength) - expected).abs().max() < 1e-3


@pytest.mark.parametrize(("family", "strength"), [("pale", 0.5), ("pale", 1.0), ("vivid", 1.0)])
def test_saturation_is_torchvisions(family: str, strength: float) -> None:
    factor = 1 - strength if family == "pale" else 1 + strength
    expected = F.adjust_saturation(photos() / 255, factor)
    found = changed(photos(), family, strength)
    assert (found - expected).abs().max() < 1e-3
    assert factor or (found.amax(1) - found.amin(1)).max() < 1e-5


def test_hue_turns_the_plane_of_yiq() -> None:
    images, turns = photos() // 4 + 100, []
    found = changed(images, "hue", 0.1)
    for image, result in zip(images / 255, found, strict=True):
        before, after = (colorsys.rgb_to_yiq(*values[:, 20, 20].tolist()) for values in (image, result))
        assert after[0] == pytest.approx(before[0], abs=0.004), "colorsys has weights of two digits"
        angle = np.arctan2(after[2], after[1]) - np.arctan2(before[2], before[1])
        turns.append((angle / (2 * np.pi) + 0.5) % 1 - 0.5)
    np.testing.assert_allclose(np.abs(turns), 0.1, atol=0.02)
    assert len(set(np.sign(turns))) == 2, "either way"


def test_blur_is_scipys_and_sharpening_its_opposite() -> None:
    images = photos(112)
    sigma = 3 * 112 / 224
    exact = (images / 255).numpy()
    expected = ndimage.gaussian_filter(exact, (0, 0, sigma, sigma), mode="mirror", radius=int(np.ceil(3 * sigma)))
    np.testing.assert_allclose(changed(images, "blur", 3).numpy(), expected, atol=1e-4)
    soft = changed(images, "blur", 2).numpy()
    np.testing.assert_allclose(changed(images, "sharpening", 3).numpy(), np.clip(4 * exact - 3 * soft, 0, 1), atol=1e-4)


def test_noise_has_the_standard_deviation_and_grows_with_it() -> None:
    images = torch.full((COUNT, 3, SIZE, SIZE), 128, dtype=torch.uint8)
    weak, strong = (changed(images, "noise", std) - 128 / 255 for std in (0.05, 0.1))
    assert weak.mean().abs() < 0.002 and weak.std() == pytest.approx(0.05, rel=0.03)
    torch.testing.assert_close(2 * weak, strong, atol=1e-5, rtol=1e-3)
    assert (weak[0] - weak[1]).abs().max() > 0.05, "each sample has its own"


@pytest.mark.parametrize("size", [64, 50, 33])
@pytest.mark.parametrize("quality", [93, 50, 15, 7])
def test_compression_is_pillows(size: int, quality: int) -> None:
    images = photos(size, 3)
    read = []
    for image in images.permute(0, 2, 3, 1).numpy():
        with io.BytesIO() as stream:
            Image.fromarray(image).save(stream, "JPEG", quality=quality)
            read.append(np.array(Image.open(stream)))
    expected = torch.from_numpy(np.stack(read)).permute(0, 3, 1, 2).float()
    found = compress_jpeg(images, quality).float()
    assert (found - expected).abs().mean() < 0.7
    assert ((found - expected).abs() > 3).float().mean() < 0.02
    lost = (expected - images).abs().mean()
    assert (found - expected).abs().mean() < 0.2 * lost
    torch.testing.assert_close(255 * changed(images, "compression", 100 - quality), found, atol=1e-3, rtol=0)


def test_occlusion_covers_the_share_with_the_mean_colour() -> None:
    draws = make_draws("occlusion", KEYS)
    images = normalised(photos())
    for strength in (0.05, 0.33):
        found = perturb(images, Probe("occlusion", strength), draws, MEAN, STD)
        covered = (found == 0).all(1)
        np.testing.assert_allclose(covered.float().mean((1, 2)).numpy(), strength, atol=0.02)
        for mask in covered:
            rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
            area = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
            assert area == mask.sum(), "one rectangle"
        kept = ~covered[:, None].expand_as(images)
        torch.testing.assert_close(found[kept], images[kept], atol=1e-5, rtol=0)
    assert len({tuple(mask.nonzero()[0].tolist()) for mask in covered}) > 1, "each sample has its own place"


def test_flips_and_turns_are_exact() -> None:
    images = normalised(photos())

    def shown(family: str) -> torch.Tensor:
        return perturb(images, Probe(family, 1), make_draws(family, KEYS), MEAN, STD)

    assert torch.equal(shown("hflip"), images.flip(3)) and torch.equal(shown("vflip"), images.flip(2))
    turns = [
        [k for k in (1, 2, 3) if torch.equal(result, torch.rot90(image, k, (1, 2)))]
        for image, result in zip(images, shown("rot90"), strict=True)
    ]
    assert all(len(found) == 1 for found in turns) and len({found[0] for found in turns}) > 1


class Keys:
    """An index that knows keys alone."""

    def keys(self, rows: NDArray[np.int64]) -> list[str]:
        return [KEYS[row] for row in rows]


@pytest.mark.parametrize("probe", [family.probes[-1] for family in FAMILIES], ids=lambda probe: probe.family)
def test_what_is_done_depends_on_the_key_alone(probe: Probe) -> None:
    """Not on the row, nor on who else is in the batch, nor on the memory format."""
    input_spec = InputSpec(ImageSpec(SIZE, Crop("resized"), "antialias"), MEAN, STD)
    shows, images = Perturbation(Keys()), normalised(photos())  # type: ignore[arg-type]
    whole = shows(images, probe.name, input_spec, np.arange(COUNT))
    assert whole.shape == images.shape and whole.dtype == torch.float32 and torch.isfinite(whole).all()
    assert (whole - images).abs().amax((1, 2, 3)).min() > 0.05, "every image is changed"
    order = np.array([4, 0, 2])
    last = images[order].contiguous(memory_format=torch.channels_last)
    some = shows(last, probe.name, input_spec, order)
    torch.testing.assert_close(some, whole[order], atol=1e-5, rtol=0)
    assert some.is_contiguous(memory_format=torch.channels_last) or probe.family in ("hflip", "vflip", "rot90")
    assert shows(images, "identity", input_spec, np.arange(COUNT)) is images


@pytest.mark.parametrize("family", ["smaller", "rotation", "darker", "vivid", "blur", "noise", "occlusion"])
def test_nothing_is_lost_where_nothing_is_changed(family: str) -> None:
    torch.testing.assert_close(255 * changed(photos(), family, 1e-9), photos().float(), atol=1e-3, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("probe", [family.probes[-1] for family in FAMILIES], ids=lambda probe: probe.family)
def test_a_gpu_shows_the_same(probe: Probe) -> None:
    images, draws = normalised(photos(64)), make_draws(probe.family, KEYS)
    found = perturb(images.cuda(), probe, draws, MEAN, STD).cpu()
    difference = (found - perturb(images, probe, draws, MEAN, STD)).abs()
    # A level of 255 is 0.02 here, where what is resampled or coded is rounded to levels.
    assert difference.max() < 0.025 or (difference > 0.025).float().mean() < 0.01
    assert difference.mean() < 0.002
