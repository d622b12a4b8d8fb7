"""Calibrates a run: fits a policy on validation data, evaluates it on the scored split, and writes RUN/answer.json.

The validation split also chose the checkpoints, and rules with weights were fitted to it, so it is less independent than
split-conformal prediction assumes. No model was trained on it, and everything after the calibration map is fitted to
cross-fitted probabilities, so the remaining bias is small; the metrics on the scored split measure it.
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
from choral.core.files import compute_sha256
from choral.inference.ledger import Ledger
from choral.metrics.decision import choose_confidence_threshold
from choral.metrics.per_sample import log_losses, multilabel_log_losses
from choral.runs.run_dir import RunDir
from choral.scoring.calibration_maps import METHODS, CalibrationMap, cross_fit, fit_calibration_map
from choral.scoring.decision_fitting import HeldOutPredictions, default_decision, fit_conformal, fit_decision
from choral.scoring.policy import Conformal, PredictionPolicy, policy_path, write_policy
from choral.scoring.policy_evaluation import evaluate_calibration, evaluate_decision, evaluate_sets, evaluate_unsure
from choral.scoring.predictor import default_predictor_name
from choral.scoring.scored_predictor import ScoredPredictor, load_scored_predictor

_MAX_COMPARED = 1_000_000  # numbers: on larger ledgers only the requested method is compared with none


@dataclass(frozen=True)
class CalibrationRequest:
    """What to fit.

    Attributes:
        of: name of the predictor; "": `default_predictor_name`.
        method: one of `METHODS`; auto: the one with the lowest cross-fitted log loss on validation, the simplest of equals;
            "": temperature, for regression none.
        coverage: of sets or intervals; None: neither.
        sets: score of the sets, see `fit_conformal`; "": the default of the task.
        by_class: whether each class has its own quantile.
        costs, thresholds: see `fit_decision`.
        unsure_below: see `choose_confidence_threshold`; "": no class is reported as unsure.
    """

    of: str = ""
    method: str = ""
    coverage: float | None = 0.9
    sets: str = ""
    by_class: bool = False
    costs: str = ""
    thresholds: Sequence[str] = ()
    unsure_below: str = ""


def calibrate_run(folder: RunDir, config: Config, split: str, request: CalibrationRequest) -> dict[str, Any]:
    """Fit, evaluate and write the policy of a run.

    Args:
        folder, config: of the run.
        split: to evaluate on; nothing is fitted to it or chosen on it.
        request: what to fit.

    Returns:
        The report as plain JSON; `answer` is the content of answer.json.

    Raises:
        ConfigError: the request does not fit the task, or `split` is the one that is fitted on.
        DataError: a split has not been evaluated, or with other weights.
    """
    name = request.of or default_predictor_name(folder, config, split)
    source = load_scored_predictor(folder, config, split, name)
    scored = source.predictor.ledger
    policy, losses = fit_policy(source, request)
    report = {
        "run": folder.name,
        "of": source.predictor.name,
        "task": scored.meta.task,
        "classes": list(scored.classes),
        "split": scored.meta.split,
        "n": len(scored),
        "method": policy.calibration.method,
        "cross_fitted_log_loss": losses,
        **_evaluate_policy(policy, scored, source.predictor.predictions),
        "answer": policy.to_json(),
        "file": str(policy_path(folder)),
    }
    write_policy(folder, policy)
    content: dict[str, Any] = json.loads(json.dumps(report, allow_nan=False))
    return content


def fit_policy(source: ScoredPredictor, request: CalibrationRequest) -> tuple[PredictionPolicy, dict[str, float]]:
    """Return the policy of a predictor, fitted on its validation ledger.

    Returns:
        The policy, and the cross-fitted log loss on validation of each compared calibration method.

    Raises:
        ConfigError: as `calibrate_run`.
        DataError: too few samples.
    """
    validation = _check_validation(source)
    task, before = validation.meta.task, source.predict(validation)
    method, losses = _choose_method(request.method, validation, before)
    calibration = CalibrationMap("none", task)
    after = before
    if task != "regression":
        calibration = fit_calibration_map(method, task, validation.labels, before)
        after = cross_fit(method, task, validation.keys, validation.labels, before)
    held_out = HeldOutPredictions(task, validation.classes, validation.labels, after)
    return _fit_decisions(_build_policy(source, validation, calibration), held_out, request), losses


def _check_validation(source: ScoredPredictor) -> Ledger:
    """Return the validation ledger; ConfigError where there is none, or a predictor without probabilities."""
    predictor, validation = source.predictor, source.fitting_data.validation
    if validation is None:
        reason = source.fitting_data.no_validation_reason
        raise ConfigError(f"--split {predictor.ledger.meta.split}: nothing can be fitted: {reason}")
    if predictor.ledger.meta.task != "regression" and not predictor.gives_probabilities:
        raise ConfigError(f"--of {predictor.name}: gives shares of votes, no probabilities to calibrate; choose soft")
    missing = [name for name in source.columns if name not in validation.views]
    if missing:
        raise ConfigError(
            f"{validation.path}: has no view {', '.join(missing)}: evaluate both splits under the same views"
        )
    return validation


def _choose_method(method: str, validation: Ledger, predictions: NDArray[np.float32]) -> tuple[str, dict[str, float]]:
    """Return the calibration method, and the cross-fitted log loss on validation of each compared method."""
    task = validation.meta.task
    names = (*METHODS, "auto")
    if method and method not in names:
        raise ConfigError(f"--method: no method '{method}'.{did_you_mean(method, names)} There are: {', '.join(names)}")
    if task == "regression":
        if method not in ("", "none", "auto"):
            raise ConfigError(f"--method {method}: numbers have no probabilities to calibrate; choose none")
        return "none", {}
    labels, losses = validation.labels, {}
    compare_all = method == "auto" or predictions.size <= _MAX_COMPARED
    for name in METHODS if compare_all else dict.fromkeys(("none", method or "temperature")):
        calibrated = cross_fit(name, task, validation.keys, labels, predictions)
        multilabel = task == "multilabel"
        each = multilabel_log_losses(labels > 0, calibrated) if multilabel else log_losses(labels, calibrated)
        losses[name] = float(each.mean())
    return min(losses, key=losses.__getitem__) if method == "auto" else method or "temperature", losses


def _build_policy(source: ScoredPredictor, validation: Ledger, calibration: CalibrationMap) -> PredictionPolicy:
    """Return the policy with the default decision and without sets."""
    meta = source.predictor.ledger.meta
    return PredictionPolicy(
        of=source.predictor.name,
        task=meta.task,
        classes=meta.classes,
        members=source.members,
        views=source.views,
        average=source.average,
        rule=source.rule,
        calibration=calibration,
        conformal=None,
        decision=default_decision(meta.task),
        unsure_below=None,
        fitted_on={
            "split": validation.meta.split,
            "samples": len(validation),
            "sha256": compute_sha256(validation.path),
        },
        evaluation=meta.evaluation,
    )


def _fit_decisions(
    policy: PredictionPolicy, held_out: HeldOutPredictions, request: CalibrationRequest
) -> PredictionPolicy:
    """Return the policy with sets, decision and confidence threshold."""
    conformal: Conformal | None = None
    if request.coverage is not None:
        conformal = fit_conformal(held_out, request.sets, request.coverage, request.by_class)
    elif request.sets or request.by_class:
        raise ConfigError("--set, --by-class: need --coverage")
    policy = replace(policy, conformal=conformal, decision=fit_decision(held_out, request.costs, request.thresholds))
    if not request.unsure_below:
        return policy
    if held_out.task != "multiclass":
        raise ConfigError("--unsure-below: only for multiclass; sets and intervals show the uncertainty of other tasks")
    decided = policy.decide(held_out.predictions)
    confidence = held_out.predictions[np.arange(len(decided)), decided]
    threshold = choose_confidence_threshold(confidence, decided == held_out.labels, request.unsure_below)
    return replace(policy, unsure_below=threshold)


def _evaluate_policy(policy: PredictionPolicy, scored: Ledger, before: NDArray[np.float32]) -> dict[str, Any]:
    """Return the metrics of calibration, sets and decisions on the scored split."""
    labels = scored.labels
    after = policy.calibration(before)
    found: dict[str, Any] = {}
    if policy.task != "regression":
        found |= evaluate_calibration(policy.task, labels, before, after)
    found["conformal"] = evaluate_sets(policy, labels, after) if policy.conformal is not None else None
    found["decision"] = evaluate_decision(policy, labels, after)
    found["unsure"] = evaluate_unsure(policy, labels, after) if policy.unsure_below is not None else None
    return found
