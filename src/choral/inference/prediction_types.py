"""The prediction for one image, one class per task. Needs no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class _Prediction:
    """What the predictions of all tasks have in common."""

    def content(self) -> dict[str, Any]:
        """Return the prediction as built-in types for JSON, without the optional fields that are None."""
        values = asdict(self)
        return {key: value for key, value in values.items() if key not in _OPTIONAL or value is not None}


@dataclass(frozen=True)
class ClassPrediction(_Prediction):
    """The predicted class. If the image could not be read, `error` says why and the other fields are empty."""

    headings: ClassVar[tuple[str, ...]] = ("class", "probability", "votes")
    image: str
    label: str = ""
    probability: float = 0.0
    """Probability of the label; without a calibration, the mean over members (soft vote) and views."""
    probabilities: tuple[float, ...] = ()
    """Probability of each class."""
    votes: dict[str, tuple[str, float]] | None = None
    """Member to the label that it predicts, and its probability."""
    error: str = ""
    possible: tuple[str, ...] | None = None
    """The classes of the conformal set; None: there are no sets."""
    unsure: bool | None = None
    """Whether the probability is below the chosen threshold; None: there is no threshold."""

    def cells(self) -> tuple[str, ...]:
        """Return the table cells under `headings`."""
        votes = ", ".join(f"{name}: {label} {share:.3f}" for name, (label, share) in (self.votes or {}).items())
        text, others = self.label, [name for name in self.possible or () if name != self.label]
        if self.possible is not None and self.label not in self.possible:
            text += f" (set: {', '.join(others) or 'empty'})"
        elif others:
            text += f" or {' or '.join(others)}"
        return f"{text} (unsure)" if self.unsure else text, f"{self.probability:.3f}", votes


@dataclass(frozen=True)
class MultilabelPrediction(_Prediction):
    """The predicted labels, possibly none; `error` as in `ClassPrediction`."""

    headings: ClassVar[tuple[str, ...]] = ("labels", "votes")
    image: str
    labels: dict[str, float] | None = None
    """Labels above 0.5, or above the chosen thresholds, with their probabilities, most probable first."""
    probabilities: dict[str, float] | None = None
    """Probability of every label."""
    votes: dict[str, tuple[str, ...]] | None = None
    """Member to the labels that it predicts."""
    error: str = ""
    possible: tuple[str, ...] | None = None
    """The labels of the conformal set; None: there are no sets."""

    def cells(self) -> tuple[str, ...]:
        """Return the table cells under `headings`."""
        labels = ", ".join(f"{name} {share:.3f}" for name, share in (self.labels or {}).items())
        votes = "; ".join(f"{name}: {', '.join(labels) or 'none'}" for name, labels in (self.votes or {}).items())
        others = [name for name in self.possible or () if name not in (self.labels or {})]
        return (labels or "none") + (f"; perhaps {', '.join(others)}" if others else ""), votes


@dataclass(frozen=True)
class RegressionPrediction(_Prediction):
    """Predicted numbers in the targets' units; `error` as in `ClassPrediction`."""

    headings: ClassVar[tuple[str, ...]] = ("value ± spread", "votes")
    image: str
    values: dict[str, float] | None = None
    """Target to its number; with the rule `mean`, the mean over members and views."""
    spreads: dict[str, float] | None = None
    """Target to the standard deviation of the members' numbers; 0 for a single member."""
    votes: dict[str, dict[str, float]] | None = None
    """Member to the numbers that it predicts."""
    error: str = ""
    intervals: dict[str, tuple[float, float] | None] | None = None
    """Target to the ends of its conformal interval, None if it is unbounded; None: there are no intervals."""

    def cells(self) -> tuple[str, ...]:
        """Return the table cells under `headings`."""
        spreads, intervals, parts = self.spreads or {}, self.intervals or {}, []
        for name, value in (self.values or {}).items():
            ends = intervals.get(name)
            parts.append(
                f"{name} {value:.4g} ± {spreads[name]:.2g}" + (f" [{ends[0]:.4g}, {ends[1]:.4g}]" if ends else "")
            )
        values = ", ".join(parts)
        votes = "; ".join(
            f"{name}: {', '.join(f'{value:.4g}' for value in values.values())}"
            for name, values in (self.votes or {}).items()
        )
        return values, votes


Prediction = ClassPrediction | MultilabelPrediction | RegressionPrediction


_TYPES: dict[str, type[ClassPrediction] | type[MultilabelPrediction] | type[RegressionPrediction]] = {
    "multiclass": ClassPrediction,
    "multilabel": MultilabelPrediction,
    "regression": RegressionPrediction,
}
_OPTIONAL = ("possible", "unsure", "intervals")


def unreadable_prediction(image: str, task: str, error: str) -> Prediction:
    """Return the prediction for an image that could not be read."""
    return _TYPES[task](image, error=error)
