"""What a run answers for one image, in the form of its task. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from choral.model.outputs import Outputs

_APPLIES = 0.5  # a label is given above this probability


@dataclass(frozen=True)
class ClassAnswer:
    """One class; `error` is "" unless the image could not be read, and then there is nothing else."""

    headings: ClassVar[tuple[str, ...]] = ("class", "probability", "votes")
    image: str
    label: str = ""
    probability: float = 0.0
    """Of the label: the mean over members (soft vote) and views."""
    probabilities: tuple[float, ...] = ()
    """Of each class."""
    votes: dict[str, tuple[str, float]] | None = None
    """Member to its own label and probability."""
    error: str = ""

    def cells(self) -> tuple[str, ...]:
        """Return the texts under the headings."""
        votes = ", ".join(f"{name}: {label} {share:.3f}" for name, (label, share) in (self.votes or {}).items())
        return self.label, f"{self.probability:.3f}", votes


@dataclass(frozen=True)
class LabelAnswer:
    """The labels that apply, perhaps none; `error` as for a class."""

    headings: ClassVar[tuple[str, ...]] = ("labels", "votes")
    image: str
    labels: dict[str, float] | None = None
    """Those above one half, most probable first, with their probabilities: means over members and views."""
    probabilities: dict[str, float] | None = None
    """Of every label."""
    votes: dict[str, tuple[str, ...]] | None = None
    """Member to the labels that it gives by itself."""
    error: str = ""

    def cells(self) -> tuple[str, ...]:
        """Return the texts under the headings."""
        labels = ", ".join(f"{name} {share:.3f}" for name, share in (self.labels or {}).items())
        votes = "; ".join(f"{name}: {', '.join(given) or 'none'}" for name, given in (self.votes or {}).items())
        return labels or "none", votes


@dataclass(frozen=True)
class NumberAnswer:
    """Numbers in the targets' own units; `error` as for a class."""

    headings: ClassVar[tuple[str, ...]] = ("value ± spread", "votes")
    image: str
    values: dict[str, float] | None = None
    """Target to its number: the mean over members and views."""
    spreads: dict[str, float] | None = None
    """Target to the standard deviation of the members' numbers; 0 where there is one member."""
    votes: dict[str, dict[str, float]] | None = None
    """Member to its own numbers."""
    error: str = ""

    def cells(self) -> tuple[str, ...]:
        """Return the texts under the headings."""
        spreads = self.spreads or {}
        values = ", ".join(f"{name} {value:.4g} ± {spreads[name]:.2g}" for name, value in (self.values or {}).items())
        votes = "; ".join(
            f"{name}: {', '.join(f'{value:.4g}' for value in own.values())}" for name, own in (self.votes or {}).items()
        )
        return values, votes


Answer = ClassAnswer | LabelAnswer | NumberAnswer


def unreadable(image: str, outputs: Outputs, error: str) -> Answer:
    """Return the answer for an image that cannot be read."""
    return _KIND[outputs.task](image, error=error)


def answer(image: str, outputs: Outputs, by_member: Mapping[str, NDArray[np.float32]]) -> Answer:
    """Return the answer for one image.

    Args:
        image: its name.
        outputs: of the members, the same for all.
        by_member: member to its (outputs,) predictions, averaged over views.
    """
    stack = np.stack(list(by_member.values())).astype(np.float64)
    mean = stack.mean(axis=0)
    if outputs.task == "multilabel":
        given = {name: _applying(outputs, values) for name, values in by_member.items()}
        named = dict(zip(outputs.names, mean.tolist(), strict=True))
        labels = {name: named[name] for name in sorted(_applying(outputs, mean), key=lambda name: -named[name])}
        return LabelAnswer(image, labels, named, given)
    if outputs.task == "regression":
        own = {name: dict(zip(outputs.names, values.tolist(), strict=True)) for name, values in by_member.items()}
        values, spreads = (dict(zip(outputs.names, part.tolist(), strict=True)) for part in (mean, stack.std(axis=0)))
        return NumberAnswer(image, values, spreads, own)
    votes = {name: (outputs.names[int(values.argmax())], float(values.max())) for name, values in by_member.items()}
    best = int(mean.argmax())
    return ClassAnswer(image, outputs.names[best], float(mean[best]), tuple(mean.tolist()), votes)


def _applying(outputs: Outputs, probabilities: NDArray[np.floating]) -> tuple[str, ...]:
    return tuple(name for name, share in zip(outputs.names, probabilities, strict=True) if share > _APPLIES)


_KIND: dict[str, type[ClassAnswer] | type[LabelAnswer] | type[NumberAnswer]] = {
    "multiclass": ClassAnswer,
    "multilabel": LabelAnswer,
    "regression": NumberAnswer,
}
