"""How a run answers: RUN/answer.json holds all that was fitted or chosen on validation data, and is used for new images.

Which members and views are heard, how they are combined, calibrated, and what is decided. It holds for the weights that it
was fitted to alone, and is refused with others.
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
from choral.ensembles.rules import Combiner, log_scores, probabilities_of
from choral.inference.ledger import Ledger
from choral.metrics.conformal import conformal_scores, prediction_sets
from choral.metrics.decision import least_cost, with_threshold
from choral.metrics.per_sample import top_class
from choral.runs.run_dir import RunDir, read_json, write_json
from choral.scoring.calibration_maps import CalibrationMap

FORMAT = "choral-answer-1"
FILE = "answer.json"
_EVEN = 0.5
_STALE = (
    "was fitted to other weights than there are now, or with another evaluate.checkpoint; run `choral evaluate` and "
    "`choral calibrate` again, or delete it to go without calibration and decision"
)


@dataclass(frozen=True)
class Conformal:
    """Sets of classes or labels, or intervals around numbers, that hold the truth with a stated probability.

    Attributes:
        score: lac, aps or raps, see `choral.metrics.conformal`; residual: of numbers.
        coverage: that was asked for.
        quantiles: one for all classes, or one of each class, label or target; infinite where so few samples cannot say.
        samples: of the quantile, or of each one.
    """

    score: str
    coverage: float
    quantiles: tuple[float, ...]
    samples: tuple[int, ...]

    def sets(self, predictions: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return which classes or labels (n, classes) probabilities leave possible, (n, classes) bool."""
        return prediction_sets(conformal_scores(predictions, self.score), np.array(self.quantiles))


