"""Scores of multiclass: members, soft and hard vote, by accuracy and log loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from choral.ensemble.combine import hard, soft
from choral.ensemble.rows import SEED, ClassRow, Difference, numbers, scored_views
from choral.predict.ledger import Ledger
from choral.score.intervals import interval_of, resampled_means
from choral.score.metrics import correct, log_losses, top_class


@dataclass
class _Entry:
    """One row in the making: a number a sample for each metric, block by block."""

    correct: list[NDArray[np.float64]] = field(default_factory=list)
    losses: list[NDArray[np.float64]] = field(default_factory=list)  # stays empty for a hard vote
    tied: list[NDArray[np.bool_]] = field(default_factory=list)  # of a hard vote


def class_rows(ledger: Ledger) -> tuple[list[ClassRow], str]:
    """Return the rows, and the name of the best member: of the highest accuracy, among equals of the lowest log loss."""
    return _rows(_entries(ledger), len(ledger.members))


def _entries(ledger: Ledger) -> dict[str, _Entry]:
    """Walk once over the columns that are scored, one block of samples at a time."""
    entries: dict[str, _Entry] = {}
    for view, suffix in scored_views(ledger):
        names = [*(f"member/{member}{suffix}" for member in ledger.members), f"soft{suffix}", f"hard{suffix}"]
        group = {name: _Entry() for name in names}
        *members, mean, vote = group.values()
        start = 0
        for stack in ledger.blocks(view):
            labels = ledger.labels[start : start + stack.shape[1]]
            start += len(labels)
            for entry, probabilities in zip([*members, mean], [*stack, soft(stack)], strict=True):
                entry.correct.append(correct(labels, top_class(probabilities)))
                entry.losses.append(log_losses(labels, probabilities))
            votes = hard(stack)
            vote.correct.append(correct(labels, votes.predictions))
            vote.tied.append(votes.tied)
        entries |= group
    return entries


def _rows(entries: Mapping[str, _Entry], members: int) -> tuple[list[ClassRow], str]:
    """Return the rows, and the name of the best of the first `members` of them."""
    names = list(entries)
    scores = {name: np.concatenate(entry.correct) for name, entry in entries.items()}
    losses = {name: np.concatenate(entry.losses) for name, entry in entries.items() if entry.losses}
    # All rows share the draws, so that any two of them can be compared in pairs.
    means = resampled_means(np.stack([*scores.values(), *losses.values()], axis=1), seed=SEED)
    drawn = dict(zip(names, means.T, strict=False))
    drawn_losses = dict(zip(losses, means.T[len(names) :], strict=True))
    plain = names[:members]  # without averaged views, if the ledger has such columns
    best = min(plain, key=lambda name: (-scores[name].sum(), losses[name].sum()))
    rows: list[ClassRow] = []
    for name, entry in entries.items():
        accuracy = interval_of(scores[name], drawn[name])
        loss = interval_of(losses[name], drawn_losses[name]) if name in losses else None
        gain = interval_of(scores[name] - scores[best], drawn[name] - drawn[best])
        rows.append(
            ClassRow(
                name=name,
                metric="accuracy",
                **numbers(accuracy),
                n=len(scores[name]),
                log_loss=numbers(loss) if loss else None,
                difference=None if name == best else Difference(to=best, **numbers(gain)),
                ties=int(np.concatenate(entry.tied).sum()) if entry.tied else None,
            )
        )
    return rows, best
