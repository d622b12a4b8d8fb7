"""One row a sample: its label, its prediction, the members' predictions, confidence and loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from choral.ensembles.member_predictions import LEARNED
from choral.ensembles.score_rows import scored_views
from choral.metrics.multilabel_metrics import DEFAULT_THRESHOLD
from choral.metrics.per_sample import log_losses, multilabel_log_losses, top_class
from choral.metrics.regression_metrics import compute_target_scales
from choral.scoring.predictor import ANSWER, COMBINED, Predictor

TOP = 3


@dataclass(frozen=True)
class SliceColumn:
    """The samples grouped by one column of their metadata.

    Attributes:
        values: names of its slices.
        codes: (N,) int16, the slice of each sample.
    """

    values: tuple[str, ...]
    codes: NDArray[np.int16]


@dataclass(frozen=True)
class SampleTable:
    """All N samples of the split, in the order of the ledger, which is that of their keys.

    M is the number of members of the run, L of labels of a multilabel task, T of targets of a regression.

    Attributes:
        keys: of the samples.
        labels: multiclass (N,) int32; multilabel (N, L) bool; regression (N, T) float32.
        predicted: the predictions, shaped like `labels`.
        confidence: (N,) float32, higher is more confident. Multiclass: the probability of the predicted class. Multilabel:
            the mean over labels of the probability of the predicted value. Regression: minus the standard deviation of the
            members, in standard deviations of each target, averaged over targets; all 0 with one member.
        loss: (N,) float32. Log loss in nats (multilabel: of a label); regression: absolute error in standard deviations of
            each target, averaged over targets, as in `choral.ensembles.worst_samples`. A hard vote: of its vote shares.
        right: (N,) bool, whether the class, or all labels, are correct; regression: all True.
        votes: prediction of each member. Multiclass (N, M) int32; multilabel (N, M, L) bool; regression (N, M, T) float32.
        vote_confidence: (N, M) float32, defined as `confidence`; regression: (N, 0).
        top: (N, K) int32, K at most 3. Multiclass: the most probable classes, best first. Multilabel: the labels with the
            largest loss. Regression: (N, 0).
        top_probability: (N, K) float32, their probabilities.
        slices: by column.
    """

    keys: list[str]
    labels: NDArray[Any]
    predicted: NDArray[Any]
    confidence: NDArray[np.float32]
    loss: NDArray[np.float32]
    right: NDArray[np.bool_]
    votes: NDArray[Any]
    vote_confidence: NDArray[np.float32]
    top: NDArray[np.int32]
    top_probability: NDArray[np.float32]
    slices: dict[str, SliceColumn]

    def __len__(self) -> int:
        """Return N."""
        return len(self.keys)


def build_sample_table(predictor: Predictor, slices: dict[str, SliceColumn]) -> SampleTable:
    """Return the samples of a predictor's ledger, in its order.

    Args:
        predictor: whose predictions are analysed; its members' votes are those under the predictor's view.
        slices: of the samples, see `choral.analysis.groups.build_slices`.
    """
    task = predictor.ledger.meta.task
    build = {"multilabel": _build_multilabel, "regression": _build_regression}.get(task, _build_multiclass)
    return build(predictor, slices)


def _build_multiclass(predictor: Predictor, slices: dict[str, SliceColumn]) -> SampleTable:
    ledger, probabilities = predictor.ledger, predictor.predictions
    labels, predicted = ledger.labels, np.asarray(predictor.decisions)
    rows = np.arange(len(ledger))
    votes = [(top_class(block), block.max(axis=-1)) for block in _member_blocks(predictor)]
    count = min(TOP, probabilities.shape[1])
    best = np.argpartition(-probabilities, count - 1, axis=1)[:, :count]
    order = np.lexsort((best, -np.take_along_axis(probabilities, best, axis=1)))
    top = np.take_along_axis(best, order, axis=1)
    return SampleTable(
        keys=ledger.keys,
        labels=labels.astype(np.int32),
        predicted=predicted.astype(np.int32),
        confidence=probabilities[rows, predicted],
        loss=log_losses(labels, probabilities).astype(np.float32),
        right=predicted == labels,
        votes=np.concatenate([classes.T for classes, _ in votes]).astype(np.int32),
        vote_confidence=np.concatenate([confidence.T for _, confidence in votes]).astype(np.float32),
        top=top.astype(np.int32),
        top_probability=np.take_along_axis(probabilities, top, axis=1),
        slices=slices,
    )


def _build_multilabel(predictor: Predictor, slices: dict[str, SliceColumn]) -> SampleTable:
    ledger, probabilities = predictor.ledger, predictor.predictions
    labels, predicted = ledger.labels > 0, np.asarray(predictor.decisions)
    votes = [
        (block > DEFAULT_THRESHOLD, np.maximum(block, 1 - block).mean(axis=-1)) for block in _member_blocks(predictor)
    ]
    true_probability = np.where(labels, probabilities, 1 - probabilities)
    top = np.argsort(true_probability, axis=1, kind="stable")[:, :TOP]
    confidence = np.where(predicted, probabilities, 1 - probabilities).mean(axis=1, dtype=np.float64)
    return SampleTable(
        keys=ledger.keys,
        labels=labels,
        predicted=predicted,
        confidence=confidence.astype(np.float32),
        loss=multilabel_log_losses(labels, probabilities).astype(np.float32),
        right=(labels == predicted).all(axis=1),
        votes=np.concatenate([members.swapaxes(0, 1) for members, _ in votes]),
        vote_confidence=np.concatenate([share.T for _, share in votes]).astype(np.float32),
        top=top.astype(np.int32),
        top_probability=np.take_along_axis(probabilities, top, axis=1),
        slices=slices,
    )


def _build_regression(predictor: Predictor, slices: dict[str, SliceColumn]) -> SampleTable:
    ledger, predicted = predictor.ledger, predictor.predictions
    scale = compute_target_scales(ledger.labels)
    votes = np.concatenate([block.swapaxes(0, 1) for block in _member_blocks(predictor)])
    spread = (votes.astype(np.float64).std(axis=1) / scale).mean(axis=1)
    error = np.abs(predicted.astype(np.float64) - ledger.labels) / scale
    empty = len(ledger), 0
    return SampleTable(
        keys=ledger.keys,
        labels=ledger.labels,
        predicted=predicted,
        confidence=(0 - spread).astype(np.float32),
        loss=error.mean(axis=1).astype(np.float32),
        right=np.ones(len(ledger), dtype=np.bool_),
        votes=votes,
        vote_confidence=np.empty(empty, np.float32),
        top=np.empty(empty, np.int32),
        top_probability=np.empty(empty, np.float32),
        slices=slices,
    )


def _member_blocks(predictor: Predictor) -> Iterator[NDArray[np.float32]]:
    """Yield (members, n, outputs) float32 of consecutive samples, under the predictor's view.

    A combination, or a rule that learned weights of views, uses several views; the members' mean over views comes closest.
    """
    views = {suffix: view for view, suffix in scored_views(predictor.ledger)}
    uses_several = (
        predictor.name == ANSWER or predictor.name.startswith(COMBINED) or predictor.name.endswith(f"+{LEARNED}")
    )
    suffix = next((one for one in views if one and predictor.name.endswith(one)), "")
    view = list(views.values())[-1] if uses_several else views.get(suffix, next(iter(views.values())))
    yield from predictor.ledger.blocks(view)
