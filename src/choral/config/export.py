"""What the stage export of `choral run` leaves, and what a bundle says of the rights to what is in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from choral.config.fields import check, tuning

MOST_GOLDEN = 64


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """The bundle of a run. Nothing of it changes a run."""

    formats: tuple[Literal["onnx", "pt2"], ...] = tuning(())
    """Further forms of the whole ensemble in one file, beside its networks."""
    golden: int = tuning(8)
    """Images of the validation split that are put into the bundle with what was said about them, so that `choral verify`
    can ask again; 0: made ones, for data that must not be passed on."""
    data_licence: str = tuning("")
    """Of the images that it was trained on; "": what the packed data say, else nothing is stated."""
    weights_licence: str = tuning("")
    """Of the pretrained weights; "": with weights of a Python package what that states, else nothing."""

    def __post_init__(self) -> None:
        check(0 <= self.golden <= MOST_GOLDEN, "export.golden", f"expected 0 to {MOST_GOLDEN}")
