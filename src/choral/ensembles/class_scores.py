"""Scores of multiclass: members, soft and hard vote and other rules, by accuracy and log loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from choral.ensembles.score_rows import SEED, ClassRow, Difference, Section, numbers
from choral.metrics.estimate import Estimate
from choral.metrics.intervals import interval_of, resampled_means
from choral.metrics.per_sample import correct, log_losses, top_class
from choral.metrics.proportions import of_share


@dataclass
class _Entry:
    """One row in the making: a number a sample for each metric, block by block."""

    correct: list[NDArray[np.float64]] = field(default_factory=list)
    losses: list[NDArray[np.float64]] = field(default_factory=list)  # stays empty for a hard vote
    tied: list[NDArray[np.bool_]] = field(default_factory=list)  # of votes


def class_rows(sections: Sequence[Section], baseline: str = "") -> tuple[list[ClassRow], str]:
    """Return the rows, and the name of the best member: of the highest accuracy, among equals of the lowest log loss.

    Args:
        sections: of the table; the best is one of the first one's members.
        baseline: a row that all are compared with, too, also by log loss; "": none.
    """
    return _rows(_entries(sections), sections[0].names[: len(sections[0].members)], baseline)


def _entries(sections: Sequence[Section]) -> dict[str, _Entry]:
    """Walk once over the columns that are scored, one block of samples at a time."""
    entries: dict[str, _Entry] = {}
    for section in sections:
        group = {name: _Entry() for name in section.names}
        members = list(group.values())[: len(section.members)]
        rules = list(group.values())[len(section.members) :]
        for labels, stack in section.panel.blocks():
            for entry, probabilities in zip(members, stack, strict=False):
                entry.correct.append(correct(labels, top_class(probabilities)))
                entry.losses.append(log_losses(labels, probabilities))
            for entry, rule in zip(rules, section.rules.values(), strict=True):
                said = rule(stack)
                entry.correct.append(correct(labels, top_class(said.predictions)))
                if rule.gives_probabilities:
                    entry.losses.append(log_losses(labels, said.predictions))
                if said.tied is not None:
                    entry.tied.append(said.tied)
        entries |= group
    return entries


def _rows(entries: Mapping[str, _Entry], plain: Sequence[str], baseline: str) -> tuple[list[ClassRow], str]:
    """Return the rows, and the name of the best of the members called `plain`."""
    names = list(entries)
    scores = {name: np.concatenate(entry.correct) for name, entry in entries.items()}
    losses = {name: np.concatenate(entry.losses) for name, entry in entries.items() if entry.losses}
    # All rows share the draws, so that any two of them can be compared in pairs.
    means = resampled_means(np.stack([*scores.values(), *losses.values()], axis=1), seed=SEED)
    drawn = dict(zip(names, means.T, strict=False))
    drawn_losses = dict(zip(losses, means.T[len(names) :], strict=True))
    best = min(plain, key=lambda name: (-scores[name].sum(), losses[name].sum()))

    def to(name: str, other: str) -> Difference | None:
        if name == other:
            return None
        return Difference(to=other, **numbers(interval_of(scores[name] - scores[other], drawn[name] - drawn[other])))

    def loss_to(name: str, other: str) -> Difference | None:
        if name == other or name not in losses or other not in losses:
            return None
        gain = interval_of(losses[name] - losses[other], drawn_losses[name] - drawn_losses[other])
        return Difference(to=other, **numbers(gain))

    rows: list[ClassRow] = []
    for name, entry in entries.items():
        accuracy = of_share(Estimate(float(scores[name].mean()), drawn[name]), len(scores[name])).interval
        row = ClassRow(
            name=name,
            metric="accuracy",
            value=accuracy.value,
            low=accuracy.low,
            high=accuracy.high,
            n=len(scores[name]),
            log_loss=numbers(interval_of(losses[name], drawn_losses[name])) if name in losses else None,
            difference=to(name, best),
            ties=int(np.concatenate(entry.tied).sum()) if entry.tied else None,
        )
        if baseline:
            row["to_baseline"] = to(name, baseline)
            row["log_loss_difference"], row["log_loss_to_baseline"] = loss_to(name, best), loss_to(name, baseline)
        rows.append(row)
    return rows, best
