"""The card of one predictor: all that its predictions of a split say about it, as plain JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypedDict

import numpy as np

from choral.ensembles.score_rows import SEED, Numbers
from choral.metrics.estimate import Estimate
from choral.metrics.intervals import DRAWS, LEVEL, Interval
from choral.metrics.metric_report import Card, card_of
from choral.scoring.predictor import Predictor

_LARGEST_CONFUSION = 100  # classes: of more, only the most frequent confusions are told
_CONFUSIONS = 20


class Confusion(TypedDict):
    """So many samples of one class were taken for another; `share` of those of the class."""

    label: str
    predicted: str
    count: int
    share: float


class CardJson(TypedDict):
    """What `card_json` returns; a value or interval of None is not defined."""

    name: str
    task: str
    split: str
    n: int
    skipped: int
    decided: bool  # by thresholds or costs, see `choral calibrate`; else the most probable, labels above one half
    classes: list[str]
    metrics: dict[str, Numbers | None]
    plain_ece: float | None  # as it is usually computed, biased upwards; `ece` in metrics is debiased
    bins: int
    by_class: dict[str, dict[str, Numbers | None]]
    counts: dict[str, int]
    confusion: list[list[int]] | None  # row true, column predicted
    confusions: list[Confusion]  # the most frequent
    dataset: str
    evaluation: str
    bootstrap: dict[str, float]


def card_json(predictor: Predictor) -> CardJson:
    """Return the card of a predictor: every metric with a 95 % interval, of each class, label or target as well."""
    ledger = predictor.ledger
    task = ledger.meta.task
    card = card_of(
        task,
        ledger.labels,
        predictor.predictions,
        ledger.classes,
        probabilities=predictor.gives_probabilities,
        decided=predictor.decided,
        seed=SEED,
    )
    small = card.confusion is not None and len(ledger.classes) <= _LARGEST_CONFUSION
    return CardJson(
        name=predictor.name,
        task=task,
        split=ledger.meta.split,
        n=len(ledger),
        skipped=ledger.meta.skipped,
        decided=predictor.decided is not None,
        classes=list(ledger.classes),
        metrics={name: defined(estimate.interval) for name, estimate in card.overall.items()},
        plain_ece=card.plain_ece,
        bins=card.bins,
        by_class={name: _defined(own) for name, own in card.by_class.items()},
        counts=card.counts,
        confusion=card.confusion.tolist() if small and card.confusion is not None else None,
        confusions=_confusions(card, ledger.classes),
        dataset=ledger.meta.dataset,
        evaluation=ledger.meta.evaluation,
        bootstrap={"draws": DRAWS, "level": LEVEL, "seed": SEED},
    )


def defined(interval: Interval) -> Numbers | None:
    """Return a value with its interval as plain JSON; None where it, or its interval, is not defined."""
    if not all(map(math.isfinite, (interval.value, interval.low, interval.high))):
        return None
    return Numbers(value=interval.value, low=interval.low, high=interval.high)


def _defined(estimates: Mapping[str, Estimate]) -> dict[str, Numbers | None]:
    return {name: defined(estimate.interval) for name, estimate in estimates.items()}


def _confusions(card: Card, classes: Any) -> list[Confusion]:
    if card.confusion is None:
        return []
    wrong = card.confusion - np.diag(np.diag(card.confusion))
    found = []
    for place in np.argsort(-wrong, axis=None, kind="stable")[:_CONFUSIONS]:
        label, predicted = divmod(int(place), len(classes))
        if count := int(wrong[label, predicted]):
            share = count / int(card.confusion[label].sum())
            found.append(Confusion(label=classes[label], predicted=classes[predicted], count=count, share=share))
    return found
