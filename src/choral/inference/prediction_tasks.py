"""Who is asked about which samples: everybody about all of a split, or members about what they were not trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from choral.config import ResampleConfig
from choral.data.loading.resampling import select
from choral.data.shards.index import Index
from choral.inference.trained_models import TrainedModel


@dataclass(frozen=True)
class PredictionTask:
    """What one voice is asked.

    Attributes:
        column: of the ledger that its answers go into; a column holds the mean over its voices that were asked.
        voice: who answers.
        rows: (n,) which rows of the index it is asked about; None: all.
    """

    column: str
    model: TrainedModel
    rows: NDArray[np.bool_] | None = None


def all_rows_tasks(models: Sequence[TrainedModel]) -> list[PredictionTask]:
    """Return the questions of an ordinary ledger: each voice is a column of its own, and asked about everything."""
    return [PredictionTask(model.name, model) for model in models]


def held_out_tasks(groups: Mapping[str, Sequence[TrainedModel]], index: Index) -> list[PredictionTask]:
    """Return the questions of the held-out ledger: each voice is asked about the training samples that it never saw.

    Args:
        groups: the voices of each column.
        index: of the training split.

    Raises:
        DataError: as `select`.
    """
    unseen: dict[ResampleConfig, NDArray[np.bool_]] = {}
    tasks = []
    for column, models in groups.items():
        for model in models:
            resample = model.config.data.resample
            if resample not in unseen:
                selection = select(resample, index)
                rows = np.zeros(len(index), dtype=np.bool_)
                if selection is not None:  # without folds and bags, everything was seen
                    rows[selection.held_out] = True
                unseen[resample] = rows
            tasks.append(PredictionTask(column, model, unseen[resample]))
    return tasks


def predictable_rows(tasks: Sequence[PredictionTask], samples: int) -> NDArray[np.bool_]:
    """Return for which rows of a split of so many samples every column has somebody to ask, (samples,)."""
    heard: dict[str, NDArray[np.bool_]] = {}
    for task in tasks:
        everything = np.ones(samples, dtype=np.bool_)
        asked = everything if task.rows is None else task.rows
        heard[task.column] = heard.get(task.column, ~everything) | asked
    answered: NDArray[np.bool_] = np.logical_and.reduce(list(heard.values()))
    return answered


def rows_to_predict(tasks: Sequence[PredictionTask], samples: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of a split of so many samples that can be answered, and the others.

    The first come in an order that brings rows with the same voices to ask together, so that batches are full; where all
    are asked about everything, in the order of the index.
    """
    rows = np.arange(samples)
    answered = predictable_rows(tasks, samples)
    masks = [task.rows[answered] for task in tasks if task.rows is not None]
    order = np.lexsort(masks) if masks else slice(None)
    return rows[answered][order], rows[~answered]
