"""Which model predicts which samples: every model a whole split, or each the training samples that it was not trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from choral.config import ResampleConfig
from choral.data.loading.resampling import select_rows
from choral.data.shards.index import Index
from choral.inference.trained_model import TrainedModel


@dataclass(frozen=True)
class PredictionTask:
    """A model, the rows that it predicts, and the ledger column that they go into.

    Attributes:
        column: of the ledger. It holds, for each row, the mean over the models that predict the row for this column.
        model: that predicts.
        rows: (n,) which rows of the index it predicts; None: all.
    """

    column: str
    model: TrainedModel
    rows: NDArray[np.bool_] | None = None


def all_rows_tasks(models: Sequence[TrainedModel]) -> list[PredictionTask]:
    """Return the tasks of an ordinary ledger: each model has a column of its own and predicts all rows."""
    return [PredictionTask(model.name, model) for model in models]


def held_out_tasks(groups: Mapping[str, Sequence[TrainedModel]], index: Index) -> list[PredictionTask]:
    """Return the tasks of the held-out ledger: each model predicts the training samples that it was not trained on.

    Args:
        groups: column to its models.
        index: of the training split.

    Raises:
        DataError: as `select_rows`.
    """
    held_out: dict[ResampleConfig, NDArray[np.bool_]] = {}
    tasks = []
    for column, models in groups.items():
        for model in models:
            resample = model.config.data.resample
            if resample not in held_out:
                selection = select_rows(resample, index)
                rows = np.zeros(len(index), dtype=np.bool_)
                if selection is not None:  # without folds or bags, the model was trained on all samples
                    rows[selection.held_out] = True
                held_out[resample] = rows
            tasks.append(PredictionTask(column, model, held_out[resample]))
    return tasks


def predictable_rows(tasks: Sequence[PredictionTask], samples: int) -> NDArray[np.bool_]:
    """Return (samples,) which rows of a split every column has at least one model for."""
    covered: dict[str, NDArray[np.bool_]] = {}
    for task in tasks:
        rows = np.ones(samples, dtype=np.bool_) if task.rows is None else task.rows
        covered[task.column] = covered.get(task.column, np.zeros(samples, dtype=np.bool_)) | rows
    predictable: NDArray[np.bool_] = np.logical_and.reduce(list(covered.values()))
    return predictable


def rows_to_predict(tasks: Sequence[PredictionTask], samples: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the predictable rows of a split of `samples` rows, and the others.

    Rows that the same models predict stand together in the first array, so that batches are full. If every model predicts
    all rows, they are in the order of the index.
    """
    rows = np.arange(samples)
    predictable = predictable_rows(tasks, samples)
    masks = [task.rows[predictable] for task in tasks if task.rows is not None]
    order = np.lexsort(masks) if masks else slice(None)
    return rows[predictable][order], rows[~predictable]
