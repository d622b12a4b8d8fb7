"""From a ledger to scores: members and what they say together, without and with test-time views.

The result is a function of the ledger, of what rules are fitted on, and of the published figures put beside it: no clock, no
random state, no forward pass. The same files give the same numbers, digit for digit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from choral.core.errors import DataError
from choral.ensembles.class_scores import class_rows
from choral.ensembles.diversity import diversity_of
from choral.ensembles.fitting_data import FittingData, rules_of
from choral.ensembles.learned_views import learn_views, learned_panel, view_gains, why_not_learned
from choral.ensembles.member_predictions import LEARNED, MemberPredictions
from choral.ensembles.multilabel_scores import label_rows
from choral.ensembles.regression_diversity import number_diversity
from choral.ensembles.regression_scores import number_rows
from choral.ensembles.rule_fitting import Fit
from choral.ensembles.rules import Combiner, mean_rule
from choral.ensembles.score_rows import (
    SEED,
    FittedRule,
    LearnedRow,
    Reference,
    Row,
    Scores,
    Section,
    TemperatureOf,
    numbers,
    scored_views,
)
from choral.ensembles.temperature import Temperature
from choral.inference.ledger import Ledger
from choral.metrics.intervals import DRAWS, LEVEL, interval_of, resampled_means
from choral.metrics.per_sample import label_log_losses, log_losses

__all__ = ["Scores", "score_run", "to_json"]


def score_run(
    ledger: Ledger,
    references: Sequence[Mapping[str, Any]] = (),
    absent: Mapping[str, str] | None = None,
    configured: int = 0,
    known: FittingData | None = None,
) -> Scores:
    """Score the members of a ledger and what they say together.

    Multilabel and regression have a row for each metric, and of regression for each target, and name: see `label_rows`
    and `number_rows`. Of multiclass, rows are, in this order: `member/NAME`, `soft`, `hard`, then, where they can be fitted,
    `weighted`, `greedy`, `stack` and `boosting`; then, where the ledger holds averaged views, `member/NAME+tta`,
    `soft+tta`, `hard+tta` and so on; then, where it keeps single views that can be weighted on validation data,
    `soft+learned`. Each has the accuracy with its 95 % interval, the log
    loss with its own, and the paired difference in accuracy to the best single member without averaged views: the one of
    the highest accuracy, among equals that of the lowest log loss, then the first of the ledger. It is chosen on the
    samples that are scored here, which flatters it: the gains of the votes are stated a little too low, rather than too
    high.

    A ledger without the identity view is scored by what it has: its averaged views, else its first view, named
    `member/NAME+VIEW` and so on; the best member is then the best of these.

    Args:
        ledger: of one split.
        references: published figures (name, metric, value, source) that are passed on.
        absent: members of the run that the ledger is without, and why; passed on.
        configured: members of the run; 0: as many as have columns.
        known: what rules can be fitted on: never the samples that are scored.

    Raises:
        DataError: a ledger without a sample.
    """
    if not len(ledger):
        raise DataError(f"{ledger.path}: holds no sample, nothing can be scored")
    known = known or FittingData()
    sections, fitted, temperatures = [], [], []
    for view, suffix in scored_views(ledger):
        panel = MemberPredictions(ledger, ledger.members, (view,))
        fits, temperature = rules_of(panel, known)
        sections.append(Section(panel, suffix, {name: fit.combiner for name, fit in fits.items()}))
        fitted += [_fitted(f"{name}{suffix}", fit) for name, fit in fits.items() if fit.on]
        if temperature is not None and known.validation is not None:
            temperatures.append(_temperature(f"soft{suffix}", panel, temperature, known.validation))
    learned, section = _learned(ledger, known)
    sections += section
    rows: Sequence[Row]
    bootstrap: dict[str, float] = {"draws": DRAWS, "level": LEVEL, "seed": SEED}
    if ledger.meta.task == "multilabel":
        rows, best, bootstrap["draws_of_mean_ap"] = label_rows(sections)
    elif ledger.meta.task == "regression":
        rows, best = number_rows(sections)
    else:
        rows, best = class_rows(sections)
    return Scores(
        task=ledger.meta.task,
        rows=rows,
        references=[_published(item) for item in references],
        split=ledger.meta.split,
        n=len(ledger),
        skipped=ledger.meta.skipped,
        members=list(ledger.members),
        configured=configured or len(ledger.members),
        absent=dict(absent or {}),
        tta_views=list(ledger.meta.tta_views) if "tta" in ledger.views else [],
        average=ledger.meta.average,
        best_member=best,
        rules=fitted,
        temperatures=temperatures,
        learned_views=learned,
        not_fitted=known.why_not,
        not_stacked=known.no_stack if known.groups else "",
        dataset=ledger.meta.dataset,
        evaluation=ledger.meta.evaluation,
        bootstrap=bootstrap,
        diversity=number_diversity(ledger) if ledger.meta.task == "regression" else diversity_of(ledger),
    )


def _published(item: Mapping[str, Any]) -> Reference:
    name, metric, source = (str(item[key]) for key in ("name", "metric", "source"))
    return Reference(name=name, metric=metric, value=float(item["value"]), source=source)


def _learned(ledger: Ledger, known: FittingData) -> tuple[LearnedRow | None, list[Section]]:
    """Return the row of the mean over members under learned weights of views, and what stands behind it; or nothing."""
    if why_not_learned(ledger, known):
        return None, []
    learned = learn_views(ledger, ledger.members, known)
    panel = learned_panel(ledger, ledger.members, learned)
    name = mean_rule(panel.task)
    rule = Combiner(name, panel.task)
    rivals = {to: MemberPredictions(ledger, ledger.members, views) for to, views in learned.rivals(ledger).items()}
    row = LearnedRow(
        name=f"{name}+{LEARNED}",
        weights=learned.weights,
        on=learned.fit.on,
        samples=learned.fit.samples,
        by=learned.fit.by,
        losses=dict(learned.losses),
        gains=view_gains(panel, rivals, rule),
    )
    return row, [Section(panel, f"+{LEARNED}", {name: rule}, with_members=False)]


def _fitted(name: str, fit: Fit) -> FittedRule:
    rule = fit.combiner.rule
    return FittedRule(name=name, rule=rule, on=fit.on, samples=fit.samples, by=fit.by, weights=fit.weights)


def _temperature(name: str, panel: MemberPredictions, found: Temperature, fitted_on: Ledger) -> TemperatureOf:
    """Return what a temperature of the soft vote is worth on what is scored."""
    before, after = Combiner("soft", panel.task), Combiner("soft", panel.task, temperature=found.value)
    losses: list[NDArray[np.float64]] = []
    for labels, stack in panel.blocks():
        said = [rule(stack).predictions for rule in (before, after)]
        if panel.task == "multilabel":
            losses.append(np.stack([label_log_losses(labels > 0, values) for values in said], axis=1))
        else:
            losses.append(np.stack([log_losses(labels, values) for values in said], axis=1))
    plain, tempered = np.concatenate(losses).T
    drawn = resampled_means(np.stack([plain, tempered], axis=1), seed=SEED)
    return TemperatureOf(
        name=name,
        value=found.value,
        on=fitted_on.meta.split,
        samples=len(fitted_on),
        log_loss=numbers(interval_of(plain, drawn[:, 0])),
        tempered=numbers(interval_of(tempered, drawn[:, 1])),
        difference=numbers(interval_of(tempered - plain, drawn[:, 1] - drawn[:, 0])),
    )


def to_json(scores: Scores) -> str:
    """Return the scores as JSON text; the same scores give the same text."""
    return json.dumps(scores, indent=1, ensure_ascii=False, allow_nan=False)
