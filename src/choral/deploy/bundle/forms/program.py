"""An ensemble's graph as a program that PyTorch exported: what both kinds of file are written from."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import Dim, ExportedProgram

from choral import __version__
from choral.deploy.bundle.engine import EngineInput, EnsemblePredictions
from choral.deploy.bundle.graph import EnsembleGraph
from choral.scoring.policy import PredictionPolicy

MOST_AT_ONCE = 64
"""Images times views that an engine runs at once, so that memory is bounded for any batch size."""
_EXAMPLES = 2  # of a batch: with one, an exporter would take the size for fixed


def export_program(graph: EnsembleGraph, inputs: Sequence[EngineInput]) -> ExportedProgram:
    """Return the program of a graph, its batch dimension free and called "batch".

    Args:
        graph: on the CPU.
        inputs: its own, in their order.
    """
    sizes = [item.image_spec.size for item in inputs]
    examples = tuple(torch.zeros(_EXAMPLES, size, size, 3, dtype=torch.uint8) for size in sizes)
    batch = Dim("batch", min=1, max=1 << 20)
    with torch.no_grad():
        return torch.export.export(graph, examples, dynamic_shapes=(tuple({0: batch} for _ in examples),))


def build_metadata(name: str, policy: PredictionPolicy, inputs: Sequence[EngineInput]) -> dict[str, str]:
    """Return the metadata of an exported file as text: classes, members, task, and how images are prepared."""
    prepared = [
        {
            "name": item.name,
            "size": item.image_spec.size,
            "crop": item.image_spec.crop.kind,
            "crop_pct": item.image_spec.crop.crop_pct,
            "resize": item.image_spec.resize,
        }
        for item in inputs
    ]
    return {
        "choral": __version__,
        "name": name,
        "task": policy.task,
        "classes": json.dumps(list(policy.classes), ensure_ascii=False),
        "members": json.dumps(list(policy.members), ensure_ascii=False),
        "inputs": json.dumps(prepared),
        "views": json.dumps(list(policy.views)),
    }


def read_images_at_once(facts: Mapping[str, str]) -> int:
    """Return how many images an engine runs at once; KeyError or ValueError if a file does not state its views."""
    return max(1, MOST_AT_ONCE // len(json.loads(facts["views"])))


def predict_in_parts(
    images: Sequence[NDArray[np.uint8]],
    at_once: int,
    run: Callable[[list[NDArray[np.uint8]]], tuple[NDArray[np.float32], NDArray[np.float32]]],
) -> EnsemblePredictions:
    """Predict a batch in parts.

    Args:
        images: as of `Engine.predict_batch`.
        at_once: images in a part.
        run: from a part to (B, C) combined predictions and (B, M, C) predictions of each member.
    """
    parts = [
        run([np.ascontiguousarray(values[start : start + at_once]) for values in images])
        for start in range(0, len(images[0]), at_once)
    ]
    combined, own = (np.concatenate(values) for values in zip(*parts, strict=True))
    return EnsemblePredictions(np.ascontiguousarray(own.transpose(1, 0, 2)), combined)


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Give a path to write to, which becomes `path` once all is written."""
    aside = path.with_name(f".{path.stem}.tmp{path.suffix}")
    try:
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def without_output() -> Iterator[None]:
    """Keep the exporters' warnings, which are about themselves, to themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
