"""Formats labels of packed samples as text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from choral.data.shards.index import LABEL_IDS, Index


def format_labels(index: Index, rows: Sequence[int] | NDArray[np.int64]) -> list[str]:
    """Return the labels of rows: a class, names of labels joined by ", ", or "TARGET VALUE" for each target."""
    dataset, selected = index.dataset, index.table.take(np.asarray(rows, np.int64))
    if dataset.task == "multiclass":
        return [dataset.classes[label] for label in selected["label"].to_pylist()]
    if dataset.task == "multilabel":
        return [
            ", ".join(dataset.classes[label] for label in labels) or "(none)"
            for labels in selected[LABEL_IDS].to_pylist()
        ]
    columns = [selected[name].to_pylist() for name in dataset.classes]
    return [
        ", ".join(f"{name} {value:.4g}" for name, value in zip(dataset.classes, values, strict=True))
        for values in zip(*columns, strict=True)
    ]
