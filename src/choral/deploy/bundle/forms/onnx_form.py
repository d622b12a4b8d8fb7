"""The ensemble as an ONNX file, and onnxruntime as an engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from choral.core.errors import ConfigError, DataError
from choral.deploy.bundle.engine import EngineInput, EnsemblePredictions
from choral.deploy.bundle.forms.program import predict_in_parts, read_images_at_once, without_output, written_aside

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_MISSING = "needs onnx, onnxscript and onnxruntime: pip install 'choral[onnx]'"
_LARGEST = 2_000_000_000  # bytes: protobuf ends at 2 GiB, the graph itself included
_ERRORS_ALONE = 3


def write_onnx(program: ExportedProgram, inputs: Sequence[EngineInput], path: Path, facts: Mapping[str, str]) -> None:
    """Write an ONNX file: one uint8 tensor (batch, S, S, 3) an input, to probabilities and by_member.

    The outputs are `probabilities` (of regression `values`), (batch, C) float32, and `by_member`, (batch, M, C) float32.
    Nothing is optimised here: runtimes do that when they load, for the processor that they run on.

    Args:
        program: of the graph.
        inputs: whose names the tensors get.
        path: of the file.
        facts: text that is kept as the file's metadata.

    Raises:
        ConfigError: the packages are not installed, or the networks are too large for one file.
    """
    import torch

    check_installed()
    size = sum(values.numel() * values.element_size() for values in program.state_dict.values())
    if size > _LARGEST:
        raise ConfigError(
            f"{path.name}: weights of {size / 1e9:.1f} GB do not fit into one ONNX file; use --format pt2"
        )
    first = "values" if facts["task"] == "regression" else "probabilities"
    with without_output():
        written = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[item.name for item in inputs],
            output_names=[first, "by_member"],
            optimize=False,
            verbose=False,
        )
    assert written is not None
    model = written.model
    for node in model.graph.all_nodes():
        node.metadata_props.clear()  # where in which file of this machine it comes from
    model.metadata_props.clear()
    model.metadata_props.update(facts)
    model.doc_string = None
    _name_batch(model)
    with written_aside(path) as aside:
        written.save(aside)


def _name_batch(model: Any) -> None:
    """Call the free dimension "batch": an exported program calls it s19 or so."""
    import onnx_ir

    symbol = str(model.graph.inputs[0].shape[0])
    values = [*model.graph.inputs, *(value for node in model.graph.all_nodes() for value in node.outputs)]
    for value in values:
        if value.shape is None:
            continue
        named = [str(size).replace(symbol, "batch") if not isinstance(size, int) else size for size in value.shape]
        value.shape = onnx_ir.Shape(named)


def check_installed() -> None:
    """Raise ConfigError unless the packages that write and run ONNX files are installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"ONNX {_MISSING} ({error})") from error


class OnnxEngine:
    """Runs an ONNX file on the CPU.

    Args:
        path: of the file.
        threads: that onnxruntime computes with; 0: as many as there are cores.

    Raises:
        ConfigError: onnxruntime is not installed.
        DataError: the file is damaged, or not of an ensemble.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ConfigError(f"{path}: {_MISSING}") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = _ERRORS_ALONE
        try:
            self._session: Any = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            self._at_once = read_images_at_once(self._session.get_modelmeta().custom_metadata_map)
        except (KeyError, ValueError) as error:
            raise DataError(f"{path}: is no ensemble of choral ({error!r})") from error
        except Exception as error:  # onnxruntime has a dozen classes of its own, all of them plain exceptions
            raise DataError(f"{path}: cannot be loaded: {error}") from error
        self._names = [item.name for item in self._session.get_inputs()]

    def predict_batch(self, images: Sequence[NDArray[np.uint8]]) -> EnsemblePredictions:
        """Return the predictions for a batch; see `Engine.predict_batch`."""
        return predict_in_parts(images, self._at_once, self._run)

    def _run(self, images: list[NDArray[np.uint8]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        combined, own = self._session.run(None, dict(zip(self._names, images, strict=True)))
        return combined, own
