"""How models are evaluated, and published figures to compare with."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from choral.config.fields import NonBinding, PositiveInt, check
from choral.config.section import Section

Average = Literal["probabilities", "logits", "geometric"]
_DEFAULT_BATCH_SIZE = 64


class EvaluateConfig(Section, frozen=True):
    """How trained members are evaluated."""

    splits: NonBinding[tuple[str, ...]] = ("val", "test")
    """Splits to evaluate. Combination weights and the temperature are fitted on validation and judged on test."""
    views: tuple[str, ...] = ("auto",)
    """Test-time augmentation: the views whose predictions are averaged. d4 stands for the eight flips and rotations. auto:
    identity, and hflip if training uses it (augment.hflip)."""
    average: Average = "probabilities"
    """How a model's predictions under several views are averaged. probabilities: their mean. logits: the mean of the outputs
    before softmax or sigmoid. geometric: the mean of the log probabilities, each clipped at 1.2e-7, renormalised. The last
    two agree, apart from the clipping, with softmax and with multilabel outputs, but not for classes trained one-vs-rest
    (train.loss: bce). With task: regression, predictions are always averaged directly."""
    batch_size: NonBinding[PositiveInt | Literal["auto"]] = _DEFAULT_BATCH_SIZE
    """Images in a forward pass of one rank; views are evaluated one after the other. auto: as many as fit into memory, at
    most 512, on a CPU 64; measured once and kept in batch.json of the run directory. Predictions depend on it in their last
    bits: a number gives equal predictions on different machines. With auto, features and probes use 64, and validation
    during training at most a micro-batch."""
    members_at_once: NonBinding[PositiveInt | Literal["auto"]] = "auto"
    """Models in memory at the same time. Images are decoded once for all models, in whatever groups these run. auto: as many
    as fit, measured on a GPU, computed from the size of the weights on a CPU. Predictions do not depend on it."""
    checkpoint: Literal["best", "last"] = "best"
    """The checkpoint to evaluate."""
    keep_views: bool | Literal["auto"] = "auto"
    """Store the predictions of each view in the ledger, not only of identity and of the average; learned view weights need
    them. auto: if the ledger stays below 256 MiB before compression."""
    held_out: NonBinding[bool] = True
    """With folds or bagging, also predict the training samples that a member was not trained on:
    predictions/held-out.parquet."""

    @model_validator(mode="after")
    def _check_lists(self) -> Self:
        check(len(self.splits) > 0, "evaluate.splits", "expected at least one split")
        check(len(self.views) > 0, "evaluate.views", "expected at least one view, such as identity")
        return self

    @property
    def fixed_batch_size(self) -> int:
        """Images in a forward pass where none is measured: `batch_size`, or 64 with auto."""
        return _DEFAULT_BATCH_SIZE if self.batch_size == "auto" else self.batch_size


class Reference(Section, frozen=True):
    """A published figure, listed beside the run's own scores."""

    name: str
    """Its row in the table of scores."""
    metric: Literal["accuracy", "mean_ap", "mae", "rmse", "r2"] = "accuracy"
    """The metric that `value` is of."""
    value: float
    """In the unit of the metric: 0.8842, not 88.42."""
    source: str
    """Where it was published."""
    split: str = "test"
    """The split whose table lists it."""

    @model_validator(mode="after")
    def _check_value(self) -> Self:
        legal = self.metric not in ("accuracy", "mean_ap") or 0 <= self.value <= 1
        check(legal, "references", f"'{self.name}': expected a value from 0 to 1, such as 0.8842")
        return self
