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
from choral.deploy.bundle.engine import Input, Predicted
from choral.deploy.bundle.graph import EnsembleGraph
from choral.scoring.policy import PredictionPolicy

MOST_AT_ONCE = 64
"""Images times views that an engine asks about at once: memory stays bounded, whatever batches it is given."""
_EXAMPLES = 2  # of a batch: with one, an exporter would take the size for fixed


def program_of(graph: EnsembleGraph, inputs: Sequence[Input]) -> ExportedProgram:
    """Return the program of a graph, its batch dimension free and called "batch".

    Args:
        graph: on the CPU.
        inputs: its own, in their order.
    """
    sizes = [item.form.size for item in inputs]
    examples = tuple(torch.zeros(_EXAMPLES, size, size, 3, dtype=torch.uint8) for size in sizes)
    batch = Dim("batch", min=1, max=1 << 20)
    with torch.no_grad():
        return torch.export.export(graph, examples, dynamic_shapes=(tuple({0: batch} for _ in examples),))


def facts_of(name: str, answering: PredictionPolicy, inputs: Sequence[Input]) -> dict[str, str]:
    """Return what a file says of itself, as text: names of classes and members, the task, and how images are prepared."""
    prepared = [
        {
            "name": item.name,
            "size": item.form.size,
            "crop": item.form.crop.kind,
            "crop_pct": item.form.crop.crop_pct,
            "resize": item.form.resize,
        }
        for item in inputs
    ]
    return {
        "choral": __version__,
        "name": name,
        "task": answering.task,
        "classes": json.dumps(list(answering.classes), ensure_ascii=False),
        "members": json.dumps(list(answering.members), ensure_ascii=False),
        "inputs": json.dumps(prepared),
        "views": json.dumps(list(answering.views)),
    }


def images_at_once(facts: Mapping[str, str]) -> int:
    """Return how many images an engine asks about at once; KeyError or ValueError where a file does not say its views."""
    return max(1, MOST_AT_ONCE // len(json.loads(facts["views"])))


def asked(
    images: Sequence[NDArray[np.uint8]],
    at_once: int,
    run: Callable[[list[NDArray[np.uint8]]], tuple[NDArray[np.float32], NDArray[np.float32]]],
) -> Predicted:
    """Return what is said about a batch that is asked about in parts.

    Args:
        images: as of `Engine.ask`.
        at_once: images in a part.
        run: from a part to (B, C) what the members say together, and (B, M, C) what each says.
    """
    parts = [
        run([np.ascontiguousarray(values[start : start + at_once]) for values in images])
        for start in range(0, len(images[0]), at_once)
    ]
    combined, own = (np.concatenate(values) for values in zip(*parts, strict=True))
    return Predicted(np.ascontiguousarray(own.transpose(1, 0, 2)), combined)


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
def quiet() -> Iterator[None]:
    """Keep the exporters' warnings, which are about themselves, to themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
