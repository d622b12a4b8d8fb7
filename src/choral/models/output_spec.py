"""The meaning of a network's outputs, as stored in a checkpoint. Importing this module does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from choral.config import Task

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class OutputSpec:
    """The meaning of a network's outputs.

    Attributes:
        task: multiclass, multilabel or regression.
        names: of the classes, labels or targets, one per output.
        target_mean, target_std: regression: of each target over the training split, in its unit; the network is trained
            on (target - mean) / std. Empty for other tasks, or if the outputs are already in the units of the targets.
        one_against_all: multiclass: each output was trained as a binary classifier (train.loss: bce), so its sigmoid,
            not the softmax over all outputs, is a probability.
    """

    task: Task
    names: tuple[str, ...]
    target_mean: tuple[float, ...] = ()
    target_std: tuple[float, ...] = ()
    one_against_all: bool = False

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> OutputSpec:
        """Return the result of `meta`, read from state.json; old checkpoints have the key `classes` and no task."""
        return cls(
            task=meta.get("task", "multiclass"),
            names=tuple(meta["names"] if "names" in meta else meta["classes"]),
            target_mean=tuple(meta.get("target_mean", ())),
            target_std=tuple(meta.get("target_std", ())),
            one_against_all=bool(meta.get("one_against_all", False)),
        )

    def meta(self) -> dict[str, Any]:
        """Return the JSON that a checkpoint stores."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def agree(self, other: OutputSpec) -> bool:
        """Return whether both predict the same classes, labels or targets; the target standardization may differ."""
        return (self.task, self.names) == (other.task, other.names)

    def class_scores(self, logits: Tensor) -> Tensor:
        """Return (B, C) float32 scores whose softmax is the prediction, from (B, C) outputs; multiclass only."""
        from torch.nn import functional as F

        values = logits.float()
        return F.logsigmoid(values) if self.one_against_all else values

    def predictions(self, logits: Tensor) -> Tensor:
        """Return predictions for (B, outputs) outputs of the network of any float type.

        Returns:
            multiclass: (B, C) float32 probabilities that sum to 1 (one-against-all: sigmoids divided by their sum);
            multilabel: (B, L) independent probabilities; regression: (B, T) numbers in the units of the targets.
        """
        values = logits.float()
        if self.task == "multiclass":
            return self.class_scores(logits).softmax(dim=1)
        if self.task == "multilabel":
            return values.sigmoid()
        if not self.target_std:
            return values
        return values * values.new_tensor(self.target_std) + values.new_tensor(self.target_mean)
