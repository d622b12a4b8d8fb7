"""A prediction ledger as an Arrow table for analysis: labels by name, one column of predictions per member and view."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from choral.inference.ledger import Ledger


def prediction_table(ledger: Ledger) -> pa.Table:
    """Return all rows of a ledger, sorted by key.

    Returns:
        Columns `key` (string), `label`, and for each member and view "MEMBER/VIEW", fixed-size lists of float32:
        probabilities over the classes, a probability per label, or the predicted numbers. `label` is a dictionary-encoded
        class name for multiclass, a list of label names for multilabel, and a list of float32 for regression. The schema's
        metadata holds `classes`, the names of the columns' entries, separated by newlines.
    """
    columns = {"key": pa.array(ledger.keys, pa.string()), "label": _label_names(ledger)}
    for member in ledger.members:
        for view in ledger.views:
            columns[f"{member}/{view}"] = _fixed_size_lists(ledger.predictions(member, view))
    names = [name.replace("\n", " ") for name in ledger.classes]
    return pa.table(columns).replace_schema_metadata({"classes": "\n".join(names), "split": ledger.meta.split})


def _label_names(ledger: Ledger) -> pa.Array:
    labels, names = ledger.labels, list(ledger.classes)
    if ledger.meta.task == "multiclass":
        return pa.DictionaryArray.from_arrays(pa.array(labels, pa.int32()), pa.array(names, pa.string()))
    if ledger.meta.task == "multilabel":
        present = [[names[number] for number in np.flatnonzero(row)] for row in labels]
        return pa.array(present, pa.list_(pa.string()))
    return _fixed_size_lists(labels)


def _fixed_size_lists(values: NDArray[Any]) -> pa.Array:
    """Return (n, width) numbers as n lists of float32."""
    flat = pa.array(np.ascontiguousarray(values, np.float32).ravel(), pa.float32())
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
