"""Scores of multiclass ledgers: members, soft and hard vote and other rules, by accuracy and log loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from choral.ensembles.score_rows import SEED, Difference, MulticlassRow, Section, interval_to_dict
from choral.metrics.estimate import Estimate
from choral.metrics.intervals import bootstrap_means, mean_interval
from choral.metrics.per_sample import correct, log_losses, top_class
from choral.metrics.proportions import with_wilson_interval


@dataclass
class _RowValues:
    """Per-sample metrics of one row of the table, collected block by block."""

    correct: list[NDArray[np.float64]] = field(default_factory=list)
    losses: list[NDArray[np.float64]] = field(default_factory=list)  # stays empty for a hard vote
    tied: list[NDArray[np.bool_]] = field(default_factory=list)  # of rules that vote


def score_multiclass(sections: Sequence[Section], baseline: str = "") -> tuple[list[MulticlassRow], str]:
    """Return the rows, and the name of the best member: highest accuracy, among ties lowest log loss.

    Args:
        sections: of the table; the best member is one of the first section's.
        baseline: a row that all others are also compared with, by log loss too; "": none.
    """
    values = _collect_values(sections)
    members = sections[0].names[: len(sections[0].members)]
    names = list(values)
    hits = {name: np.concatenate(of_row.correct) for name, of_row in values.items()}
    losses = {name: np.concatenate(of_row.losses) for name, of_row in values.items() if of_row.losses}
    # All rows share the draws, so that any two of them can be compared in pairs.
    means = bootstrap_means(np.stack([*hits.values(), *losses.values()], axis=1), seed=SEED)
    accuracy_draws = dict(zip(names, means.T, strict=False))
    loss_draws = dict(zip(losses, means.T[len(names) :], strict=True))
    best = min(members, key=lambda name: (-hits[name].sum(), losses[name].sum()))

    def accuracy_difference(name: str, other: str) -> Difference | None:
        if name == other:
            return None
        gain = mean_interval(hits[name] - hits[other], accuracy_draws[name] - accuracy_draws[other])
        return Difference(to=other, **interval_to_dict(gain))

    def loss_difference(name: str, other: str) -> Difference | None:
        if name == other or name not in losses or other not in losses:
            return None
        gain = mean_interval(losses[name] - losses[other], loss_draws[name] - loss_draws[other])
        return Difference(to=other, **interval_to_dict(gain))

    rows: list[MulticlassRow] = []
    for name, of_row in values.items():
        estimate = Estimate(float(hits[name].mean()), accuracy_draws[name])
        accuracy = with_wilson_interval(estimate, len(hits[name])).interval
        log_loss = mean_interval(losses[name], loss_draws[name]) if name in losses else None
        row = MulticlassRow(
            name=name,
            metric="accuracy",
            value=accuracy.value,
            low=accuracy.low,
            high=accuracy.high,
            n=len(hits[name]),
            log_loss=interval_to_dict(log_loss) if log_loss is not None else None,
            difference=accuracy_difference(name, best),
            ties=int(np.concatenate(of_row.tied).sum()) if of_row.tied else None,
        )
        if baseline:
            row["to_baseline"] = accuracy_difference(name, baseline)
            row["log_loss_difference"] = loss_difference(name, best)
            row["log_loss_to_baseline"] = loss_difference(name, baseline)
        rows.append(row)
    return rows, best


def _collect_values(sections: Sequence[Section]) -> dict[str, _RowValues]:
    """Return the per-sample metrics of every row, reading the scored columns once, block by block."""
    values: dict[str, _RowValues] = {}
    for section in sections:
        of_section = {name: _RowValues() for name in section.names}
        member_rows = list(of_section.values())[: len(section.members)]
        rule_rows = list(of_section.values())[len(section.members) :]
        for labels, stack in section.member_predictions.blocks():
            for row, probabilities in zip(member_rows, stack, strict=False):
                row.correct.append(correct(labels, top_class(probabilities)))
                row.losses.append(log_losses(labels, probabilities))
            for row, rule in zip(rule_rows, section.rules.values(), strict=True):
                combined = rule(stack)
                row.correct.append(correct(labels, top_class(combined.predictions)))
                if rule.gives_probabilities:
                    row.losses.append(log_losses(labels, combined.predictions))
                if combined.tied is not None:
                    row.tied.append(combined.tied)
        values |= of_section
    return values
