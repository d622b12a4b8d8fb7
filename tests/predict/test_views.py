"""Views: each against its definition on a tiny tensor, the group laws of D4, and errors."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from choral.errors import ConfigError
from choral.predict.views import apply_view, expand

D4 = ("identity", "hflip", "vflip", "rot90", "rot180", "rot270", "transpose", "antitranspose")
SQUARE = [[1, 2], [3, 4]]


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
def test_view_is_what_it_is_called(view: str, expected: list[list[int]]) -> None:
    images = torch.tensor(SQUARE).reshape(1, 1, 2, 2)
    assert apply_view(images, view).reshape(2, 2).tolist() == expected


def test_rotations_agree_with_torch_and_views_leave_batch_and_channels_alone() -> None:
    images = torch.arange(2 * 3 * 5 * 5).reshape(2, 3, 5, 5)
    for turns, view in enumerate(("identity", "rot90", "rot180", "rot270")):
        assert torch.equal(apply_view(images, view), torch.rot90(images, turns, (-2, -1)))
    for view in D4:
        shown = apply_view(images.to(memory_format=torch.channels_last), view)
        assert shown.shape == images.shape
        assert torch.equal(shown.sum((-2, -1)), images.sum((-2, -1)))


def test_d4_is_closed() -> None:
    images = torch.arange(9).reshape(1, 1, 3, 3)
    shown = {view: tuple(apply_view(images, view).flatten().tolist()) for view in D4}
    assert len(set(shown.values())) == 8
    for first in D4:
        for second in D4:
            both = apply_view(apply_view(images, first), second)
            assert tuple(both.flatten().tolist()) in set(shown.values())


def test_expand() -> None:
    assert expand("d4") == D4
    assert expand("hflip") == ("hflip",)
    assert expand(["vflip", "identity", "vflip"]) == ("vflip", "identity")
    assert expand(["hflip", "d4"]) == ("hflip", "identity", *D4[2:])


def test_errors() -> None:
    with pytest.raises(ConfigError, match=r"unknown view 'hflp'\. Did you mean hflip\?.*d4"):
        expand(["identity", "hflp"])
    with pytest.raises(ConfigError, match="empty list"):
        expand([])
    wide = torch.zeros(1, 3, 4, 6)
    assert apply_view(wide, "rot180").shape == wide.shape
    with pytest.raises(ConfigError, match="rot90 needs square images, these are 4 x 6"):
        apply_view(wide, "rot90")


def test_views_ledgers_and_scores_need_no_torch() -> None:
    code = (
        "import sys, choral.predict, choral.predict.ledger, choral.score, choral.ensemble.combine,"
        " choral.ensemble.score, choral.jobs.local; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