@dataclass(frozen=True)
class Decision:
    """What is answered, given probabilities.

    Attributes:
        kind: argmax: the most probable class. thresholds: of labels those, of classes the one, that reach theirs. costs:
            the class of the least expected cost. value: of numbers, themselves.
        thresholds: of some classes, or of all labels.
        rules: how each was chosen.
        costs: (classes, classes) of the true class (row) when another (column) is answered.
    """

    kind: str
    thresholds: Mapping[str, float] | None = None
    rules: Mapping[str, str] | None = None
    costs: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class PredictionPolicy:
    """What a run says about a sample, given what its members say about it under each view.

    Attributes:
        of: name of the predictor whose calibration this is, such as soft+tta.
        task, classes: of the predictions.
        members: that are heard, in the order of the rule's weights.
        views: canonical name to what it counts; the sum is 1.
        average: of views: probabilities, or geometric or logits (of softmax and sigmoid the same).
        rule: that combines members.
        calibration: of the combined probabilities.
        conformal: None: no sets.
        decision: what is answered.
        unsure_below: the probability of a class below which it is called unsure; None: never.
        fitted_on: split, number of samples, and SHA-256 of the ledger; empty where nothing was fitted.
        evaluation: fingerprint of the weights and inputs, as the ledger has it.
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
        """Whether predictions are probabilities; of numbers and of shares of votes they are not."""
        return self.rule.gives_probabilities

    def answer_of(self, stack: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the (n, classes) float32 calibrated predictions.

        Args:
            stack: (members, views, n, classes) float32 what each member says under each view, in the order of both here.
        """
        return self.said(self.by_member(stack))

    def said(self, own: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the (n, classes) float32 calibrated predictions, from what `by_member` returns."""
        return self.calibration(self.rule(own).predictions)

    def by_member(self, stack: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what each member says by itself, its views averaged: (members, n, classes) float32; see `answer_of`."""
        weights = np.array(list(self.views.values()))
        if self.average == "probabilities" or self.task == "regression":
            mean: NDArray[np.float32] = np.einsum("v,mvnc->mnc", weights, stack, dtype=np.float64).astype(np.float32)
            return mean
        members, views, count, classes = stack.shape
        scores = log_scores(stack.reshape(-1, classes), self.task).reshape(members, views, count, classes)
        combined = np.einsum("v,mvnc->mnc", weights, scores, dtype=np.float64).reshape(-1, classes)
        return probabilities_of(combined.astype(np.float32), self.task).reshape(members, count, classes)

    def decide(self, predictions: NDArray[np.float32]) -> NDArray[Any]:
        """Return the (n,) int64 class of each sample, of multilabel (n, labels) bool which labels are given."""
        if self.task == "multilabel":
            return predictions >= self.thresholds
        if self.decision.kind == "costs":
            return least_cost(predictions, np.array(self.decision.costs))
        if self.decision.kind == "thresholds" and self.decision.thresholds:
            ((name, value),) = self.decision.thresholds.items()
            return with_threshold(predictions, self.classes.index(name), value)
        return top_class(predictions)

    @property
    def thresholds(self) -> NDArray[np.float32]:
        """Of multilabel: (labels,) the probability from which on each label is given."""
        chosen = self.decision.thresholds or {}
        # Above one half where nothing was chosen, as it is without an answer.json.
        even = float(np.nextafter(np.float32(_EVEN), np.float32(1)))
        return np.array([chosen.get(name, even) for name in self.classes], np.float32)

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads, as plain JSON; infinite quantiles are null."""
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
        """Read what `to_json` gave; ValueError, KeyError or TypeError where it is something else."""
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
            average=_average(content["average"]),
            rule=Combiner(
                rule["rule"],
                task,
                tuple(rule["weights"]),
                tuple(rule["biases"]),
                tuple(map(tuple, rule["groups"])),
                float(rule["temperature"]),
            ),
            calibration=CalibrationMap.from_json(content["calibration"], task),
            conformal=_conformal(content["conformal"]),
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
        """ValueError where parts do not belong together, as after an edit by hand."""
        classes, decision = len(self.classes), self.decision
        if unknown := sorted(set(decision.thresholds or {}) - set(self.classes)):
            raise ValueError(f"thresholds of {', '.join(unknown)}, which are no classes")
        if decision.kind == "costs" and [len(row) for row in decision.costs] != [classes] * classes:
            raise ValueError(f"costs that are not {classes} x {classes}")
        if self.conformal is not None and len(self.conformal.quantiles) not in (1, classes):
            raise ValueError(f"{len(self.conformal.quantiles)} quantiles of {classes} classes")
        heard = len(self.rule.groups) or len(self.members)
        if not heard or len(self.rule.weights) not in (0, heard):
            raise ValueError(f"{len(self.rule.weights)} weights of {heard} members")


def _average(name: str) -> Average:
    if name not in get_args(Average):
        raise ValueError(f"average {name!r}")
    return cast(Average, name)


def _conformal(content: Mapping[str, Any] | None) -> Conformal | None:
    if content is None:
        return None
    quantiles = tuple(math.inf if value is None else float(value) for value in content["quantiles"])
    return Conformal(content["score"], float(content["coverage"]), quantiles, tuple(content["samples"]))


def answer_path(folder: RunDir) -> Path:
    """Return where a run keeps how it answers."""
    return folder.path / FILE


def read_answer(folder: RunDir) -> PredictionPolicy | None:
    """Return how a run answers; None where nothing was calibrated.

    Raises:
        DataError: the file is damaged.
    """
    path = answer_path(folder)
    if not path.is_file():
        return None
    try:
        return PredictionPolicy.from_json(read_json(path) or {})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: is damaged ({error!r}); run `choral calibrate` again, or delete it") from error


def write_answer(folder: RunDir, answering: PredictionPolicy) -> None:
    """Keep how a run answers."""
    write_json(answer_path(folder), answering.to_json())


def check_answer(folder: RunDir, answering: PredictionPolicy, evaluation: str) -> None:
    """Refuse an answer that was fitted to other weights, inputs or classes.

    Raises:
        DataError: saying what to do.
    """
    if answering.evaluation != evaluation:
        raise DataError(f"{answer_path(folder)}: {_STALE}")


def reason_not_calibrated(answering: PredictionPolicy, ledger: Ledger) -> str:
    """Return why an answer says nothing about the samples of a ledger; "" where it does."""
    if answering.evaluation != ledger.meta.evaluation:
        return _STALE
    if answering.fitted_on["split"] == ledger.meta.split:
        return f"was fitted on '{ledger.meta.split}', and what is scored must be something else"
    missing = [name for name in answer_panel(answering, ledger).views if name not in ledger.views]
    return f"needs {', '.join(missing)} of {ledger.path}: evaluate with evaluate.keep_views=true" if missing else ""


def answer_panel(answering: PredictionPolicy, ledger: Ledger) -> MemberPredictions:
    """Return the members and columns of a ledger that an answer hears."""
    meta, views, weights = ledger.meta, tuple(answering.views), tuple(answering.views.values())
    if views == meta.tta_views and len(set(weights)) == 1 and answering.average == meta.average:
        return MemberPredictions(ledger, answering.members, ("tta",))
    return MemberPredictions(ledger, answering.members, views, view_weights=weights)
