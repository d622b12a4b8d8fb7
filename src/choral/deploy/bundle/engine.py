"""What answers for prepared images, whatever it runs on: PyTorch networks, an ONNX file, an exported program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from choral.data.loading.input_spec import ImageSpec, InputSpec, image_specs_of
from choral.models.output_spec import Outputs

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Input:
    """One of the arrays that an engine takes: all images of a batch, prepared in one form."""

    name: str
    """In graphs: "images", or where members want different forms "images_128" and so on."""
    form: ImageSpec


@dataclass(frozen=True)
class Member:
    """A network that is ready to be asked.

    Attributes:
        name: as answers call it.
        network: in evaluation mode.
        look: what it is shown.
        outputs: what its numbers mean.
    """

    name: str
    network: nn.Module
    input_spec: InputSpec
    outputs: Outputs


@dataclass(frozen=True)
class Predicted:
    """What an engine says about a batch.

    Attributes:
        by_member: (members, B, outputs) float32 what each says by itself, its views averaged.
        combined: (B, outputs) float32 what they say together, calibrated: probabilities, of regression numbers.
    """

    by_member: NDArray[np.float32]
    combined: NDArray[np.float32]


class Engine(Protocol):
    """Asks all members about prepared images; several threads may at the same time."""

    def ask(self, images: Sequence[NDArray[np.uint8]]) -> Predicted:
        """Return what is said about a batch.

        Args:
            images: for each input, in their order, (B, S, S, 3) uint8 RGB of its form's size; B >= 1.
        """


def inputs_of(input_specs: Sequence[InputSpec]) -> tuple[Input, ...]:
    """Return the inputs that members of these looks need together, in the order in which their forms come."""
    forms = image_specs_of(input_specs)
    if len(forms) == 1:
        return (Input("images", forms[0]),)
    sizes = [form.size for form in forms]
    names = [f"images_{size}" for size in sizes]
    return tuple(
        Input(name if names.count(name) == 1 else f"{name}_{number}", form)
        for number, (name, form) in enumerate(zip(names, forms, strict=True))
    )
