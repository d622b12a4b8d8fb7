"""From a ledger to scores: members and combination rules, without and with test-time augmentation.

The result depends only on the ledger, on the data that rules are fitted on, and on the published scores passed in: no
clock, no random state, no forward pass. The same files give the same numbers, digit for digit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from choral.core.errors import DataError
from choral.ensembles.diversity import compute_diversity
from choral.ensembles.fitting_data import FittingData, fit_rules
from choral.ensembles.learned_views import learn_views, predictions_with_learned_views, reason_not_learnable, view_gains
from choral.ensembles.member_predictions import LEARNED, MemberPredictions
from choral.ensembles.multiclass_scores import score_multiclass
from choral.ensembles.multilabel_scores import score_multilabel
from choral.ensembles.regression_diversity import compute_regression_diversity
from choral.ensembles.regression_scores import score_regression
from choral.ensembles.rule_fitting import FittedRule
from choral.ensembles.rules import Combiner, mean_rule_name
from choral.ensembles.score_rows import (
    SEED,
    FittedRuleRow,
    LearnedViewsRow,
    Reference,
    ScoreRow,
    Scores,
    Section,
    TemperatureRow,
    interval_to_dict,
    scored_views,
)
from choral.ensembles.temperature import Temperature
from choral.inference.ledger import Ledger
from choral.metrics.intervals import DRAWS, LEVEL, bootstrap_means, mean_interval
from choral.metrics.per_sample import log_losses, multilabel_log_losses

__all__ = ["Scores", "score_run", "to_json"]


def score_run(
    ledger: Ledger,
    references: Sequence[Mapping[str, Any]] = (),
    missing_members: Mapping[str, str] | None = None,
    configured: int = 0,
    fitting_data: FittingData | None = None,
) -> Scores:
    """Score the members of a ledger and the rules that combine them.

    Rows of multiclass, in this order: `member/NAME`, `soft`, `hard`, then, if they can be fitted, `weighted`, `greedy`,
    `stack` and `boosting`; then, if the ledger holds averaged views, the same with the suffix "+tta"; then, if it keeps
    single views that can be weighted on validation data, `soft+learned`. Each has the accuracy and the log loss with 95
    % intervals, and the paired
    difference in accuracy to the best single member without averaged views: highest accuracy, among ties lowest log
    loss, then the first of the ledger. The best member is chosen on the scored samples, which favours it: the gains of
    the rules are understated rather than overstated. Multilabel and regression have a row for each metric (regression:
    also for each target) and name, see `score_multilabel` and `score_regression`.

    A ledger without the identity view is scored on its averaged views, else on its first view, with rows
    `member/NAME+VIEW` and so on; the best member is then the best of these.

    Args:
        ledger: of one split.
        references: published scores (name, metric, value, source), passed on.
        missing_members: members of the run without predictions in the ledger, and why; passed on.
        configured: number of members of the run; 0: as many as the ledger has.
        fitting_data: what rules can be fitted on, never the scored samples.

    Raises:
        DataError: the ledger has no samples.
    """
    if not len(ledger):
        raise DataError(f"{ledger.path}: holds no samples, so nothing can be scored")
    fitting_data = fitting_data or FittingData()
    sections, rules, temperatures = [], [], []
    for view, suffix in scored_views(ledger):
        predictions = MemberPredictions(ledger, ledger.members, (view,))
        fitted, temperature = fit_rules(predictions, fitting_data)
        sections.append(Section(predictions, suffix, {name: rule.combiner for name, rule in fitted.items()}))
        rules += [_describe_rule(f"{name}{suffix}", rule) for name, rule in fitted.items() if rule.fitted_on]
        if temperature is not None and fitting_data.validation is not None:
            temperatures.append(_score_temperature(f"soft{suffix}", predictions, temperature, fitting_data.validation))
    learned_views, section = _score_learned_views(ledger, fitting_data)
    sections += section
    rows: Sequence[ScoreRow]
    bootstrap: dict[str, float] = {"draws": DRAWS, "level": LEVEL, "seed": SEED}
    if ledger.meta.task == "multilabel":
        rows, best, bootstrap["draws_of_mean_ap"] = score_multilabel(sections)
    elif ledger.meta.task == "regression":
        rows, best = score_regression(sections)
    else:
        rows, best = score_multiclass(sections)
    regression = ledger.meta.task == "regression"
    return Scores(
        task=ledger.meta.task,
        rows=rows,
        references=[_reference(item) for item in references],
        split=ledger.meta.split,
        n=len(ledger),
        skipped=ledger.meta.skipped,
        members=list(ledger.members),
        configured=configured or len(ledger.members),
        missing_members=dict(missing_members or {}),
        tta_views=list(ledger.meta.tta_views) if "tta" in ledger.views else [],
        average=ledger.meta.average,
        best_member=best,
        rules=rules,
        temperatures=temperatures,
        learned_views=learned_views,
        not_fitted=fitting_data.no_validation_reason,
        not_stacked=fitting_data.no_stacking_reason if fitting_data.groups else "",
        dataset=ledger.meta.dataset,
        evaluation=ledger.meta.evaluation,
        bootstrap=bootstrap,
        diversity=compute_regression_diversity(ledger) if regression else compute_diversity(ledger),
    )


def _reference(item: Mapping[str, Any]) -> Reference:
    name, metric, source = (str(item[key]) for key in ("name", "metric", "source"))
    return Reference(name=name, metric=metric, value=float(item["value"]), source=source)


def _score_learned_views(ledger: Ledger, fitting_data: FittingData) -> tuple[LearnedViewsRow | None, list[Section]]:
    """Return how view weights were learned, and the section with their row; nothing if they cannot be learned."""
    if reason_not_learnable(ledger, fitting_data):
        return None, []
    learned = learn_views(ledger, ledger.members, fitting_data)
    predictions = predictions_with_learned_views(ledger, ledger.members, learned)
    name = mean_rule_name(predictions.task)
    rule = Combiner(name, predictions.task)
    baselines = {
        baseline: MemberPredictions(ledger, ledger.members, views)
        for baseline, views in learned.baselines(ledger).items()
    }
    row = LearnedViewsRow(
        name=f"{name}+{LEARNED}",
        weights=learned.weights,
        on=learned.fit.fitted_on,
        samples=learned.fit.samples,
        by=learned.fit.criterion,
        losses=dict(learned.losses),
        gains=view_gains(predictions, baselines, rule),
    )
    return row, [Section(predictions, f"+{LEARNED}", {name: rule}, with_members=False)]


def _describe_rule(name: str, fitted: FittedRule) -> FittedRuleRow:
    return FittedRuleRow(
        name=name,
        rule=fitted.combiner.rule,
        on=fitted.fitted_on,
        samples=fitted.samples,
        by=fitted.criterion,
        weights=fitted.weights,
    )


def _score_temperature(
    name: str, predictions: MemberPredictions, temperature: Temperature, fitted_on: Ledger
) -> TemperatureRow:
    """Return the effect of the soft vote's temperature on the scored split."""
    before = Combiner("soft", predictions.task)
    after = Combiner("soft", predictions.task, temperature=temperature.value)
    blocks: list[NDArray[np.float64]] = []
    for labels, stack in predictions.blocks():
        combined = [rule(stack).predictions for rule in (before, after)]
        if predictions.task == "multilabel":
            blocks.append(np.stack([multilabel_log_losses(labels > 0, values) for values in combined], axis=1))
        else:
            blocks.append(np.stack([log_losses(labels, values) for values in combined], axis=1))
    loss, tempered = np.concatenate(blocks).T
    drawn = bootstrap_means(np.stack([loss, tempered], axis=1), seed=SEED)
    return TemperatureRow(
        name=name,
        value=temperature.value,
        on=fitted_on.meta.split,
        samples=len(fitted_on),
        log_loss=interval_to_dict(mean_interval(loss, drawn[:, 0])),
        tempered=interval_to_dict(mean_interval(tempered, drawn[:, 1])),
        difference=interval_to_dict(mean_interval(tempered - loss, drawn[:, 1] - drawn[:, 0])),
    )


def to_json(scores: Scores) -> str:
    """Return the scores as JSON text; the same scores give the same text."""
    return json.dumps(scores, indent=1, ensure_ascii=False, allow_nan=False)
