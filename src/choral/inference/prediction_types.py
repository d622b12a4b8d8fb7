"""What a run answers for one image, in the form of its task. Needs no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class _Prediction:
    """What all answers have in common."""

    def content(self) -> dict[str, Any]:
        """Return the answer as plain JSON, without what the run was never asked to say."""
        values = asdict(self)
        return {key: value for key, value in values.items() if key not in _OPTIONAL or value is not None}


@dataclass(frozen=True)
class ClassPrediction(_Prediction):
    """One class; `error` is "" unless the image could not be read, and then there is nothing else."""

    headings: ClassVar[tuple[str, ...]] = ("class", "probability", "votes")
    image: str
    label: str = ""
    probability: float = 0.0
    """Of the label; without a calibration the mean over members (soft vote) and views."""
    probabilities: tuple[float, ...] = ()
    """Of each class."""
    votes: dict[str, tuple[str, float]] | None = None
    """Member to its own label and probability."""
    error: str = ""
    possible: tuple[str, ...] | None = None
    """The classes of a conformal set; None: there are no sets."""
    unsure: bool | None = None
    """Whether the probability is below what was chosen; None: nothing was."""

    def cells(self) -> tuple[str, ...]:
        """Return the texts under the headings."""
        votes = ", ".join(f"{name}: {label} {share:.3f}" for name, (label, share) in (self.votes or {}).items())
        words, others = self.label, [name for name in self.possible or () if name != self.label]
        if self.possible is not None and self.label not in self.possible:
            words += f" (set: {', '.join(others) or 'empty'})"
        elif others:
            words += f" or {' or '.join(others)}"
        return f"{words} (unsure)" if self.unsure else words, f"{self.probability:.3f}", votes


@dataclass(frozen=True)
class MultilabelPrediction(_Prediction):
    """The labels that apply, perhaps none; `error` as for a class."""

    headings: ClassVar[tuple[str, ...]] = ("labels", "votes")
    image: str
    labels: dict[str, float] | None = None
    """Those above one half, or the thresholds that were chosen, most probable first, with their probabilities."""
    probabilities: dict[str, float] | None = None
    """Of every label."""
    votes: dict[str, tuple[str, ...]] | None = None
    """Member to the labels that it gives by itself."""
    error: str = ""
    possible: tuple[str, ...] | None = None
    """All labels that cannot be left out at the stated coverage; None: there are no sets."""

    def cells(self) -> tuple[str, ...]:
        """Return the texts under the headings."""
        labels = ", ".join(f"{name} {share:.3f}" for name, share in (self.labels or {}).items())
        votes = "; ".join(f"{name}: {', '.join(given) or 'none'}" for name, given in (self.votes or {}).items())
        others = [name for name in self.possible or () if name not in (self.labels or {})]
        return (labels or "none") + (f"; perhaps {', '.join(others)}" if others else ""), votes


@dataclass(frozen=True)
class RegressionPrediction(_Prediction):
    """Numbers in the targets' own units; `error` as for a class."""

    headings: ClassVar[tuple[str, ...]] = ("value ± spread", "votes")
    image: str
    values: dict[str, float] | None = None
    """Target to its number; of the rule mean the mean over members and views."""
    spreads: dict[str, float] | None = None
    """Target to the standard deviation of the members' numbers; 0 where there is one member."""
    votes: dict[str, dict[str, float]] | None = None
    """Member to its own numbers."""
    error: str = ""
    intervals: dict[str, tuple[float, float] | None] | None = None
    """Target to the ends of its conformal interval, None where it is without end; None: there are none."""

    def cells(self) -> tuple[str, ...]:
        """Return the texts under the headings."""
        spreads, intervals, parts = self.spreads or {}, self.intervals or {}, []
        for name, value in (self.values or {}).items():
            ends = intervals.get(name)
            parts.append(
                f"{name} {value:.4g} ± {spreads[name]:.2g}" + (f" [{ends[0]:.4g}, {ends[1]:.4g}]" if ends else "")
            )
        values = ", ".join(parts)
        votes = "; ".join(
            f"{name}: {', '.join(f'{value:.4g}' for value in own.values())}" for name, own in (self.votes or {}).items()
        )
        return values, votes


Answer = ClassPrediction | MultilabelPrediction | RegressionPrediction


_KIND: dict[str, type[ClassPrediction] | type[MultilabelPrediction] | type[RegressionPrediction]] = {
    "multiclass": ClassPrediction,
    "multilabel": MultilabelPrediction,
    "regression": RegressionPrediction,
}
_OPTIONAL = ("possible", "unsure", "intervals")


def unreadable(image: str, task: str, error: str) -> Answer:
    """Return the answer for an image that cannot be read."""
    return _KIND[task](image, error=error)
