"""The samples of a split one by one: what each is, what was said of it, by whom, how surely, and how wrong that was."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from choral.analysis.results import SampleTable, Slicing
from choral.ensembles.member_predictions import LEARNED
from choral.ensembles.score_rows import scored_views
from choral.metrics.multilabel_metrics import HALF
from choral.metrics.per_sample import label_log_losses, log_losses, top_class
from choral.metrics.regression_metrics import deviations
from choral.scoring.predictor import ANSWER, COMBINED, Predictor

TOP = 3
_Votes = tuple[NDArray[np.generic], NDArray[np.float32]]


def sample_table(predictor: Predictor, slices: dict[str, Slicing]) -> SampleTable:
    """Return all samples of a predictor's ledger, in its order.

    Args:
        predictor: that is judged; its members speak for themselves under the view that it is of.
        slices: of the samples, see `choral.analysis.groups.slicings`.
    """
    task = predictor.ledger.meta.task
    return {"multilabel": _labels, "regression": _numbers}.get(task, _classes)(predictor, slices)


def _classes(predictor: Predictor, slices: dict[str, Slicing]) -> SampleTable:
    ledger, said = predictor.ledger, predictor.predictions
    labels, answers = ledger.labels, np.asarray(predictor.answers)
    rows = np.arange(len(ledger))
    blocks = [(top_class(block), block.max(axis=-1)) for block in _by_member(predictor)]
    count = min(TOP, said.shape[1])
    best = np.argpartition(-said, count - 1, axis=1)[:, :count]
    order = np.lexsort((best, -np.take_along_axis(said, best, axis=1)))
    top = np.take_along_axis(best, order, axis=1)
    return SampleTable(
        keys=ledger.keys,
        labels=labels.astype(np.int32),
        predicted=answers.astype(np.int32),
        confidence=said[rows, answers],
        loss=log_losses(labels, said).astype(np.float32),
        right=answers == labels,
        votes=np.concatenate([votes.T for votes, _ in blocks]).astype(np.int32),
        vote_confidence=np.concatenate([sure.T for _, sure in blocks]).astype(np.float32),
        top=top.astype(np.int32),
        top_probability=np.take_along_axis(said, top, axis=1),
        slices=slices,
    )


def _labels(predictor: Predictor, slices: dict[str, Slicing]) -> SampleTable:
    ledger, said = predictor.ledger, predictor.predictions
    labels, answers = ledger.labels > 0, np.asarray(predictor.answers)
    blocks = [(block > HALF, np.maximum(block, 1 - block).mean(axis=-1)) for block in _by_member(predictor)]
    of_truth = np.where(labels, said, 1 - said)
    top = np.argsort(of_truth, axis=1, kind="stable")[:, :TOP]
    return SampleTable(
        keys=ledger.keys,
        labels=labels,
        predicted=answers,
        confidence=np.where(answers, said, 1 - said).mean(axis=1, dtype=np.float64).astype(np.float32),
        loss=label_log_losses(labels, said).astype(np.float32),
        right=(labels == answers).all(axis=1),
        votes=np.concatenate([votes.swapaxes(0, 1) for votes, _ in blocks]),
        vote_confidence=np.concatenate([sure.T for _, sure in blocks]).astype(np.float32),
        top=top.astype(np.int32),
        top_probability=np.take_along_axis(said, top, axis=1),
        slices=slices,
    )


def _numbers(predictor: Predictor, slices: dict[str, Slicing]) -> SampleTable:
    ledger, said = predictor.ledger, predictor.predictions
    scale = deviations(ledger.labels)
    votes = np.concatenate([block.swapaxes(0, 1) for block in _by_member(predictor)])
    spread = (votes.astype(np.float64).std(axis=1) / scale).mean(axis=1)
    error = np.abs(said.astype(np.float64) - ledger.labels) / scale
    empty = len(ledger), 0
    return SampleTable(
        keys=ledger.keys,
        labels=ledger.labels,
        predicted=said,
        confidence=(0 - spread).astype(np.float32),
        loss=error.mean(axis=1).astype(np.float32),
        right=np.ones(len(ledger), dtype=np.bool_),
        votes=votes,
        vote_confidence=np.empty(empty, np.float32),
        top=np.empty(empty, np.int32),
        top_probability=np.empty(empty, np.float32),
        slices=slices,
    )


def _by_member(predictor: Predictor) -> Iterator[NDArray[np.float32]]:
    """Yield (members, n, outputs) float32 of consecutive samples, under the view that the predictor is of.

    What is combined, or has learned which views count, is of several; the mean over views is the nearest that a member has.
    """
    views = {suffix: view for view, suffix in scored_views(predictor.ledger)}
    several = predictor.name == ANSWER or predictor.name.startswith(COMBINED) or predictor.name.endswith(f"+{LEARNED}")
    suffix = next((own for own in views if own and predictor.name.endswith(own)), "")
    view = list(views.values())[-1] if several else views.get(suffix, next(iter(views.values())))
    yield from predictor.ledger.blocks(view)
