"""Who is asked about which samples: everybody about all of a split, or members about what they were not trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from choral.config import ResampleConfig
from choral.data.loading.resampling import select
from choral.data.shards.index import Index
from choral.inference.trained_models import Voice


@dataclass(frozen=True)
class Question:
    """What one voice is asked.

    Attributes:
        column: of the ledger that its answers go into; a column holds the mean over its voices that were asked.
        voice: who answers.
        rows: (n,) which rows of the index it is asked about; None: all.
    """

    column: str
    voice: Voice
    rows: NDArray[np.bool_] | None = None


def about_all(voices: Sequence[Voice]) -> list[Question]:
    """Return the questions of an ordinary ledger: each voice is a column of its own, and asked about everything."""
    return [Question(voice.name, voice) for voice in voices]


def about_unseen(groups: Mapping[str, Sequence[Voice]], index: Index) -> list[Question]:
    """Return the questions of the held-out ledger: each voice is asked about the training samples that it never saw.

    Args:
        groups: the voices of each column.
        index: of the training split.

    Raises:
        DataError: as `select`.
    """
    unseen: dict[ResampleConfig, NDArray[np.bool_]] = {}
    questions = []
    for column, voices in groups.items():
        for voice in voices:
            resample = voice.config.data.resample
            if resample not in unseen:
                selection = select(resample, index)
                rows = np.zeros(len(index), dtype=np.bool_)
                if selection is not None:  # without folds and bags, everything was seen
                    rows[selection.held_out] = True
                unseen[resample] = rows
            questions.append(Question(column, voice, unseen[resample]))
    return questions


def can_be_answered(questions: Sequence[Question], samples: int) -> NDArray[np.bool_]:
    """Return for which rows of a split of so many samples every column has somebody to ask, (samples,)."""
    heard: dict[str, NDArray[np.bool_]] = {}
    for question in questions:
        everything = np.ones(samples, dtype=np.bool_)
        asked = everything if question.rows is None else question.rows
        heard[question.column] = heard.get(question.column, ~everything) | asked
    answered: NDArray[np.bool_] = np.logical_and.reduce(list(heard.values()))
    return answered


def rows_to_ask(questions: Sequence[Question], samples: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of a split of so many samples that can be answered, and the others.

    The first come in an order that brings rows with the same voices to ask together, so that batches are full; where all
    are asked about everything, in the order of the index.
    """
    rows = np.arange(samples)
    answered = can_be_answered(questions, samples)
    masks = [question.rows[answered] for question in questions if question.rows is not None]
    order = np.lexsort(masks) if masks else slice(None)
    return rows[answered][order], rows[~answered]
