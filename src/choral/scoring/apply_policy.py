"""Applies a prediction policy: from member predictions to the prediction of each image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from choral.config import Average
from choral.ensembles.rules import Combiner
from choral.inference.prediction_types import ClassPrediction, MultilabelPrediction, Prediction, RegressionPrediction
from choral.metrics.per_sample import top_class
from choral.scoring.calibration_maps import CalibrationMap
from choral.scoring.decision_fitting import default_decision
from choral.scoring.policy import PredictionPolicy


def build_default_policy(
    task: str, classes: Sequence[str], members: Sequence[str], views: Sequence[str], average: Average = "probabilities"
) -> PredictionPolicy:
    """Return the policy of a run that was never calibrated: the mean over views and members, and the most probable class."""
    return PredictionPolicy(
        of="",
        task=task,
        classes=tuple(classes),
        members=tuple(members),
        views={name: 1 / len(views) for name in views},
        average=average,
        rule=Combiner("mean" if task == "regression" else "soft", task),
        calibration=CalibrationMap("none", task),
        conformal=None,
        decision=default_decision(task),
        unsure_below=None,
        fitted_on={},
        evaluation="",
    )


def apply_policy(
    policy: PredictionPolicy, names: Sequence[str], by_member: NDArray[np.float32], predictions: NDArray[np.float32]
) -> list[Prediction]:
    """Return the prediction of each image of a batch.

    Args:
        policy: of the run or bundle.
        names: (B,) names of the images; "": no name.
        by_member: (members, B, outputs) predictions of each member, averaged over views.
        predictions: (B, outputs) combined and calibrated, from `PredictionPolicy.combine`.
    """
    build = {
        "multiclass": _build_class_prediction,
        "multilabel": _build_multilabel_prediction,
        "regression": _build_regression_prediction,
    }[policy.task]
    result = []
    for row, name in enumerate(names):
        votes = dict(zip(policy.members, by_member[:, row], strict=True))
        result.append(build(policy, name, predictions[row : row + 1], votes))
    return result


def describe_policy(policy: PredictionPolicy) -> str:
    """Return one line that describes the policy of a run or a bundle."""
    parts = [policy.of]
    method = policy.calibration.method
    if method != "none":
        value = f" {policy.calibration.temperature:.4g}" if method == "temperature" else ""
        parts.append(f"calibrated by {method}{value}")
    decision = policy.decision
    if decision.kind == "costs":
        parts.append("least expected cost")
    elif decision.thresholds:
        thresholds = [
            f"{name} from {value:.3f} ({(decision.rules or {})[name]})" for name, value in decision.thresholds.items()
        ]
        parts.append("thresholds " + ", ".join(thresholds[:4]) + (" ..." if len(thresholds) > 4 else ""))
    if policy.conformal is not None:
        kind = "intervals" if policy.task == "regression" else "sets"
        parts.append(f"{kind} of {100 * policy.conformal.coverage:g} % coverage ({policy.conformal.score})")
    if policy.unsure_below is not None:
        parts.append(f"unsure below {policy.unsure_below:.3f}")
    if fitted := policy.fitted_on:
        parts.append(f"fitted on {fitted['split']} ({fitted['samples']} samples)")
    return "; ".join(parts)


def _build_class_prediction(
    policy: PredictionPolicy, image: str, predictions: NDArray[np.float32], votes: Mapping[str, NDArray[np.float32]]
) -> Prediction:
    names, chosen = policy.classes, int(policy.decide(predictions)[0])
    probability = float(predictions[0, chosen])
    unsure = None if policy.unsure_below is None else probability < policy.unsure_below
    return ClassPrediction(
        image,
        names[chosen],
        probability,
        tuple(predictions[0].tolist()),
        {name: (names[int(top_class(values))], float(values.max())) for name, values in votes.items()},
        possible=_list_possible(policy, predictions),
        unsure=unsure,
    )


def _build_multilabel_prediction(
    policy: PredictionPolicy, image: str, predictions: NDArray[np.float32], votes: Mapping[str, NDArray[np.float32]]
) -> Prediction:
    shares = dict(zip(policy.classes, predictions[0].tolist(), strict=True))
    assigned = _select_names(policy.classes, policy.decide(predictions)[0])
    by_member = {name: _select_names(policy.classes, policy.decide(values[None])[0]) for name, values in votes.items()}
    labels = {name: shares[name] for name in sorted(assigned, key=lambda name: -shares[name])}
    return MultilabelPrediction(image, labels, shares, by_member, possible=_list_possible(policy, predictions))


def _build_regression_prediction(
    policy: PredictionPolicy, image: str, predictions: NDArray[np.float32], votes: Mapping[str, NDArray[np.float32]]
) -> Prediction:
    names = policy.classes
    values = dict(zip(names, predictions[0].tolist(), strict=True))
    spread = np.stack(list(votes.values())).astype(np.float64).std(axis=0)
    by_member = {member: dict(zip(names, numbers.tolist(), strict=True)) for member, numbers in votes.items()}
    intervals: dict[str, tuple[float, float] | None] | None = None
    if policy.conformal is not None:
        half = dict(zip(names, policy.conformal.quantiles, strict=True))
        intervals = {
            name: (value - half[name], value + half[name]) if math.isfinite(half[name]) else None
            for name, value in values.items()
        }
    return RegressionPrediction(
        image, values, dict(zip(names, spread.tolist(), strict=True)), by_member, intervals=intervals
    )


def _list_possible(policy: PredictionPolicy, predictions: NDArray[np.float32]) -> tuple[str, ...] | None:
    """Return the classes or labels of the prediction set, most probable first; None: the policy has no sets."""
    if policy.conformal is None:
        return None
    in_set = policy.conformal.sets(predictions)[0]
    order = np.argsort(-predictions[0], kind="stable")
    return tuple(policy.classes[place] for place in order if in_set[place])


def _select_names(names: Sequence[str], mask: NDArray[np.bool_]) -> tuple[str, ...]:
    return tuple(name for name, selected in zip(names, mask, strict=True) if selected)
