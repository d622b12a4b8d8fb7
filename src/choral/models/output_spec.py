"""What the numbers that a network puts out mean; a checkpoint keeps it. Needs no torch by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from choral.config import Task

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Outputs:
    """The meaning of a network's outputs.

    Attributes:
        task: multiclass, multilabel or regression.
        names: of the classes, labels or targets, one an output.
        target_mean, target_std: with regression, of each target over the training split, in its own unit: the network
            is trained on (target - mean) / std. Else empty, or where the network puts out the targets' own units.
        one_against_all: with multiclass, each output was trained as a yes or no of its own (train.loss: bce), so that
            its sigmoid, not the softmax over all, is a probability.
    """

    task: Task
    names: tuple[str, ...]
    target_mean: tuple[float, ...] = ()
    target_std: tuple[float, ...] = ()
    one_against_all: bool = False

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> Outputs:
        """Read what `meta` gave, from a checkpoint's state.json; one of before there were other tasks has classes."""
        return cls(
            task=meta.get("task", "multiclass"),
            names=tuple(meta["names"] if "names" in meta else meta["classes"]),
            target_mean=tuple(meta.get("target_mean", ())),
            target_std=tuple(meta.get("target_std", ())),
            one_against_all=bool(meta.get("one_against_all", False)),
        )

    def meta(self) -> dict[str, Any]:
        """Return what a checkpoint is to keep, as JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def agree(self, other: Outputs) -> bool:
        """Whether both predict the same: how targets were standardised inside does not matter outside."""
        return (self.task, self.names) == (other.task, other.names)

    def class_scores(self, logits: Tensor) -> Tensor:
        """Turn (B, C) outputs of a network for classes into (B, C) float32 scores whose softmax is the prediction."""
        from torch.nn import functional as F

        values = logits.float()
        return F.logsigmoid(values) if self.one_against_all else values

    def predictions(self, logits: Tensor) -> Tensor:
        """Turn (B, outputs) outputs of the network, of any float type, into predictions.

        Returns:
            (B, C) float32 probabilities that sum to 1 (trained one against all: sigmoids, divided by their sum); with
            multilabel (B, L) probabilities, each for itself; with regression (B, T) numbers in the targets' own units.
        """
        values = logits.float()
        if self.task == "multiclass":
            return self.class_scores(logits).softmax(dim=1)
        if self.task == "multilabel":
            return values.sigmoid()
        if not self.target_std:
            return values
        return values * values.new_tensor(self.target_std) + values.new_tensor(self.target_mean)
