"""The prediction policy of a run: everything fitted or chosen on validation data, stored in RUN/answer.json.

It names the members and views, and defines how they are combined, calibrated and turned into decisions. It applies to the
weights that it was fitted to, and is refused with others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from choral.config import Average
from choral.core.errors import DataError
from choral.ensembles.member_predictions import MemberPredictions
from choral.ensembles.rules import Combiner, log_scores, probabilities_from_scores
from choral.inference.ledger import Ledger
from choral.metrics.conformal import conformal_scores, prediction_sets
from choral.metrics.decision import apply_threshold, minimize_expected_cost
from choral.metrics.per_sample import top_class
from choral.runs.run_dir import RunDir, read_json, write_json
from choral.scoring.calibration_maps import CalibrationMap

FORMAT = "choral-answer-1"
POLICY_FILE = "answer.json"
_EVEN = 0.5
_STALE = (
    "was fitted to other weights than the current ones, or with another evaluate.checkpoint; run `choral evaluate` and "
    "`choral calibrate` again, or delete it to predict without calibration and decision"
)


@dataclass(frozen=True)
class Conformal:
    """Conformal sets of classes or labels, or intervals of numbers, that contain the truth with a stated probability.

    Attributes:
        score: lac, aps or raps, see `choral.metrics.conformal`; residual for regression.
        coverage: the target probability.
        quantiles: one for all classes, or one per class, label or target; infinite where there are too few samples.
        samples: number of samples behind each quantile.
    """

    score: str
    coverage: float
    quantiles: tuple[float, ...]
    samples: tuple[int, ...]

    def sets(self, predictions: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return the prediction sets of (n, classes) probabilities, as an (n, classes) mask."""
        return prediction_sets(conformal_scores(predictions, self.score), np.array(self.quantiles))


