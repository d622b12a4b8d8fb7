"""Learned test-time augmentation: which views to keep and how to weight them, chosen on validation data.

A view is to the mean over views what a member is to the mean over members, so the weights are found as those of members
are: by greedy selection with replacement (Caruana et al. 2004), here of views, by the log loss (regression: the squared
error) of what the members say on average. All members share the weights. Shanmugam et al. 2021, "Better aggregation in
test-time augmentation", https://arxiv.org/abs/2011.11156, learn such weights by gradient descent. No forward pass is made:
a ledger that keeps its views has all that is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from choral.core.errors import ConfigError
from choral.ensembles.class_scores import class_rows
from choral.ensembles.fitting_data import FittingData
from choral.ensembles.member_predictions import LEARNED, MemberPredictions, ViewPredictions
from choral.ensembles.multilabel_scores import label_rows
from choral.ensembles.regression_scores import number_rows
from choral.ensembles.rule_fitting import Evidence, Fit, evidence_of, fit_weights
from choral.ensembles.rules import Combiner
from choral.ensembles.score_rows import ClassRow, Row, Section, TargetRow, ViewGain
from choral.inference.ledger import Ledger


@dataclass(frozen=True)
class LearnedViews:
    """Weights of views, and what they come to on the samples that they were chosen on.

    Attributes:
        fit: its names are the views that were chosen from.
        losses: "learned", "uniform" and, where it was among them, "identity", to the loss on these samples.
    """

    fit: Fit
    losses: Mapping[str, float]

    @property
    def weights(self) -> dict[str, float]:
        """View to weight, of all that were chosen from; 0: it is left out."""
        return self.fit.weights

    @property
    def kept(self) -> tuple[str, ...]:
        """The views that have a weight."""
        return tuple(view for view, weight in self.weights.items() if weight > 0)

    @property
    def kept_weights(self) -> tuple[float, ...]:
        """Their weights, summing to 1."""
        return tuple(weight for weight in self.weights.values() if weight > 0)

    def rivals(self, ledger: Ledger) -> dict[str, tuple[str, ...]]:
        """Return what the weights are compared with: name to views whose plain mean it is."""
        views = tuple(self.weights)
        all_of_them = "tta" in ledger.views and sorted(ledger.meta.tta_views) == sorted(views)
        found = {"identity": ("identity",)} if "identity" in views else {}
        return {**found, "uniform": ("tta",) if all_of_them else views}

    def to_json(self) -> dict[str, Any]:
        """Return how the weights were found, as plain JSON."""
        return {
            "rule": self.fit.combiner.rule,
            "on": self.fit.on,
            "samples": self.fit.samples,
            "by": self.fit.by,
            "losses": dict(self.losses),
        }


def single_views(ledger: Ledger) -> tuple[str, ...]:
    """Return the views that a ledger keeps one by one."""
    return tuple(view for view in ledger.views if view != "tta")


def why_not_learned(scored: Ledger, known: FittingData) -> str:
    """Return why no weights of views can be learned for what is scored; "": they can."""
    views = single_views(scored)
    if len(views) < 2:
        return (
            f"{scored.path} keeps {len(views)} single view{'s' * (len(views) != 1)}, nothing to choose from; "
            "`choral evaluate` keeps those of evaluate.views with evaluate.keep_views=true"
        )
    if known.validation is None:
        return f"nothing to learn them on: {known.why_not}"
    missing = [view for view in views if view not in known.validation.views]
    if missing:
        return f"{known.validation.path} does not keep {', '.join(missing)}: evaluate it with evaluate.keep_views=true"
    return ""


def learn_views(scored: Ledger, members: Sequence[str], known: FittingData) -> LearnedViews:
    """Return the weights of views that are best for the mean of these members on validation data.

    Args:
        scored: the ledger whose views are to be weighted.
        members: of it.
        known: with a validation ledger that keeps the same views.

    Raises:
        ConfigError: there is nothing to choose from, or to learn on.
    """
    reason = why_not_learned(scored, known)
    if reason:
        raise ConfigError(f"--views {LEARNED}: {reason}")
    assert known.validation is not None, "why_not_learned saw to it"
    evidence = evidence_of(ViewPredictions(known.validation, tuple(members), single_views(scored)))
    fit = fit_weights("greedy", evidence)
    views, weights = evidence.panel.members, np.array(fit.combiner.weights)
    losses = {LEARNED: _loss(evidence, weights), "uniform": _loss(evidence, np.full(len(views), 1 / len(views)))}
    if "identity" in views:
        losses["identity"] = _loss(evidence, np.array([float(view == "identity") for view in views]))
    return LearnedViews(fit, losses)


def learned_panel(scored: Ledger, members: Sequence[str], learned: LearnedViews) -> MemberPredictions:
    """Return these members of a ledger, heard by the learned weights of views."""
    return MemberPredictions(scored, tuple(members), learned.kept, view_weights=learned.kept_weights)


def view_gains(
    learned: MemberPredictions, rivals: Mapping[str, MemberPredictions], combiner: Combiner
) -> list[ViewGain]:
    """Return what one rule gains by learned weights of views, by every metric of the table of scores.

    Args:
        learned: the members under the learned weights.
        rivals: name to the same members under other views.
        combiner: the rule.
    """
    sections = [Section(learned, "", {LEARNED: combiner})]
    sections += [Section(panel, "", {name: combiner}, with_members=False) for name, panel in rivals.items()]
    gains: list[ViewGain] = []
    for name in rivals:
        for row in _rows(sections, baseline=name):
            if row["name"] == LEARNED:
                gains += _gains_of(row, name)
    return gains


def _rows(sections: Sequence[Section], baseline: str) -> Sequence[Row]:
    task = sections[0].panel.task
    if task == "multilabel":
        return label_rows(sections, baseline)[0]
    return number_rows(sections, baseline)[0] if task == "regression" else class_rows(sections, baseline)[0]


def _gains_of(row: Row, to: str) -> list[ViewGain]:
    of_class = cast(ClassRow, row).get(
        "log_loss_to_baseline"
    )  # which has it beside the accuracy, not in a row of its own
    found = {"log_loss": of_class, row["metric"]: row.get("to_baseline")}
    gains = []
    for metric in sorted(found, key=lambda metric: metric != row["metric"]):
        gain = found[metric]
        if gain is not None:
            own = ViewGain(metric=metric, to=to, value=gain["value"], low=gain["low"], high=gain["high"])
            if "target" in row:
                own["target"] = cast(TargetRow, row)["target"]
            gains.append(own)
    return gains


def _loss(evidence: Evidence, weights: NDArray[np.float64]) -> float:
    if evidence.panel.task == "regression":
        return float(weights @ evidence.gram @ weights)
    return float(-np.log(evidence.truths @ weights).mean())
