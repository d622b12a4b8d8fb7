"""From what members say about an image to what the run answers: combined, calibrated and decided."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from choral.config import Average
from choral.ensembles.rules import Combiner
from choral.inference.prediction_types import Answer, ClassPrediction, MultilabelPrediction, RegressionPrediction
from choral.metrics.per_sample import top_class
from choral.scoring.calibration_maps import CalibrationMap
from choral.scoring.decision_fitting import plain_decision
from choral.scoring.policy import PredictionPolicy


def plain_answering(
    task: str, classes: Sequence[str], members: Sequence[str], views: Sequence[str], average: Average = "probabilities"
) -> PredictionPolicy:
    """Return how a run answers that was never calibrated: the mean over views and members, and the most probable."""
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
        decision=plain_decision(task),
        unsure_below=None,
        fitted_on={},
        evaluation="",
    )


def answers_of(
    answering: PredictionPolicy, names: Sequence[str], by_member: NDArray[np.float32], said: NDArray[np.float32]
) -> list[Answer]:
    """Return the answer for each image of a batch.

    Args:
        answering: how.
        names: (B,) what the images are called; "" where they have no name.
        by_member: (members, B, outputs) what each member that is heard predicts, its views averaged.
        said: (B, outputs) what they say together, calibrated: `PredictionPolicy.said`.
    """
    make = {"multilabel": _labels, "regression": _numbers}.get(answering.task, _class)
    found = []
    for row, name in enumerate(names):
        votes = dict(zip(answering.members, by_member[:, row], strict=True))
        found.append(make(answering, name, said[row : row + 1], votes))
    return found


def described(answering: PredictionPolicy) -> str:
    """Return in one line how a run or a bundle answers."""
    parts = [answering.of]
    method = answering.calibration.method
    if method != "none":
        value = f" {answering.calibration.temperature:.4g}" if method == "temperature" else ""
        parts.append(f"calibrated by {method}{value}")
    decision = answering.decision
    if decision.kind == "costs":
        parts.append("least expected cost")
    elif decision.thresholds:
        shown = [
            f"{name} from {value:.3f} ({(decision.rules or {})[name]})" for name, value in decision.thresholds.items()
        ]
        parts.append("thresholds " + ", ".join(shown[:4]) + (" ..." if len(shown) > 4 else ""))
    if answering.conformal is not None:
        kind = "intervals" if answering.task == "regression" else "sets"
        parts.append(f"{kind} of {100 * answering.conformal.coverage:g} % coverage ({answering.conformal.score})")
    if answering.unsure_below is not None:
        parts.append(f"unsure below {answering.unsure_below:.3f}")
    if fitted := answering.fitted_on:
        parts.append(f"fitted on {fitted['split']} ({fitted['samples']} samples)")
    return "; ".join(parts)


def _class(
    answering: PredictionPolicy, image: str, said: NDArray[np.float32], votes: Mapping[str, NDArray[np.float32]]
) -> Answer:
    names, chosen = answering.classes, int(answering.decide(said)[0])
    probability = float(said[0, chosen])
    unsure = None if answering.unsure_below is None else probability < answering.unsure_below
    return ClassPrediction(
        image,
        names[chosen],
        probability,
        tuple(said[0].tolist()),
        {name: (names[int(top_class(values))], float(values.max())) for name, values in votes.items()},
        possible=_possible(answering, said),
        unsure=unsure,
    )


def _labels(
    answering: PredictionPolicy, image: str, said: NDArray[np.float32], votes: Mapping[str, NDArray[np.float32]]
) -> Answer:
    shares = dict(zip(answering.classes, said[0].tolist(), strict=True))
    given = _named(answering.classes, answering.decide(said)[0])
    by_member = {name: _named(answering.classes, answering.decide(values[None])[0]) for name, values in votes.items()}
    labels = {name: shares[name] for name in sorted(given, key=lambda name: -shares[name])}
    return MultilabelPrediction(image, labels, shares, by_member, possible=_possible(answering, said))


def _numbers(
    answering: PredictionPolicy, image: str, said: NDArray[np.float32], votes: Mapping[str, NDArray[np.float32]]
) -> Answer:
    names = answering.classes
    values = dict(zip(names, said[0].tolist(), strict=True))
    spread = np.stack(list(votes.values())).astype(np.float64).std(axis=0)
    own = {member: dict(zip(names, numbers.tolist(), strict=True)) for member, numbers in votes.items()}
    intervals: dict[str, tuple[float, float] | None] | None = None
    if answering.conformal is not None:
        half = dict(zip(names, answering.conformal.quantiles, strict=True))
        intervals = {
            name: (value - half[name], value + half[name]) if math.isfinite(half[name]) else None
            for name, value in values.items()
        }
    return RegressionPrediction(image, values, dict(zip(names, spread.tolist(), strict=True)), own, intervals=intervals)


def _possible(answering: PredictionPolicy, said: NDArray[np.float32]) -> tuple[str, ...] | None:
    """Return the classes or labels of the set, most probable first; None: there are no sets."""
    if answering.conformal is None:
        return None
    held = answering.conformal.sets(said)[0]
    order = np.argsort(-said[0], kind="stable")
    return tuple(answering.classes[place] for place in order if held[place])


def _named(names: Sequence[str], mask: NDArray[np.bool_]) -> tuple[str, ...]:
    return tuple(name for name, held in zip(names, mask, strict=True) if held)
