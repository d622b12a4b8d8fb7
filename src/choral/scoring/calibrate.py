"""Calibrate a run: fit and choose on validation data, judge on what is scored, and keep it as RUN/answer.json.

The validation split chose the checkpoints, too, and rules with weights were fitted to it: it is not as untouched as
split-conformal prediction asks for. No network was trained on it, and what comes after the map is chosen on cross-fitted
probabilities, so that what is left is small; the figures on the split that is scored tell.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from choral.config import Config
from choral.core.errors import ConfigError, did_you_mean
from choral.core.files import sha256_of
from choral.inference.ledger import Ledger
from choral.metrics.decision import sure_from
from choral.metrics.per_sample import label_log_losses, log_losses
from choral.runs.run_dir import RunDir
from choral.scoring.calibration_maps import METHODS, CalibrationMap, cross_fitted, fit_map
from choral.scoring.decision_fitting import Evidence, conformal_of, decision_of, plain_decision
from choral.scoring.policy import Conformal, PredictionPolicy, answer_path, write_answer
from choral.scoring.policy_evaluation import before_and_after, judged_decision, judged_sets, judged_unsure
from choral.scoring.predictor import usual_name
from choral.scoring.scored_predictor import ScoredPredictor, recipe_of

_COMPARED = 1_000_000  # numbers: of more, methods that were not asked for are not fitted for comparison


@dataclass(frozen=True)
class Asked:
    """What a user wants fitted and chosen.

    Attributes:
        of: name of the predictor; "": the usual one, see `predictor_of`.
        method: one of `METHODS`; auto: of the least cross-fitted log loss on validation, among equals the simplest; "":
            temperature, of numbers none.
        coverage: of sets or intervals; None: none of them.
        sets: score of the sets, see `conformal_of`; "": the usual one.
        by_class: whether each class has its own quantile.
        costs, thresholds: see `decision_of`.
        unsure_below: see `sure_from`; "": nothing is called unsure.
    """

    of: str = ""
    method: str = ""
    coverage: float | None = 0.9
    sets: str = ""
    by_class: bool = False
    costs: str = ""
    thresholds: Sequence[str] = ()
    unsure_below: str = ""


def calibrate_run(folder: RunDir, config: Config, split: str, asked: Asked) -> dict[str, Any]:
    """Fit, choose, judge and keep.

    Args:
        folder, config: of the run.
        split: that is scored; nothing is fitted to it or chosen on it.
        asked: what.

    Returns:
        The report as plain JSON; `answer` is the content of answer.json.

    Raises:
        ConfigError: what cannot be done, or the split is the one that things are fitted on.
        DataError: a split is not evaluated, or with other weights.
    """
    recipe = recipe_of(folder, config, split, asked.of or usual_name(folder, config, split))
    scored = recipe.predictor.ledger
    task = scored.meta.task
    answering, losses = fitted_answer(recipe, asked)
    report = {
        "run": folder.name,
        "of": recipe.predictor.name,
        "task": task,
        "classes": list(scored.classes),
        "split": scored.meta.split,
        "n": len(scored),
        "method": answering.calibration.method,
        "cross_fitted_log_loss": losses,
        **_judged(answering, scored, recipe.predictor.predictions),
        "answer": answering.to_json(),
        "file": str(answer_path(folder)),
    }
    write_answer(folder, answering)
    content: dict[str, Any] = json.loads(json.dumps(report, allow_nan=False))
    return content


def fitted_answer(recipe: ScoredPredictor, asked: Asked) -> tuple[PredictionPolicy, dict[str, float]]:
    """Return how a predictor answers, all of it fitted and chosen on the validation ledger of its recipe.

    Returns:
        It, and the cross-fitted log loss on validation of each method of calibration that was compared.

    Raises:
        ConfigError: as `calibrate_run`.
        DataError: too few samples.
    """
    validation = _validation(recipe)
    task, before = validation.meta.task, recipe.of(validation)
    method, losses = _method(asked.method, recipe, validation, before)
    calibration = CalibrationMap("none", task)
    sure = before
    if task != "regression":
        calibration = fit_map(method, task, validation.labels, before)
        sure = cross_fitted(method, task, validation.keys, validation.labels, before)
    evidence = Evidence(task, validation.classes, validation.labels, sure)
    return _chosen(_answering(recipe, validation, calibration), evidence, asked), losses


def _validation(recipe: ScoredPredictor) -> Ledger:
    """Return the ledger that things are fitted on; ConfigError where there is none, or none of probabilities."""
    predictor, validation = recipe.predictor, recipe.known.validation
    if validation is None:
        raise ConfigError(f"--split {predictor.ledger.meta.split}: nothing can be fitted: {recipe.known.why_not}")
    if predictor.ledger.meta.task != "regression" and not predictor.gives_probabilities:
        raise ConfigError(f"--of {predictor.name}: gives shares of votes, no probabilities to calibrate; choose soft")
    missing = [name for name in recipe.columns if name not in validation.views]
    if missing:
        raise ConfigError(
            f"{validation.path}: has no view {', '.join(missing)}: evaluate both splits under the same views"
        )
    return validation


def _method(
    asked: str, recipe: ScoredPredictor, validation: Ledger, predictions: NDArray[np.float32]
) -> tuple[str, dict[str, float]]:
    """Return the method, and the cross-fitted log loss on validation of each that was compared."""
    task = validation.meta.task
    names = (*METHODS, "auto")
    if asked and asked not in names:
        raise ConfigError(f"--method: no method '{asked}'.{did_you_mean(asked, names)} There are: {', '.join(names)}")
    if task == "regression":
        if asked not in ("", "none", "auto"):
            raise ConfigError(f"--method {asked}: numbers have no probabilities to calibrate; choose none")
        return "none", {}
    labels, losses = validation.labels, {}
    small = asked == "auto" or predictions.size <= _COMPARED
    for method in METHODS if small else dict.fromkeys(("none", asked or "temperature")):
        found = cross_fitted(method, task, validation.keys, labels, predictions)
        each = label_log_losses(labels > 0, found) if task == "multilabel" else log_losses(labels, found)
        losses[method] = float(each.mean())
    return min(losses, key=losses.__getitem__) if asked == "auto" else asked or "temperature", losses


def _answering(recipe: ScoredPredictor, validation: Ledger, calibration: CalibrationMap) -> PredictionPolicy:
    """Return the answer before anything is chosen."""
    meta = recipe.predictor.ledger.meta
    return PredictionPolicy(
        of=recipe.predictor.name,
        task=meta.task,
        classes=meta.classes,
        members=recipe.members,
        views=recipe.views,
        average=recipe.average,
        rule=recipe.rule,
        calibration=calibration,
        conformal=None,
        decision=plain_decision(meta.task),
        unsure_below=None,
        fitted_on={
            "split": validation.meta.split,
            "samples": len(validation),
            "sha256": sha256_of(validation.path),
        },
        evaluation=meta.evaluation,
    )


def _chosen(answering: PredictionPolicy, evidence: Evidence, asked: Asked) -> PredictionPolicy:
    """Return the answer with sets and decision."""
    conformal: Conformal | None = None
    if asked.coverage is not None:
        conformal = conformal_of(evidence, asked.sets, asked.coverage, asked.by_class)
    elif asked.sets or asked.by_class:
        raise ConfigError("--set, --by-class: belong to --coverage")
    answering = replace(answering, conformal=conformal, decision=decision_of(evidence, asked.costs, asked.thresholds))
    if not asked.unsure_below:
        return answering
    if evidence.task != "multiclass":
        raise ConfigError("--unsure-below: is for classes; sets and intervals say how sure labels and numbers are")
    decided = answering.decide(evidence.predictions)
    confidence = evidence.predictions[np.arange(len(decided)), decided]
    return replace(answering, unsure_below=sure_from(confidence, decided == evidence.labels, asked.unsure_below))


def _judged(answering: PredictionPolicy, scored: Ledger, before: NDArray[np.float32]) -> dict[str, Any]:
    """Return what it is all worth on the split that is scored."""
    labels = scored.labels
    after = answering.calibration(before)
    found: dict[str, Any] = {}
    if answering.task != "regression":
        found |= before_and_after(answering.task, labels, before, after)
    found["conformal"] = judged_sets(answering, labels, after) if answering.conformal is not None else None
    found["decision"] = judged_decision(answering, labels, after)
    found["unsure"] = judged_unsure(answering, labels, after) if answering.unsure_below is not None else None
    return found
