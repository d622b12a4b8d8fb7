"""Finds probable label errors by confident learning, from predictions of networks that did not train on the labels.

Northcutt, Jiang and Chuang 2021, "Confident learning: estimating uncertainty in dataset labels",
https://doi.org/10.1613/jair.1.12125, as implemented by cleanlab. A network that has learned a wrong label repeats it, so only
out-of-sample predictions count: for the training split those out of fold or out of bag, for other splits their evaluation.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from choral.config import Config, held_out_groups
from choral.ensembles.rules import soft_vote
from choral.inference.evaluation_plan import HELD_OUT, same_weights
from choral.inference.ledger import Ledger
from choral.runs.run_dir import RunDir
from choral.scoring.predictor import Predictor

MAX_SUSPECTS = 5000
"""Suspects that are listed; all are counted."""
_MAX_DEVIATIONS = 3.5
"""Robust standard deviations: the threshold of Iglewicz and Hoaglin 1993, "How to detect and handle outliers"."""
_MAD_TO_STD = 1.4826  # median absolute deviation to standard deviation, for a normal distribution
_MIN_REGRESSION_SAMPLES = 30
_CHOSE_CHECKPOINT = (
    "The networks did not train on these labels, but the labels chose the checkpoint, which makes errors a little harder to "
    "find."
)
_UNSEEN = "The networks did not train on these labels, and the labels chose no checkpoint."
_OUT_OF_FOLD = "Each sample is judged by networks trained without it (out of fold or out of bag)."
_SINGLE_SAMPLE = " The label of a class with one sample is never suspected."


@dataclass(frozen=True)
class SuspectLabel:
    """A label that is probably wrong.

    Attributes:
        split, key: of the sample.
        label: its label: a class, names of labels joined by ", ", or a target's value.
        suggested: what the predictions suggest instead.
        quality: of the label, 0 (surely wrong) to 1.
        label_score, suggested_score: probability of the label and of the suggestion; regression: the two values.
    """

    split: str
    key: str
    label: str
    suggested: str
    quality: float
    label_score: float
    suggested_score: float


@dataclass(frozen=True)
class LabelSource:
    """Out-of-sample predictions that labels were checked against.

    Attributes:
        split: whose labels were checked.
        source: "held-out": out of fold or out of bag; "evaluation": of a split that the networks did not train on.
        n: samples that were checked.
        found: suspected labels, possibly more than are listed.
        expected_share: of wrong labels, estimated from the joint distribution of given and true labels; None: no estimate.
        note: what the figures rest on, in a sentence or two.
    """

    split: str
    source: str
    n: int
    found: int
    expected_share: float | None
    note: str


@dataclass(frozen=True)
class LabelErrors:
    """Probable label errors.

    Attributes:
        suspects: those listed, lowest quality first.
        sources: one a split.
        note: what could not be checked, and what to do about it; "" where everything was.
    """

    suspects: tuple[SuspectLabel, ...]
    sources: tuple[LabelSource, ...]
    note: str


@dataclass(frozen=True)
class _Predicted:
    """Labels and out-of-sample predictions of a split: N samples, C outputs."""

    split: str
    keys: Sequence[str]
    labels: NDArray[Any]
    predictions: NDArray[np.float32]  # (N, C)
    names: Sequence[str]  # of the outputs


_Found = tuple[list[SuspectLabel], float | None, str]
"""Suspects, the expected share of wrong labels, and a note with a leading space."""


def find_label_errors(folder: RunDir, config: Config, predictor: Predictor) -> LabelErrors:
    """Return the probable label errors of the training split and of the analysed split.

    The training split is checked where there are held-out predictions. Its ordinary predictions say nothing about its
    labels, since the networks trained on them.

    Args:
        folder, config: of the run.
        predictor: of the analysed split.
    """
    ledger, task = predictor.ledger, predictor.ledger.meta.task
    checked: list[tuple[LabelSource, list[SuspectLabel]]] = []
    held_out, notes = _open_held_out(folder, config, ledger)
    if held_out is not None:
        predictions = _mean_predictions(held_out)
        checked.append(_check(held_out, predictions, config.data.train_split, "held-out", _OUT_OF_FOLD))
    split = ledger.meta.split
    if split == config.data.train_split:
        notes.append(f"Predictions on {split} say nothing about its labels: the networks trained on them.")
    elif split != HELD_OUT:
        predictions = predictor.predictions
        if task != "regression" and not predictor.gives_probabilities:
            predictions = _mean_predictions(ledger)
        note = _CHOSE_CHECKPOINT if split == config.data.val_split else _UNSEEN
        checked.append(_check(ledger, predictions, split, "evaluation", note))
    suspects = sorted((one for _, found in checked for one in found), key=lambda one: (one.quality, one.split, one.key))
    return LabelErrors(tuple(suspects[:MAX_SUSPECTS]), tuple(source for source, _ in checked), " ".join(notes))


def _open_held_out(folder: RunDir, config: Config, ledger: Ledger) -> tuple[Ledger | None, list[str]]:
    """Return the out-of-sample predictions of the training split, or how to get them."""
    path = folder.predictions / f"{HELD_OUT}.parquet"
    train = config.data.train_split
    not_checked = f"Labels of {train} were not checked"
    if not path.is_file():
        if held_out_groups(config):
            return None, [f"{not_checked}: run `choral evaluate {folder.name}` to write {path.name}."]
        return None, [
            f"{not_checked}: every network trained on them. Train with ensemble.folds=5 (or ensemble.bagging) and evaluate: "
            "each sample is then judged by networks trained without it."
        ]
    held_out = Ledger.open(path)
    if held_out.meta.dataset != ledger.meta.dataset:
        return None, [f"{not_checked}: {path.name} was made from other data than these predictions."]
    stale = ledger.meta.split != HELD_OUT and not same_weights(held_out.meta, ledger.meta)
    if stale or held_out.classes != ledger.classes or not len(held_out):
        return None, [f"{not_checked}: {path.name} is from other weights; run `choral evaluate {folder.name}`."]
    skipped = held_out.meta.skipped
    return held_out, [
        f"Every network trained on {skipped} samples of {train}; these were not checked."
    ] if skipped else []


def _mean_predictions(ledger: Ledger) -> NDArray[np.float32]:
    """Return the (N, outputs) mean over members, with test-time views averaged where there are any."""
    view = next(name for name in ("tta", "identity", ledger.views[0]) if name in ledger.views)
    return np.concatenate([soft_vote(block) for block in ledger.blocks(view)])


def _check(
    ledger: Ledger, predictions: NDArray[np.float32], split: str, source: str, note: str
) -> tuple[LabelSource, list[SuspectLabel]]:
    find = {"multilabel": _find_multilabel, "regression": _find_regression}.get(ledger.meta.task, _find_multiclass)
    suspects, share, more = find(_Predicted(split, ledger.keys, ledger.labels, predictions, ledger.classes))
    return LabelSource(split, source, len(ledger), len(suspects), share, f"{note}{more}"), suspects[:MAX_SUSPECTS]


def _find_multiclass(data: _Predicted) -> _Found:
    """Return suspects by the joint distribution of given and true classes, lowest quality first."""
    present = np.unique(data.labels)  # cleanlab expects a sample of each class
    if len(present) < 2:
        return [], None, " All samples have the same class."
    from cleanlab.count import num_label_issues  # takes seconds to import
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    given = np.searchsorted(present, data.labels)
    probabilities = np.maximum(data.predictions[:, present].astype(np.float64), 1e-12)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    with _ignore_single_sample_warnings():
        issues = np.asarray(
            find_label_issues(given, probabilities, filter_by="prune_by_noise_rate", n_jobs=1), dtype=np.bool_
        )
    quality = np.asarray(get_label_quality_scores(given, probabilities, method="self_confidence"))
    share = float(num_label_issues(given, probabilities)) / len(data.keys)
    suspects = []
    for row in _sort_by_quality(issues, quality):
        best = int(probabilities[row].argmax())
        suspects.append(
            SuspectLabel(
                split=data.split,
                key=data.keys[row],
                label=data.names[int(present[given[row]])],
                suggested=data.names[int(present[best])],
                quality=float(quality[row]),
                label_score=float(probabilities[row, given[row]]),
                suggested_score=float(probabilities[row, best]),
            )
        )
    return suspects, share, _SINGLE_SAMPLE if (np.bincount(given) == 1).any() else ""


def _find_multilabel(data: _Predicted) -> _Found:
    """Return the samples with at least one label that is probably missing or probably wrong."""
    has_label = data.labels > 0
    varies = np.asarray(has_label.any(axis=0) & ~has_label.all(axis=0), np.bool_)  # cleanlab expects samples of both
    if not varies.any():
        return [], None, " No label is present in some samples and absent in others."
    from cleanlab.multilabel_classification import get_label_quality_scores
    from cleanlab.multilabel_classification.filter import find_label_issues

    columns = np.flatnonzero(varies)
    columns = np.repeat(columns, 2) if len(columns) == 1 else columns  # cleanlab expects two labels
    given = has_label[:, columns]
    label_ids = [np.flatnonzero(row).tolist() for row in given]
    probabilities = np.clip(data.predictions[:, columns].astype(np.float64), 1e-6, 1 - 1e-6)
    with _ignore_single_sample_warnings():
        issues = np.asarray(find_label_issues(label_ids, probabilities, n_jobs=1), dtype=np.bool_)
    quality = np.asarray(get_label_quality_scores(label_ids, probabilities))
    suspects = []
    for row in _sort_by_quality(issues, quality):
        worst = float(np.where(given[row], probabilities[row], 1 - probabilities[row]).min())
        suggested = has_label[row].copy()
        suggested[columns] = probabilities[row] > 0.5
        suspects.append(
            SuspectLabel(
                split=data.split,
                key=data.keys[row],
                label=_join_labels(data.names, has_label[row]),
                suggested=_join_labels(data.names, suggested),
                quality=float(quality[row]),
                label_score=worst,
                suggested_score=1 - worst,
            )
        )
    note = " Probabilities are those of the most doubtful label."
    if not varies.all():
        note += f" Labels that all samples have, or none, are never suspected: {_join_labels(data.names, ~varies)}."
    return suspects, None, note


def _find_regression(data: _Predicted) -> _Found:
    """Return the samples with a target whose error is a robust outlier.

    cleanlab ranks values but sets no threshold, and its CleanLearning trains models of its own. So the threshold here is
    that of robust outlier detection, and the ranking is cleanlab's.
    """
    if len(data.keys) < _MIN_REGRESSION_SAMPLES:
        return [], None, f" Targets are checked from {_MIN_REGRESSION_SAMPLES} samples on."
    from cleanlab.regression.rank import get_label_quality_scores

    suspects: list[SuspectLabel] = []
    for target, name in enumerate(data.names):
        values = data.labels[:, target].astype(np.float64)
        predicted = data.predictions[:, target].astype(np.float64)
        errors = values - predicted
        deviation = np.abs(errors - np.median(errors))
        scale = _MAD_TO_STD * float(np.median(deviation))
        if scale <= 0:
            continue
        quality = np.asarray(get_label_quality_scores(values / scale, predicted / scale))
        suspects += [
            SuspectLabel(
                split=data.split,
                key=data.keys[row],
                label=f"{name} {values[row]:.4g}",
                suggested=f"{name} {predicted[row]:.4g}",
                quality=float(quality[row]),
                label_score=float(values[row]),
                suggested_score=float(predicted[row]),
            )
            for row in np.flatnonzero(deviation > _MAX_DEVIATIONS * scale).tolist()
        ]
    suspects.sort(key=lambda one: (one.quality, one.key))
    note = f" A value is suspected if its error is more than {_MAX_DEVIATIONS:g} robust standard deviations from the median."
    return suspects, None, note


def _sort_by_quality(issues: NDArray[np.bool_], quality: NDArray[np.float64]) -> list[int]:
    rows = np.flatnonzero(issues)
    ordered: list[int] = rows[np.argsort(quality[rows], kind="stable")].tolist()
    return ordered


@contextlib.contextmanager
def _ignore_single_sample_warnings() -> Iterator[None]:
    """Silence cleanlab's warning for each class with one sample; the note says it once."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="May not flag all label issues in class", category=UserWarning)
        yield


def _join_labels(names: Sequence[str], mask: NDArray[np.bool_]) -> str:
    return ", ".join(name for name, present in zip(names, mask, strict=True) if present) or "(none)"
