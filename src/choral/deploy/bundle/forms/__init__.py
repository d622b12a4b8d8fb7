"""The whole ensemble as one file for other runtimes: ONNX for onnxruntime, pt2 (torch.export) for PyTorch.

Both take uint8 images, batch dimension free, and return calibrated probabilities and each member's predictions.
"""

from __future__ import annotations

from pathlib import Path

from choral.core.errors import ConfigError
from choral.deploy.bundle.engine import Engine


def open_form(path: Path) -> Engine:
    """Open the exported file of an ensemble as an engine on the CPU; nothing in it is unpickled or executed.

    Raises:
        ConfigError: a file that is neither, or the runtime is not installed.
        DataError: the file is damaged, or holds what would be executed when it is read.
    """
    if path.suffix == ".onnx":
        from choral.deploy.bundle.forms.onnx_form import OnnxEngine

        return OnnxEngine(path)
    if path.suffix == ".pt2":
        from choral.deploy.bundle.forms.pt2_form import Pt2Engine

        return Pt2Engine(path)
    raise ConfigError(f"{path}: expected a file that ends in .onnx or .pt2")
