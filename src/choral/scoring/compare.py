"""Two predictors beside each other: every metric in pairs, McNemar's test, and the samples that changed sides.

McNemar 1947, "Note on the sampling error of the difference between correlated proportions or percentages",
https://doi.org/10.1007/BF02295996: of the samples that one of two predictors alone got right, either should have half if
both were equally good. The test is exact, by the binomial distribution. For numbers, which are never right, the same test is
one of signs: which of the two is closer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from choral.core.errors import DataError
from choral.ensembles.score_rows import SEED, Numbers
from choral.metrics.estimate import Estimate
from choral.metrics.metric_report import Card, card_of
from choral.metrics.per_sample import label_log_losses
from choral.scoring.predictor import Predictor
from choral.scoring.predictor_report import defined
from choral.scoring.stored_predictor import METRICS, Record, estimates_of

OF_CLASS = {"multiclass": "recall", "multilabel": "average_precision", "regression": "rmse"}
"""The metric by which classes, labels or targets are compared one by one."""
_MOST_NUMBERS = 100  # samples of regression that are told


class Pair(TypedDict):
    """A metric of both predictors, and that of the second less that of the first; None: not defined."""

    name: str
    metric: str
    n: int
    a: Numbers | None
    b: Numbers | None
    difference: Numbers | None


class Part(Pair):
    """Of a class or slice, with how many of its samples the second predictor alone, or the first alone, got right."""

    gained: int
    lost: int


class Sides(TypedDict):
    """How many samples who got right, of numbers: who is closer; and the exact test of only_a against only_b."""

    test: str
    both: int
    only_a: int
    only_b: int
    neither: int
    p_value: float


class Change(TypedDict):
    """A sample that one alone got right, or, of numbers, about which the errors differ most."""

    key: str
    label: Any
    a: Any
    b: Any
    better: str  # a or b
    shift: float  # by how much b is nearer the truth: in probability, of labels in log loss, of numbers in errors by spread


class Comparison(TypedDict):
    """What `compare` returns: plain JSON."""

    task: str
    split: str
    dataset: str
    n: int
    a: str
    b: str
    metrics: list[Pair]
    sides: Sides
    classes: list[Part]
    column: str
    slices: list[Part]
    changed: list[Change]


def check_comparable(a: Predictor, b: Predictor, names: tuple[str, str]) -> None:
    """Refuse to compare what was said about different samples.

    Raises:
        DataError: saying in what the two differ.
    """
    one, other = a.ledger, b.ledger
    reason = ""
    if one.meta.task != other.meta.task or one.classes != other.classes:
        reason = f"they predict other things ({one.meta.task}: {_few(one.classes)}; {other.meta.task}: {_few(other.classes)})"
    elif one.meta.dataset != other.meta.dataset:
        reason = f"their data have different fingerprints ({one.meta.dataset[:12]} and {other.meta.dataset[:12]})"
    elif one.meta.split != other.meta.split:
        reason = f"they were asked about different splits ({one.meta.split} and {other.meta.split})"
    elif one.keys != other.keys or not np.array_equal(one.labels, other.labels):
        common = len(set(one.keys) & set(other.keys))
        reason = f"they were asked about {len(one)} and {len(other)} samples, of which {common} are the same"
    if reason:
        raise DataError(
            f"{names[0]} and {names[1]} cannot be compared: {reason}; a difference would be one of the data as much as of "
            "the predictors. Evaluate both on the same shards"
        )


def compare(
    a: Predictor,
    b: Predictor,
    names: tuple[str, str],
    column: str = "",
    slices: Mapping[str, NDArray[np.bool_]] | None = None,
) -> Comparison:
    """Return how a second predictor differs from a first one on the same samples.

    Args:
        a, b: the first and the second.
        names: what they are called in the result.
        column, slices: of metadata, to masks over the samples; none: no slices.

    Raises:
        DataError: they are about different samples.
    """
    check_comparable(a, b, names)
    ledger = a.ledger
    task, labels = ledger.meta.task, ledger.labels
    said = (a.answers, b.answers)
    side, cards = _side(task, labels, said), (_card(a), _card(b))
    return Comparison(
        task=task,
        split=ledger.meta.split,
        dataset=ledger.meta.dataset,
        n=len(ledger),
        a=names[0],
        b=names[1],
        metrics=_metrics(cards),
        sides=_sides(task, labels, said, side),
        classes=_classes(a, b, cards),
        column=column,
        slices=[_slice(name, mask, a, b, side) for name, mask in (slices or {}).items()],
        changed=_changed(a, b, side),
    )


def _metrics(cards: tuple[Card, Card]) -> list[Pair]:
    one, other = (card.overall for card in cards)
    return [_pair(metric, metric, cards[0].count, one[metric], other[metric]) for metric in one if metric in other]


def _classes(a: Predictor, b: Predictor, cards: tuple[Card, Card]) -> list[Part]:
    """Return the classes, labels or targets, by the metric of each that says most of it alone."""
    ledger = a.ledger
    task, labels, metric = ledger.meta.task, ledger.labels, OF_CLASS[ledger.meta.task]
    one, other = cards
    sides = _sides_of_outputs(task, labels, (a.answers, b.answers))
    parts = []
    for number, name in enumerate(ledger.classes):
        own = sides[labels == number] if task == "multiclass" else sides[:, number]
        count = len(ledger) if task == "regression" else one.counts[name]
        pair = _pair(name, metric, count, one.by_class[name][metric], other.by_class[name][metric])
        parts.append(Part(**pair, gained=int((own > 0).sum()), lost=int((own < 0).sum())))
    return parts


def _slice(name: str, mask: NDArray[np.bool_], a: Predictor, b: Predictor, side: NDArray[np.int8]) -> Part:
    task = a.ledger.meta.task
    metric, labels = METRICS[task][0], a.ledger.labels[mask]
    records = {key: Record.of(predictor).of_samples(mask) for key, predictor in (("a", a), ("b", b))}
    found = estimates_of(task, labels, records)[metric]
    pair = _pair(name, metric, int(mask.sum()), found["a"], found["b"])
    return Part(**pair, gained=int((side[mask] > 0).sum()), lost=int((side[mask] < 0).sum()))


def _pair(name: str, metric: str, count: int, one: Estimate, other: Estimate) -> Pair:
    return Pair(
        name=name,
        metric=metric,
        n=count,
        a=defined(one.interval),
        b=defined(other.interval),
        difference=defined(other.minus(one)),
    )


def _card(predictor: Predictor) -> Card:
    ledger = predictor.ledger
    return card_of(
        ledger.meta.task,
        ledger.labels,
        predictor.predictions,
        ledger.classes,
        probabilities=predictor.gives_probabilities,
        decided=predictor.decided,
        seed=SEED,
    )


def _sides_of_outputs(task: str, labels: NDArray[Any], said: tuple[NDArray[Any], NDArray[Any]]) -> NDArray[np.int8]:
    """Return 1 where the second alone is right, or closer, -1 where the first is: (N,), or (N, labels or targets)."""
    if task == "regression":
        errors = [abs(values.astype(np.float64) - labels) for values in said]
        return _signs(errors[0], errors[1])
    right = [_right(labels, values) for values in said]
    return _signs(right[1], right[0])


def _side(task: str, labels: NDArray[Any], said: tuple[NDArray[Any], NDArray[Any]]) -> NDArray[np.int8]:
    """Return the (N,) sides of whole samples: all labels are right; of several numbers the mean error, each by its spread."""
    if task == "multiclass":
        return _sides_of_outputs(task, labels, said)
    if task == "multilabel":
        right: list[NDArray[np.bool_]] = [np.all(_right(labels, values), axis=1) for values in said]
        return _signs(right[1], right[0])
    return _signs(_errors(labels, said[0]), _errors(labels, said[1]))


def _signs(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.int8]:
    """Return 1 where one is larger than the other, -1 where it is smaller, else 0."""
    return (one > other).astype(np.int8) - (one < other).astype(np.int8)


def _right(labels: NDArray[Any], said: NDArray[Any]) -> NDArray[np.bool_]:
    right: NDArray[np.bool_] = said == (labels > 0 if labels.ndim == 2 else labels)
    return right


def _errors(labels: NDArray[Any], said: NDArray[Any]) -> NDArray[np.float64]:
    spread = labels.std(axis=0, dtype=np.float64)
    errors: NDArray[np.float64] = (abs(said.astype(np.float64) - labels) / np.where(spread > 0, spread, 1)).mean(axis=1)
    return errors


def _sides(task: str, labels: NDArray[Any], said: tuple[NDArray[Any], NDArray[Any]], side: NDArray[np.int8]) -> Sides:
    from scipy.stats import binomtest  # a second of imports

    only_a, only_b = int((side < 0).sum()), int((side > 0).sum())
    same = side == 0
    if task == "regression":
        both, test = int(same.sum()), "sign test, exact"
    else:
        right = _right(labels, said[0])
        both, test = int((same & (right if right.ndim == 1 else right.all(axis=1))).sum()), "McNemar, exact"
    p_value = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    neither = int(same.sum()) - both
    return Sides(test=test, both=both, only_a=only_a, only_b=only_b, neither=neither, p_value=p_value)


def _changed(a: Predictor, b: Predictor, side: NDArray[np.int8]) -> list[Change]:
    """Return the samples that changed sides, those that one lost first, the largest shifts first."""
    task, labels, keys = a.ledger.meta.task, a.ledger.labels, a.ledger.keys
    said, answers = (a.predictions, b.predictions), (a.answers, b.answers)
    if task == "multiclass":
        one, other = (values[np.arange(len(labels)), labels].astype(np.float64) for values in said)
    elif task == "multilabel":
        one, other = (-label_log_losses(labels > 0, values) for values in said)
    else:
        one, other = (-_errors(labels, values) for values in said)
    shift = other - one
    rows = np.flatnonzero(side)
    order = rows[np.lexsort((-abs(shift[rows]), side[rows]))]
    if task == "regression":  # every sample has a side: the largest shifts say enough
        order = order[np.argsort(-abs(shift[order]), kind="stable")][:_MOST_NUMBERS]
    return [
        Change(
            key=keys[row],
            label=_plain(task, a.ledger.classes, labels[row]),
            a=_plain(task, a.ledger.classes, answers[0][row]),
            b=_plain(task, a.ledger.classes, answers[1][row]),
            better="b" if side[row] > 0 else "a",
            shift=round(float(shift[row]), 6),
        )
        for row in order.tolist()
    ]


def _plain(task: str, classes: Sequence[str], label: Any) -> Any:
    if task == "multiclass":
        return classes[int(label)]
    if task == "multilabel":
        return [name for name, value in zip(classes, label, strict=True) if value > 0]
    return {name: round(float(value), 6) for name, value in zip(classes, label, strict=True)}


def _few(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"
