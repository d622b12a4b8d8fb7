"""The ensemble as a file of torch.export, and PyTorch as an engine that needs none of the networks' code."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram

from choral.core.errors import DataError
from choral.deploy.bundle.engine import EnsemblePredictions
from choral.deploy.bundle.forms.archive_check import check_archive
from choral.deploy.bundle.forms.program import predict_in_parts, read_images_at_once, without_output, written_aside

FACTS = "choral.json"
"""Name of the metadata among the extra files."""


def write_pt2(program: ExportedProgram, path: Path, facts: Mapping[str, str]) -> None:
    """Write a file of torch.export without anything that is pickled, or executed when it is read.

    Example inputs, which are pickled, are left out, and guards, which are source code, too; `Pt2Engine` checks what it is
    given by itself. Where in which file of this machine an operation comes from is nobody's business, either.

    Args:
        program: of the graph; it loses these parts.
        path: of the file.
        facts: text that is kept in it.
    """
    program.example_inputs = None
    program._guards_code = []
    for node in program.graph.nodes:
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "custom", "from_node"):
            node.meta.pop(key, None)
    with written_aside(path) as aside, without_output():
        torch.export.save(program, aside, extra_files={FACTS: json.dumps(dict(facts))})


class Pt2Engine:
    """Runs a file of torch.export on the CPU.

    Args:
        path: of the file.

    Raises:
        DataError: the file is damaged, not of an ensemble, or holds what would be unpickled or executed.
    """

    def __init__(self, path: Path) -> None:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
        check_archive(data, str(path))
        extra = {FACTS: ""}
        try:
            with without_output():
                program = torch.export.load(io.BytesIO(data), extra_files=extra)
                self._module = program.module()
            self._at_once = read_images_at_once(json.loads(extra[FACTS]))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: is no ensemble of choral ({error!r})") from error
        except (RuntimeError, AssertionError) as error:
            raise DataError(f"{path}: cannot be loaded: {error}") from error

    def predict_batch(self, images: Sequence[NDArray[np.uint8]]) -> EnsemblePredictions:
        """Return the predictions for a batch; see `Engine.predict_batch`."""
        return predict_in_parts(images, self._at_once, self._run)

    def _run(self, images: list[NDArray[np.uint8]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        tensors = [torch.from_numpy(np.require(values, requirements=["C", "W"])) for values in images]
        with torch.inference_mode():
            combined, own = self._module(*tensors)
        return combined.numpy(), own.numpy()
