"""Files of lower precision: half, which is quick on GPUs and half as large, and 8 bit integers, a quarter as large."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from choral.deploy.bundle.forms.program import without_output, written_aside


@contextmanager
def _without_log() -> Iterator[None]:
    """Keep the quantiser from writing to the root logger what it cannot quantise: the bytes of images."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def write_int8(path: Path, out: Path) -> None:
    """Write an ONNX file again with weights of 8 bits, activations quantised as they come: dynamic quantisation.

    Convolutions and matrix products compute in integers. What that costs in accuracy depends on the networks, and those
    with depthwise convolutions lose most: it has to be measured.

    Args:
        path: of a file in full precision.
        out: of the new one.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with written_aside(out) as aside, without_output(), _without_log():
        # Unsigned: the only integers that onnxruntime convolves with on every processor.
        quantize_dynamic(path, aside, weight_type=QuantType.QUInt8, per_channel=True)
