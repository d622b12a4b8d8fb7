"""choral: many voices, one answer. Fine-tune pretrained image models, let them vote, know how sure to be."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from choral.deploy.bundle.predictor import Form, Predictor

__version__ = "0.1.0"


def load(bundle: str | Path, device: str = "auto", form: Form = "torch") -> Predictor:
    """Return what the bundle in a folder answers for images; see `choral.deploy.bundle.predictor.Predictor`.

    Args:
        bundle: the folder that `choral export` wrote.
        device: auto (a GPU where there is one), cpu, cuda, cuda:1 and so on.
        form: torch: its networks. onnx, pt2: the file with the whole ensemble, where it was exported.

    Raises:
        choral.core.errors.ConfigError: there is no bundle, no such form, or no such device.
        choral.core.errors.DataError: a file is damaged.
    """
    from choral.deploy.bundle.predictor import (
        Predictor,  # PyTorch comes with the first network, not with `import choral`
    )

    return Predictor.load(bundle, device, form)
