"""Views, compared with their definitions on tiny tensors and with torchvision; grammar, group laws of D4, errors."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from choral.config.files import load_config, parse_override
from choral.core.errors import ConfigError
from choral.inference.views import Step, View, expand_views, parse_view
from choral.inference.views import transforms as shown_module
from choral.inference.views.transforms import ViewModule

D4 = ("identity", "hflip", "vflip", "rot90", "rot180", "rot270", "transpose", "antitranspose")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
PLAIN = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def apply_view(images: Tensor, view: str) -> Tensor:
    return shown_module.apply_view(images, view, *PLAIN)


def pixels(height: int = 12, width: int = 12, count: int = 2) -> Tensor:
    """(count, 3, height, width) float32 in [0, 1]."""
    return torch.rand((count, 3, height, width), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        ("identity", [[1, 2], [3, 4]]),
        ("hflip", [[2, 1], [4, 3]]),
        ("vflip", [[3, 4], [1, 2]]),
        ("rot90", [[2, 4], [1, 3]]),
        ("rot180", [[4, 3], [2, 1]]),
        ("rot270", [[3, 1], [4, 2]]),
        ("transpose", [[1, 3], [2, 4]]),
        ("antitranspose", [[4, 2], [3, 1]]),
    ],
)
def test_symmetries_equal_their_definition(view: str, expected: list[list[int]]) -> None:
    images = torch.tensor([[1, 2], [3, 4]]).reshape(1, 1, 2, 2)
    assert apply_view(images, view).reshape(2, 2).tolist() == expected


def test_rotations_agree_with_torch_and_views_leave_batch_and_channels_alone() -> None:
    images = torch.arange(2 * 3 * 5 * 5).reshape(2, 3, 5, 5)
    for turns, view in enumerate(("identity", "rot90", "rot180", "rot270")):
        assert torch.equal(apply_view(images, view), torch.rot90(images, turns, (-2, -1)))
    for view in D4:
        shown = apply_view(images.to(memory_format=torch.channels_last), view)
        assert shown.shape == images.shape
        assert torch.equal(shown.sum((-2, -1)), images.sum((-2, -1)))


def test_d4_is_closed_and_products_have_canonical_names() -> None:
    images = torch.arange(9).reshape(1, 1, 3, 3)
    shown = {tuple(apply_view(images, view).flatten().tolist()): view for view in D4}
    assert len(shown) == 8
    for first in D4:
        for second in D4:
            both = apply_view(apply_view(images, first), second)
            assert expand_views(f"{first}*{second}") == (shown[tuple(both.flatten().tolist())],)


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        ("shift[0.25,0]", [[1, 0, 1, 2], [5, 4, 5, 6], [9, 8, 9, 10], [13, 12, 13, 14]]),
        ("shift[-0.5,0]", [[2, 3, 2, 1], [6, 7, 6, 5], [10, 11, 10, 9], [14, 15, 14, 13]]),
        ("shift[0,0.25]", [[4, 5, 6, 7], [0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]),
        ("shift[0.25,-0.25]", [[5, 4, 5, 6], [9, 8, 9, 10], [13, 12, 13, 14], [9, 8, 9, 10]]),
    ],
)
def test_shift_moves_the_content_and_reflects_at_the_border(view: str, expected: list[list[int]]) -> None:
    images = torch.arange(16).reshape(1, 1, 4, 4)  # integers: a shift only moves pixels
    assert apply_view(images, view).reshape(4, 4).tolist() == expected


@pytest.mark.parametrize("size", [(12, 12), (9, 14)])
@pytest.mark.parametrize(("right", "down"), [(0.25, 0.0), (0.0, -0.5), (-0.1, 0.3)])
def test_shift_equals_torchvisions_reflect_pad_and_crop(size: tuple[int, int], right: float, down: float) -> None:
    images, (height, width) = pixels(*size), size
    x, y = round(right * width), round(down * height)
    padded = tv.pad(images, [abs(x), abs(y)], padding_mode="reflect")
    expected = tv.crop(padded, abs(y) - y, abs(x) - x, height, width)
    assert torch.equal(apply_view(images, f"shift[{right},{down}]"), expected)


def scaled_by_hand(images: Tensor, factor: float) -> Tensor:
    """Compute a scale pixel by pixel: a triangle filter around the source position, reflected at the border."""

    def mirrored(place: int, size: int) -> int:
        while not 0 <= place < size:
            place = -place if place < 0 else 2 * (size - 1) - place
        return place

    def line(size: int) -> Tensor:
        found, reach = torch.zeros(size, size, dtype=torch.float64), max(1.0, 1 / factor)
        for pixel in range(size):
            centre = (pixel + 0.5 - size / 2) / factor + size / 2 - 0.5
            for place in range(math.floor(centre - reach), math.ceil(centre + reach) + 1):
                found[pixel, mirrored(place, size)] += max(0.0, 1 - abs(place - centre) / reach)
        return found / found.sum(1, keepdim=True)

    height, width = images.shape[-2:]
    return line(height) @ images.double() @ line(width).T


@pytest.mark.parametrize("size", [(12, 12), (7, 10)])
@pytest.mark.parametrize("factor", [0.3, 0.5, 0.9, 1.1, 2.0, 3.3])
def test_scale_is_a_triangle_filter_about_the_centre(size: tuple[int, int], factor: float) -> None:
    images = pixels(*size)
    torch.testing.assert_close(
        apply_view(images, f"scale[{factor}]"), scaled_by_hand(images, factor).float(), atol=2e-6, rtol=0
    )


def test_scale_agrees_with_torchvision_within_the_image() -> None:
    images = pixels(16, 16)
    magnified = tv.resize(images, [32, 32], antialias=True)[..., 8:24, 8:24]
    torch.testing.assert_close(apply_view(images, "scale[2]"), magnified, atol=1e-6, rtol=0)
    shrunk = tv.resize(images, [8, 8], antialias=True)
    inner = apply_view(images, "scale[0.5]")[..., 4:12, 4:12]  # its border looks beyond the image
    torch.testing.assert_close(inner[..., 1:-1, 1:-1], shrunk[..., 1:-1, 1:-1], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("size", "side"), [((12, 12), 0.75), ((13, 10), 0.6), ((16, 16), 0.875)])
def test_crops_equal_torchvision(size: tuple[int, int], side: float) -> None:
    images, (height, width) = pixels(*size), size
    crops = tv.ten_crop(images, [round(side * height), round(side * width)])
    views = expand_views(f"ten_crop[{side}]")
    assert len(views) == 10
    for view, crop in zip(views, crops, strict=True):
        expected = tv.resize(crop, [height, width], antialias=True)
        torch.testing.assert_close(apply_view(images, view), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.3, 4.0])
def test_brightness_and_contrast_equal_torchvision(factor: float) -> None:
    images = pixels()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    for view, adjust in (("brightness", tv.adjust_brightness), ("contrast", tv.adjust_contrast)):
        shown = shown_module.apply_view((images - mean) / std, f"{view}[{factor}]", MEAN, STD)
        torch.testing.assert_close(shown, (adjust(images, factor) - mean) / std, atol=3e-6, rtol=0)


def test_products_apply_from_left_to_right() -> None:
    images = pixels()
    for left, right in (("hflip", "crop[top_left,0.5]"), ("shift[0.25,0]", "rot90"), ("scale[0.9]", "contrast[1.5]")):
        both = apply_view(apply_view(images, left), right)
        assert torch.equal(apply_view(images, f"{left}*{right}"), both)
        assert (
            not torch.allclose(both, apply_view(apply_view(images, right), left), atol=1e-3) or right == "contrast[1.5]"
        )


@pytest.mark.parametrize("other", ["scale[0.9]", "brightness[1.4]", "contrast[0.7]"])
@pytest.mark.parametrize("symmetry", ["hflip", "rot90", "antitranspose"])
def test_commuting_steps_give_one_view(symmetry: str, other: str) -> None:
    images = pixels()
    assert expand_views(f"{other}*{symmetry}") == expand_views(f"{symmetry}*{other}") == (f"{symmetry}*{other}",)
    one, two = apply_view(apply_view(images, symmetry), other), apply_view(apply_view(images, other), symmetry)
    torch.testing.assert_close(one, two, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("written", "views"),
    [
        ("d4", D4),
        ("hflip", ("hflip",)),
        (["vflip", "identity", "vflip"], ("vflip", "identity")),
        (["hflip", "d4"], ("hflip", "identity", *D4[2:])),
        ("rotations", ("identity", "rot90", "rot180", "rot270")),
        ("hflip*scales[0.9,1,1.1]", ("hflip*scale[0.9]", "hflip", "hflip*scale[1.1]")),
        ("identity, hflip * scales[0.90, 1.0]", ("identity", "hflip*scale[0.9]", "hflip")),
        ("shifts[0.05]", ("shift[-0.05,0]", "shift[0.05,0]", "shift[0,-0.05]", "shift[0,0.05]")),
        (
            "brightness[0.8,1.2]*(identity,vflip)",
            ("brightness[0.8]", "vflip*brightness[0.8]", "brightness[1.2]", "vflip*brightness[1.2]"),
        ),
        ("(identity,hflip)*five_crop", expand_views("ten_crop")),
        ("crop[centre,1],hflip*vflip*rot180,brightness[1],shift[-0,0]", ("identity",)),
        ("crop[centre,.5]*hflip*rot90", ("crop[centre,0.5]*transpose",)),
    ],
    ids=str,
)
def test_expand_views(written: str | list[str], views: tuple[str, ...]) -> None:
    assert expand_views(written) == views
    assert expand_views(views) == views
    assert [parse_view(name).name for name in views] == list(views)


def test_five_crop_and_ten_crop_have_torchvisions_order() -> None:
    corners = ("top_left", "top_right", "bottom_left", "bottom_right", "centre")
    five = tuple(f"crop[{corner},0.875]" for corner in corners)
    assert expand_views("five_crop") == five
    assert expand_views("ten_crop") == (*five, *(f"hflip*{crop}" for crop in five))


def test_view_steps_are_plain_values() -> None:
    assert parse_view("hflip*scale[0.9]") == View((Step("hflip"), Step("scale", (0.9,))))
    assert parse_view("identity") == View()
    with pytest.raises(ConfigError, match="'d4' stands for 8 views, expected one"):
        parse_view("d4")


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (["identity", "hflp"], r"unknown view 'hflp'\. Did you mean hflip\?.*d4"),
        ([], "the list is empty"),
        (" ", "the list is empty"),
        ("hflip*", r"'hflip\*': expected a view after 'hflip\*'"),
        ("scales", r"expected values in brackets such as scales\[0.9,1,1.1\]"),
        ("scale[0.9,1]", r"expected values in brackets such as scale\[0.9\]"),
        ("scales[0.9", r"'\]' is missing after 'scales\[0.9'"),
        ("scales[0.9]]", r"'\]' after the end of a view"),
        ("scales[small]", "'small' is not a number; scales is written"),
        ("scales[0]", "scales takes 0.25 to 4, not 0"),
        ("brightness[1e999]", "brightness takes 0.1 to 10"),
        ("crop[top_lft,0.5]", r"no corner 'top_lft'\. Did you mean top_left\?"),
        ("(hflip,vflip", r"'\)' is missing"),
        ("hflip vflip", "'vflip' after the end of a view; join views with"),
        ("hflip/vflip", "unexpected character '/'"),
        ("d4*d4*d4*d4*d4", "stands for 32768 views"),
        ("d4*scales[0.5,0.6,0.7,0.8]*shifts[0.1,0.2,0.3,0.4,0.5]", "640 views.*the maximum is 512"),
    ],
    ids=str,
)
def test_invalid_views_are_refused(written: str | list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        expand_views(written)


def test_views_that_swap_sides_need_square_images() -> None:
    wide = torch.zeros(1, 3, 4, 6)
    for view in ("rot180", "scale[0.9]", "crop[centre,0.5]"):
        assert apply_view(wide, view).shape == wide.shape
    with pytest.raises(ConfigError, match="rot90.* needs square images, these are 4 x 6"):
        apply_view(wide, "rot90*scale[0.9]")


def test_commas_within_brackets_survive_files_and_overrides(tmp_path: Path) -> None:
    wanted = ("identity", "hflip*scales[0.9,1]", "(hflip,vflip)*d4")
    text = ",".join(wanted)
    base = ["data.shards=x", f"evaluate.views={text}"]
    path = tmp_path / "c.yaml"
    for section in (f"views: {text}", "views: [identity, 'hflip*scales[0.9,1]', '(hflip,vflip)*d4']"):
        path.write_text(f"data: {{shards: x}}\nevaluate:\n  {section}\n", encoding="utf-8")
        assert load_config(path).evaluate.views == wanted
    path.write_text("data: {shards: x}\n", encoding="utf-8")
    assert load_config(path, base).evaluate.views == wanted
    assert parse_override("evaluate.views=['hflip*scales[0.9,1]']")[1] == ["hflip*scales[0.9,1]"]


def test_every_view_exports_and_keeps_half_precision() -> None:
    images = pixels(8, 8)
    for view in (*expand_views("rot90,shifts[0.2],scales[0.7,1.3],five_crop"), "hflip*scale[0.9]*contrast[1.3]"):
        module = ViewModule(parse_view(view), 8, 8, MEAN, STD)
        exported = torch.export.export(module, (images,)).module()
        assert torch.equal(exported(images), module(images))
        assert module(images.bfloat16()).dtype == torch.bfloat16


def test_views_do_not_depend_on_the_batch() -> None:
    images = pixels(9, 9, count=5)
    for view in expand_views("d4*scales[0.8]*contrast[1.2],shift[0.1,0.2],ten_crop[0.7]"):
        together = shown_module.apply_view(images, view, MEAN, STD)
        alone = torch.cat([shown_module.apply_view(image[None], view, MEAN, STD) for image in images])
        assert torch.equal(together, alone)


def test_views_ledgers_and_scores_need_no_torch() -> None:
    code = (
        "import sys, choral.inference, choral.inference.ledger, choral.metrics, choral.ensembles.rules,"
        " choral.ensembles.score_run, choral.jobs.local; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
