"""Labels that are probably wrong, as predictions say of networks that did not learn from them.

Confident learning: Northcutt, Jiang and Chuang 2021, "Confident learning: estimating uncertainty in dataset labels",
https://doi.org/10.1613/jair.1.12125, as cleanlab has it. A network that has learned a wrong label repeats it, so only
predictions count that were made out of sample: of the training split those out of fold or out of bag, of others their own.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from choral.analysis.results import LabelErrors, LabelSource, Suspect
from choral.config import Config, held_out_groups
from choral.ensembles.rules import soft
from choral.inference.evaluation_plan import HELD_OUT, same_weights
from choral.inference.ledger import Ledger
from choral.runs.run_dir import RunDir
from choral.scoring.predictor import Predictor

LISTED = 5000
"""Suspects, at most; more are counted."""
_FAR = 3.5
"""Robust standard deviations: where Iglewicz and Hoaglin 1993, "How to detect and handle outliers", draw the line."""
_MAD = 1.4826  # times the median absolute deviation is the standard deviation of a normal distribution
_LEAST = 30  # samples: of fewer, nothing is said of the errors of numbers
_CHOSE = "These labels were not learned from, but chose the checkpoint, which makes errors a little harder to see."
_UNSEEN = "These labels were neither learned from nor chosen by."
_SINGLE = " The label of a class with one sample is not doubted."
_OF_GROUPS = "Each sample is judged by networks that were trained without it, out of fold or out of bag."


def label_errors_of(folder: RunDir, config: Config, predictor: Predictor) -> LabelErrors:
    """Return the probable label errors of the training split, where there are held-out predictions, and of the one judged.

    Args:
        folder, config: of the run.
        predictor: whose split is looked at, too, unless it is the training split itself, whose labels it has learned.
    """
    ledger, task = predictor.ledger, predictor.ledger.meta.task
    found: list[tuple[LabelSource, list[Suspect]]] = []
    held_out, notes = _held_out(folder, config, ledger)
    if held_out is not None:
        said = _mean_of(held_out)
        found.append(_looked_at(held_out, said, config.data.train_split, "held-out", _OF_GROUPS))
    split = ledger.meta.split
    if split == config.data.train_split:
        notes.append(f"Predictions of split {split} itself say nothing of its labels: they were learned from them.")
    elif split != HELD_OUT:
        said = predictor.predictions
        if task != "regression" and not predictor.gives_probabilities:
            said = _mean_of(ledger)
        note = _CHOSE if split == config.data.val_split else _UNSEEN
        found.append(_looked_at(ledger, said, split, "evaluation", note))
    suspects = sorted((one for _, own in found for one in own), key=lambda one: (one.quality, one.split, one.key))
    return LabelErrors(tuple(suspects[:LISTED]), tuple(source for source, _ in found), " ".join(notes))


def _held_out(folder: RunDir, config: Config, ledger: Ledger) -> tuple[Ledger | None, list[str]]:
    """Return the out-of-sample predictions of the training split, or what to do to have some."""
    path = folder.predictions / f"{HELD_OUT}.parquet"
    train = config.data.train_split
    if not path.is_file():
        if held_out_groups(config):
            return None, [f"Labels of {train} were not looked at: run `choral evaluate {folder.name}` for {path.name}."]
        return None, [
            f"Labels of {train} were not looked at: every network has learned from them. Train with ensemble.folds=5 (or "
            "ensemble.bagging) and evaluate: each sample is then judged by networks that have not seen it."
        ]
    found = Ledger.open(path)
    if found.meta.dataset != ledger.meta.dataset:
        return None, [f"Labels of {train} were not looked at: {path.name} is about other data than these predictions."]
    stale = ledger.meta.split != HELD_OUT and not same_weights(found.meta, ledger.meta)
    if stale or found.classes != ledger.classes or not len(found):
        return None, [
            f"Labels of {train} were not looked at: {path.name} is of other weights; run `choral evaluate {folder.name}`."
        ]
    unseen = [f"{found.meta.skipped} samples of {train} have been seen by everybody."] if found.meta.skipped else []
    return found, unseen


def _mean_of(ledger: Ledger) -> NDArray[np.float32]:
    """Return the (N, outputs) mean over members, of the averaged views where there are some."""
    view = next(name for name in ("tta", "identity", ledger.views[0]) if name in ledger.views)
    return np.concatenate([soft(block) for block in ledger.blocks(view)])


def _looked_at(
    ledger: Ledger, said: NDArray[np.float32], split: str, source: str, note: str
) -> tuple[LabelSource, list[Suspect]]:
    judge = {"multilabel": _of_labels, "regression": _of_numbers}.get(ledger.meta.task, _of_classes)
    suspects, share, more = judge(ledger.keys, ledger.labels, said, ledger.classes, split)
    return LabelSource(split, source, len(ledger), len(suspects), share, f"{note}{more}"), suspects[:LISTED]


_Judged = tuple[list[Suspect], float | None, str]


def _of_classes(
    keys: Sequence[str], labels: NDArray[Any], said: NDArray[np.float32], classes: Sequence[str], split: str
) -> _Judged:
    """Return suspects by the joint distribution of given and true classes, lowest quality first."""
    there = np.unique(labels)  # cleanlab expects a sample of each class
    if len(there) < 2:
        return [], None, " All have one class."
    from cleanlab.count import num_label_issues  # seconds to import, so only here
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    given = np.searchsorted(there, labels)
    own = np.maximum(said[:, there].astype(np.float64), 1e-12)
    own /= own.sum(axis=1, keepdims=True)
    with _quietly():
        issues = np.asarray(find_label_issues(given, own, filter_by="prune_by_noise_rate", n_jobs=1), dtype=np.bool_)
    quality = np.asarray(get_label_quality_scores(given, own, method="self_confidence"))
    share = float(num_label_issues(given, own)) / len(keys)
    rows = np.flatnonzero(issues)
    rows = rows[np.argsort(quality[rows], kind="stable")]
    suspects = []
    for row in rows.tolist():
        best = int(own[row].argmax())
        suspects.append(
            Suspect(
                split=split,
                key=keys[row],
                label=classes[int(there[given[row]])],
                suggested=classes[int(there[best])],
                quality=float(quality[row]),
                own=float(own[row, given[row]]),
                other=float(own[row, best]),
            )
        )
    return suspects, share, _SINGLE if (np.bincount(given) == 1).any() else ""


def _of_labels(
    keys: Sequence[str], labels: NDArray[Any], said: NDArray[np.float32], classes: Sequence[str], split: str
) -> _Judged:
    """Return samples of which at least one label is suspected to be there, or to be missing, wrongly."""
    applies = labels > 0
    varied = np.asarray(applies.any(axis=0) & ~applies.all(axis=0), np.bool_)  # cleanlab expects samples of both
    if not varied.any():
        return [], None, " No label is there in some samples and missing in others."
    from cleanlab.multilabel_classification import get_label_quality_scores
    from cleanlab.multilabel_classification.filter import find_label_issues

    columns = np.flatnonzero(varied)
    columns = np.repeat(columns, 2) if len(columns) == 1 else columns  # cleanlab expects two labels
    given = applies[:, columns]
    lists = [np.flatnonzero(row).tolist() for row in given]
    own = np.clip(said[:, columns].astype(np.float64), 1e-6, 1 - 1e-6)
    with _quietly():
        issues = np.asarray(find_label_issues(lists, own, n_jobs=1), dtype=np.bool_)
    quality = np.asarray(get_label_quality_scores(lists, own))
    rows = np.flatnonzero(issues)
    rows = rows[np.argsort(quality[rows], kind="stable")]
    suspects = []
    for row in rows.tolist():
        worst = float(np.where(given[row], own[row], 1 - own[row]).min())
        suggested = applies[row].copy()
        suggested[columns] = own[row] > 0.5
        suspects.append(
            Suspect(
                split=split,
                key=keys[row],
                label=_named(classes, applies[row]),
                suggested=_named(classes, suggested),
                quality=float(quality[row]),
                own=worst,
                other=1 - worst,
            )
        )
    more = " Probabilities are those of the label that is doubted most."
    if not varied.all():
        more += f" Labels that all samples have, or none, are not doubted: {_named(classes, ~varied)}."
    return suspects, None, more


def _of_numbers(
    keys: Sequence[str], labels: NDArray[Any], said: NDArray[np.float32], targets: Sequence[str], split: str
) -> _Judged:
    """Return samples one of whose numbers is far from what is predicted, as measured by the usual error.

    cleanlab ranks numbers, but draws no line, and its CleanLearning trains models of its own; the line here is that of
    robust outliers, the ranking cleanlab's.
    """
    if len(keys) < _LEAST:
        return [], None, f" With fewer than {_LEAST} samples, nothing is said of numbers."
    from cleanlab.regression.rank import get_label_quality_scores

    suspects: list[Suspect] = []
    for target, name in enumerate(targets):
        truth, guess = labels[:, target].astype(np.float64), said[:, target].astype(np.float64)
        errors = truth - guess
        away = np.abs(errors - np.median(errors))
        scale = _MAD * float(np.median(away))
        if scale <= 0:
            continue
        quality = np.asarray(get_label_quality_scores(truth / scale, guess / scale))
        for row in np.flatnonzero(away > _FAR * scale).tolist():
            value, other = float(truth[row]), float(guess[row])
            suspects.append(
                Suspect(
                    split, keys[row], f"{name} {value:.4g}", f"{name} {other:.4g}", float(quality[row]), value, other
                )
            )
    suspects.sort(key=lambda one: (one.quality, one.key))
    return suspects, None, f" Doubted is what is {_FAR:g} robust standard deviations of the error away."


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Leave out cleanlab's warnings, a line for each class with one sample: the note says it once."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="May not flag all label issues in class", category=UserWarning)
        yield


def _named(names: Sequence[str], mask: NDArray[np.bool_]) -> str:
    return ", ".join(name for name, there in zip(names, mask, strict=True) if there) or "(none)"