@dataclass(frozen=True)
class Decision:
    """How probabilities become a decision.

    Attributes:
        kind: argmax: the most probable class. thresholds: the labels (multiclass: the class) whose probability reaches its
            threshold. costs: the class of the lowest expected cost. value: the predicted numbers (regression).
        thresholds: by class or label.
        rules: by class or label, how its threshold was chosen.
        costs: (classes, classes), true class by predicted class.
    """

    kind: str
    thresholds: Mapping[str, float] | None = None
    rules: Mapping[str, str] | None = None
    costs: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class PredictionPolicy:
    """How a run turns the predictions of its members under each view into one prediction per sample.

    Attributes:
        of: name of the calibrated predictor, such as soft+tta.
        task, classes: of the predictions.
        members: in the order of the rule's weights.
        views: canonical name to weight; the weights sum to 1.
        average: over views: of probabilities, geometric, or of logits (equal to geometric for softmax and sigmoid).
        rule: combines the members.
        calibration: of the combined probabilities.
        conformal: sets or intervals; None: neither.
        decision: applied to the calibrated probabilities.
        unsure_below: a class whose probability is lower is reported as unsure; None: never.
        fitted_on: split, number of samples and SHA-256 of the ledger; empty where nothing was fitted.
        evaluation: fingerprint of weights and inputs, as in the ledger.
    """

    of: str
    task: str
    classes: tuple[str, ...]
    members: tuple[str, ...]
    views: Mapping[str, float]
    average: Average
    rule: Combiner
    calibration: CalibrationMap
    conformal: Conformal | None
    decision: Decision
    unsure_below: float | None
    fitted_on: Mapping[str, Any]
    evaluation: str

    @property
    def gives_probabilities(self) -> bool:
        """Whether predictions are probabilities; numbers and shares of votes are not."""
        return self.rule.gives_probabilities

    def predict(self, stack: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the (n, classes) float32 calibrated predictions.

        Args:
            stack: (members, views, n, classes) float32 predictions, in the order of `members` and `views`.
        """
        return self.combine(self.average_views(stack))

    def combine(self, member_predictions: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the (n, classes) float32 calibrated predictions of members whose views are averaged."""
        return self.calibration(self.rule(member_predictions).predictions)

    def average_views(self, stack: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the predictions of each member, averaged over views: (members, n, classes) float32.

        Args:
            stack: as for `predict`.
        """
        weights = np.array(list(self.views.values()))
        if self.average == "probabilities" or self.task == "regression":
            mean: NDArray[np.float32] = np.einsum("v,mvnc->mnc", weights, stack, dtype=np.float64).astype(np.float32)
            return mean
        members, views, count, classes = stack.shape
        scores = log_scores(stack.reshape(-1, classes), self.task).reshape(members, views, count, classes)
        combined = np.einsum("v,mvnc->mnc", weights, scores, dtype=np.float64).reshape(-1, classes)
        return probabilities_from_scores(combined.astype(np.float32), self.task).reshape(members, count, classes)

    def decide(self, predictions: NDArray[np.float32]) -> NDArray[Any]:
        """Return the decided class of each sample, (n,) int64; multilabel: the decided labels, (n, labels) bool."""
        if self.task == "multilabel":
            return predictions >= self.thresholds
        if self.decision.kind == "costs":
            return minimize_expected_cost(predictions, np.array(self.decision.costs))
        if self.decision.kind == "thresholds" and self.decision.thresholds:
            ((name, value),) = self.decision.thresholds.items()
            return apply_threshold(predictions, self.classes.index(name), value)
        return top_class(predictions)

    @property
    def thresholds(self) -> NDArray[np.float32]:
        """The probability from which each label is assigned, (labels,) float32; multilabel only."""
        chosen = self.decision.thresholds or {}
        # Without a chosen threshold, a label needs more than one half, as without an answer.json.
        even = float(np.nextafter(np.float32(_EVEN), np.float32(1)))
        return np.array([chosen.get(name, even) for name in self.classes], np.float32)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON for `from_json`; infinite quantiles are null."""
        conformal = None
        if self.conformal is not None:
            quantiles = [value if math.isfinite(value) else None for value in self.conformal.quantiles]
            conformal = {**asdict(self.conformal), "quantiles": quantiles, "samples": list(self.conformal.samples)}
        decision: dict[str, Any] = {"kind": self.decision.kind}
        if self.decision.kind == "thresholds":
            decision |= {"thresholds": dict(self.decision.thresholds or {}), "rules": dict(self.decision.rules or {})}
        if self.decision.kind == "costs":
            decision["costs"] = [list(row) for row in self.decision.costs]
        return {
            "format": FORMAT,
            "of": self.of,
            "task": self.task,
            "classes": list(self.classes),
            "members": list(self.members),
            "rule": {
                "rule": self.rule.rule,
                "weights": list(self.rule.weights),
                "biases": list(self.rule.biases),
                "groups": [list(group) for group in self.rule.groups],
                "temperature": self.rule.temperature,
            },
            "views": dict(self.views),
            "average": self.average,
            "calibration": self.calibration.to_json(),
            "conformal": conformal,
            "decision": decision,
            "unsure_below": self.unsure_below,
            "fitted_on": dict(self.fitted_on),
            "evaluation": self.evaluation,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> PredictionPolicy:
        """Read the result of `to_json`; raises ValueError, KeyError or TypeError on anything else."""
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}, expected {FORMAT!r}")
        task, rule, decision = str(content["task"]), content["rule"], content["decision"]
        fitted = content["fitted_on"]
        found = cls(
            of=str(content["of"]),
            task=task,
            classes=tuple(content["classes"]),
            members=tuple(content["members"]),
            views={str(name): float(weight) for name, weight in content["views"].items()},
            average=_parse_average(content["average"]),
            rule=Combiner(
                rule["rule"],
                task,
                tuple(rule["weights"]),
                tuple(rule["biases"]),
                tuple(map(tuple, rule["groups"])),
                float(rule["temperature"]),
            ),
            calibration=CalibrationMap.from_json(content["calibration"], task),
            conformal=_parse_conformal(content["conformal"]),
            decision=Decision(
                decision["kind"],
                decision.get("thresholds"),
                decision.get("rules"),
                tuple(map(tuple, decision.get("costs", ()))),
            ),
            unsure_below=content["unsure_below"],
            fitted_on={**fitted, "split": str(fitted["split"]), "samples": int(fitted["samples"])} if fitted else {},
            evaluation=str(content["evaluation"]),
        )
        found._check()
        return found

    def _check(self) -> None:
        """Raise ValueError where parts do not match, as after an edit by hand."""
        classes, decision = len(self.classes), self.decision
        if unknown := sorted(set(decision.thresholds or {}) - set(self.classes)):
            raise ValueError(f"thresholds of unknown classes {', '.join(unknown)}")
        if decision.kind == "costs" and [len(row) for row in decision.costs] != [classes] * classes:
            raise ValueError(f"costs are not {classes} x {classes}")
        if self.conformal is not None and len(self.conformal.quantiles) not in (1, classes):
            raise ValueError(f"{len(self.conformal.quantiles)} quantiles of {classes} classes")
        count = len(self.rule.groups) or len(self.members)
        if not count or len(self.rule.weights) not in (0, count):
            raise ValueError(f"{len(self.rule.weights)} weights of {count} members")


def _parse_average(name: str) -> Average:
    if name not in get_args(Average):
        raise ValueError(f"average {name!r}")
    return cast(Average, name)


def _parse_conformal(content: Mapping[str, Any] | None) -> Conformal | None:
    if content is None:
        return None
    quantiles = tuple(math.inf if value is None else float(value) for value in content["quantiles"])
    return Conformal(content["score"], float(content["coverage"]), quantiles, tuple(content["samples"]))


def policy_path(folder: RunDir) -> Path:
    """Return the path of a run's answer.json."""
    return folder.path / POLICY_FILE


def read_policy(folder: RunDir) -> PredictionPolicy | None:
    """Return the policy of a run; None where it has not been calibrated.

    Raises:
        DataError: the file is damaged.
    """
    path = policy_path(folder)
    if not path.is_file():
        return None
    try:
        return PredictionPolicy.from_json(read_json(path) or {})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: is damaged ({error!r}); run `choral calibrate` again, or delete it") from error


def write_policy(folder: RunDir, policy: PredictionPolicy) -> None:
    """Write the policy of a run to RUN/answer.json."""
    write_json(policy_path(folder), policy.to_json())


def check_policy(folder: RunDir, policy: PredictionPolicy, evaluation: str) -> None:
    """Refuse a policy that was fitted to other weights, inputs or classes.

    Raises:
        DataError: the fingerprints differ.
    """
    if policy.evaluation != evaluation:
        raise DataError(f"{policy_path(folder)}: {_STALE}")


def reason_policy_not_applicable(policy: PredictionPolicy, ledger: Ledger) -> str:
    """Return the reason why a policy cannot be applied to a ledger; "" where it can."""
    if policy.evaluation != ledger.meta.evaluation:
        return _STALE
    if policy.fitted_on["split"] == ledger.meta.split:
        return f"was fitted on '{ledger.meta.split}', which therefore cannot be scored with it"
    missing = [name for name in select_policy_inputs(policy, ledger).views if name not in ledger.views]
    return f"needs {', '.join(missing)} of {ledger.path}: evaluate with evaluate.keep_views=true" if missing else ""


def select_policy_inputs(policy: PredictionPolicy, ledger: Ledger) -> MemberPredictions:
    """Return the members and views of a ledger that a policy combines."""
    meta, views, weights = ledger.meta, tuple(policy.views), tuple(policy.views.values())
    if views == meta.tta_views and len(set(weights)) == 1 and policy.average == meta.average:
        return MemberPredictions(ledger, policy.members, ("tta",))
    return MemberPredictions(ledger, policy.members, views, view_weights=weights)
