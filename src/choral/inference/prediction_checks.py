"""Checks of the labels and predictions that go into a ledger."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from choral.core.errors import DataError

NAN_HINT = "; does the model have NaN weights?"
_SUM_TOLERANCE = 1e-3


def check_labels(labels: NDArray[Any], task: str, classes: int, keys: pa.Array) -> None:
    """Raise DataError with the first sample whose label does not fit the task."""
    if task == "multiclass":
        valid, expected = (labels >= 0) & (labels < classes), f"0 to {classes - 1}"
    elif task == "multilabel":
        valid, expected = ((labels == 0) | (labels == 1)).all(axis=1), "0 or 1 for each"
    else:
        valid, expected = np.isfinite(labels).all(axis=1), "finite numbers"
    if not valid.all():
        row = int(np.flatnonzero(~valid)[0])
        raise DataError(f"sample {keys[row].as_py()!r}: label {labels[row]}, expected {expected}; evaluate again")


def check_predictions(values: NDArray[np.floating], task: str, name: str, keys: pa.Array) -> None:
    """Check the (n, classes) predictions of column `name`; DataError with the first sample whose do not fit the task."""
    valid = np.isfinite(values).all(axis=1)
    if task == "multiclass":
        with np.errstate(invalid="ignore"):  # infinities of both signs in one row
            sums = values.sum(axis=1, dtype=np.float64)
        valid &= (values >= 0).all(axis=1) & (np.abs(sums - 1) <= _SUM_TOLERANCE)
    elif task == "multilabel":
        valid &= ((values >= 0) & (values <= 1)).all(axis=1)
    if valid.all():
        return
    row = int(np.flatnonzero(~valid)[0])
    found = f"smallest {values[row].min():.6g}, largest {values[row].max():.6g}"
    if task == "multiclass":
        problem = f"is not a probability distribution (sum {sums[row]:.6g}, {found}"
    else:
        problem = f"is not {'probabilities' if task == 'multilabel' else 'finite numbers'} ({found}"
    raise DataError(
        f"sample {keys[row].as_py()!r}: {name} {problem}; {int((~valid).sum())} such samples in this block){NAN_HINT}"
    )
