"""The settings of the export stage: forms of the bundle, golden samples, licences."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Le

from choral.config.fields import NonBinding
from choral.config.section import Section

MAX_GOLDEN = 64


class ExportConfig(Section, frozen=True):
    """The bundle that the export stage writes. Nothing here changes a run."""

    formats: NonBinding[tuple[Literal["onnx", "pt2"], ...]] = ()
    """Additional forms, each with the whole ensemble in one file."""
    golden: NonBinding[Annotated[int, Ge(0), Le(MAX_GOLDEN)]] = 8
    """Number of validation images stored in the bundle with their predictions, which `choral verify` replays. 0: generated
    images instead, for data that must not be passed on."""
    data_licence: NonBinding[str] = ""
    """Licence of the training images. "": the one recorded with the packed data, if any."""
    weights_licence: NonBinding[str] = ""
    """Licence of the pretrained weights. "": the one that their Python package states, if any."""
