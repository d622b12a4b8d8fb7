"""Labels of packed samples as text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from choral.data.shards.index import LABEL_IDS, Index


def label_texts(index: Index, rows: Sequence[int] | NDArray[np.int64]) -> list[str]:
    """Return the labels of rows: a class, names of labels joined by ", ", or "target number" of each, as they are packed."""
    dataset, taken = index.dataset, index.table.take(np.asarray(rows, np.int64))
    if dataset.task == "multiclass":
        return [dataset.classes[number] for number in taken["label"].to_pylist()]
    if dataset.task == "multilabel":
        return [
            ", ".join(dataset.classes[number] for number in own) or "(none)" for own in taken[LABEL_IDS].to_pylist()
        ]
    columns = [taken[name].to_pylist() for name in dataset.classes]
    return [
        ", ".join(f"{name} {value:.4g}" for name, value in zip(dataset.classes, values, strict=True))
        for values in zip(*columns, strict=True)
    ]
