"""The engine protocol: prepared images to predictions, by PyTorch models, an ONNX file or an exported program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from choral.data.loading.input_spec import ImageSpec, InputSpec, distinct_image_specs
from choral.models.output_spec import OutputSpec

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class EngineInput:
    """One input array of an engine: all images of a batch, prepared to one `ImageSpec`."""

    name: str
    """The input name in exported graphs: "images", or "images_128" and so on if members need different sizes."""
    image_spec: ImageSpec


@dataclass(frozen=True)
class LoadedMember:
    """A loaded model in evaluation mode.

    Attributes:
        name: the member's name in predictions.
        network: the module, in evaluation mode.
        input_spec: size, crop, resize, mean and std of its input.
        outputs: the meaning of its outputs.
    """

    name: str
    network: nn.Module
    input_spec: InputSpec
    outputs: OutputSpec


@dataclass(frozen=True)
class EnsemblePredictions:
    """The predictions of an engine for one batch.

    Attributes:
        by_member: (members, B, outputs) float32, each member's predictions, averaged over its views.
        combined: (B, outputs) float32, the combined and calibrated predictions.
    """

    by_member: NDArray[np.float32]
    combined: NDArray[np.float32]


class Engine(Protocol):
    """Runs all members on prepared images; safe to call from several threads."""

    def predict_batch(self, images: Sequence[NDArray[np.uint8]]) -> EnsemblePredictions:
        """Return the predictions for a batch.

        Args:
            images: for each input in order, a (B, S, S, 3) uint8 RGB array of its size; B >= 1.
        """


def build_engine_inputs(input_specs: Sequence[InputSpec]) -> tuple[EngineInput, ...]:
    """Return the distinct inputs that members with these input specs need, in order of first use."""
    forms = distinct_image_specs(input_specs)
    if len(forms) == 1:
        return (EngineInput("images", forms[0]),)
    sizes = [form.size for form in forms]
    names = [f"images_{size}" for size in sizes]
    return tuple(
        EngineInput(name if names.count(name) == 1 else f"{name}_{number}", form)
        for number, (name, form) in enumerate(zip(names, forms, strict=True))
    )
