"""Learned test-time augmentation: which views to keep and how to weight them, learned on validation data.

A view is to the mean over views what a member is to the mean over members, so view weights are found like member
weights: by greedy selection with replacement (Caruana et al. 2004), here of views, by the log loss (regression: squared
error) of the mean over the members. All members share the weights. Shanmugam et al. 2021, "Better aggregation in
test-time augmentation", https://arxiv.org/abs/2011.11156, learn such weights by gradient descent. No forward pass is
needed, only a ledger that keeps its views.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from choral.core.errors import ConfigError
from choral.ensembles.fitting_data import FittingData
from choral.ensembles.member_predictions import LEARNED, MemberPredictions, ViewPredictions
from choral.ensembles.multiclass_scores import score_multiclass
from choral.ensembles.multilabel_scores import score_multilabel
from choral.ensembles.regression_scores import score_regression
from choral.ensembles.rule_fitting import FittedRule, FittingStatistics, compute_statistics, fit_weights
from choral.ensembles.rules import Combiner
from choral.ensembles.score_rows import MulticlassRow, RegressionRow, ScoreRow, Section, ViewGain
from choral.inference.ledger import Ledger


@dataclass(frozen=True)
class LearnedViews:
    """View weights, and their loss on the samples they were learned on.

    Attributes:
        fit: its names are the views that were available.
        losses: "learned", "uniform" and, if available, "identity", to the loss on these samples.
    """

    fit: FittedRule
    losses: Mapping[str, float]

    @property
    def weights(self) -> dict[str, float]:
        """View to weight, of all available views; 0: it is left out."""
        return self.fit.weights

    @property
    def kept(self) -> tuple[str, ...]:
        """The views with a positive weight."""
        return tuple(view for view, weight in self.weights.items() if weight > 0)

    @property
    def kept_weights(self) -> tuple[float, ...]:
        """Their weights, summing to 1."""
        return tuple(weight for weight in self.weights.values() if weight > 0)

    def baselines(self, ledger: Ledger) -> dict[str, tuple[str, ...]]:
        """Return what the weights are compared with: name to the views that are averaged with equal weights."""
        views = tuple(self.weights)
        averaged = "tta" in ledger.views and sorted(ledger.meta.tta_views) == sorted(views)
        identity = {"identity": ("identity",)} if "identity" in views else {}
        return {**identity, "uniform": ("tta",) if averaged else views}

    def to_json(self) -> dict[str, Any]:
        """Return how the weights were learned, as plain JSON."""
        return {
            "rule": self.fit.combiner.rule,
            "on": self.fit.fitted_on,
            "samples": self.fit.samples,
            "by": self.fit.criterion,
            "losses": dict(self.losses),
        }


def single_views(ledger: Ledger) -> tuple[str, ...]:
    """Return the views that a ledger keeps individually."""
    return tuple(view for view in ledger.views if view != "tta")


def reason_not_learnable(scored: Ledger, fitting_data: FittingData) -> str:
    """Return why no view weights can be learned for the scored ledger; "" if they can."""
    views = single_views(scored)
    if len(views) < 2:
        return (
            f"{scored.path} keeps {len(views)} single view{'s' * (len(views) != 1)}, too few to choose from; "
            "`choral evaluate` keeps those of evaluate.views with evaluate.keep_views=true"
        )
    if fitting_data.validation is None:
        return f"nothing to learn them on: {fitting_data.no_validation_reason}"
    missing = [view for view in views if view not in fitting_data.validation.views]
    if missing:
        path = fitting_data.validation.path
        return f"{path} does not keep {', '.join(missing)}: evaluate it with evaluate.keep_views=true"
    return ""


def learn_views(scored: Ledger, members: Sequence[str], fitting_data: FittingData) -> LearnedViews:
    """Return the view weights that are best for the mean of these members on validation data.

    Args:
        scored: the ledger whose views are weighted.
        members: of that ledger.
        fitting_data: with a validation ledger that keeps the same views.

    Raises:
        ConfigError: there are too few views, or nothing to learn on.
    """
    reason = reason_not_learnable(scored, fitting_data)
    if reason:
        raise ConfigError(f"--views {LEARNED}: {reason}")
    assert fitting_data.validation is not None, "reason_not_learnable checked this"
    by_view = ViewPredictions(fitting_data.validation, tuple(members), single_views(scored))
    statistics = compute_statistics(by_view)
    fit = fit_weights("greedy", statistics)
    views, weights = by_view.members, np.array(fit.combiner.weights)
    losses = {LEARNED: _loss(statistics, weights), "uniform": _loss(statistics, np.full(len(views), 1 / len(views)))}
    if "identity" in views:
        losses["identity"] = _loss(statistics, np.array([float(view == "identity") for view in views]))
    return LearnedViews(fit, losses)


def predictions_with_learned_views(scored: Ledger, members: Sequence[str], learned: LearnedViews) -> MemberPredictions:
    """Return the predictions of these members, averaged over views with the learned weights."""
    return MemberPredictions(scored, tuple(members), learned.kept, view_weights=learned.kept_weights)


def view_gains(
    learned: MemberPredictions, baselines: Mapping[str, MemberPredictions], combiner: Combiner
) -> list[ViewGain]:
    """Return the gains of the learned view weights under one rule, by every metric of the score table.

    Args:
        learned: the members under the learned weights.
        baselines: name to the same members under other views.
        combiner: the rule.
    """
    sections = [Section(learned, "", {LEARNED: combiner})]
    sections += [
        Section(predictions, "", {name: combiner}, with_members=False) for name, predictions in baselines.items()
    ]
    gains: list[ViewGain] = []
    for name in baselines:
        for row in _score(sections, baseline=name):
            if row["name"] == LEARNED:
                gains += _gains_from_row(row, name)
    return gains


def _score(sections: Sequence[Section], baseline: str) -> Sequence[ScoreRow]:
    task = sections[0].member_predictions.task
    if task == "multilabel":
        return score_multilabel(sections, baseline)[0]
    if task == "regression":
        return score_regression(sections, baseline)[0]
    return score_multiclass(sections, baseline)[0]


def _gains_from_row(row: ScoreRow, to: str) -> list[ViewGain]:
    # A multiclass row has the log loss beside the accuracy; the other tasks have a row for it.
    log_loss_difference = cast(MulticlassRow, row).get("log_loss_to_baseline")
    differences = {"log_loss": log_loss_difference, row["metric"]: row.get("to_baseline")}
    gains = []
    for metric in sorted(differences, key=lambda metric: metric != row["metric"]):
        difference = differences[metric]
        if difference is not None:
            value, low, high = difference["value"], difference["low"], difference["high"]
            gain = ViewGain(metric=metric, to=to, value=value, low=low, high=high)
            if "target" in row:
                gain["target"] = cast(RegressionRow, row)["target"]
            gains.append(gain)
    return gains


def _loss(statistics: FittingStatistics, weights: NDArray[np.float64]) -> float:
    if statistics.member_predictions.task == "regression":
        return float(weights @ statistics.error_gram @ weights)
    return float(-np.log(statistics.true_probabilities @ weights).mean())
