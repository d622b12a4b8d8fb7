"""The training objective of each task: per-sample losses with label smoothing, weights and mixed images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from choral.config import TrainConfig
from choral.core.errors import DataError
from choral.data.loading.device_loader import Batch
from choral.data.loading.label_probabilities import LabelProbabilities
from choral.data.loading.split import Split
from choral.data.loading.targets import Targets
from choral.models.output_spec import OutputSpec
from choral.training.validation_metrics import Meter, MulticlassMeter, MultilabelMeter, RegressionMeter

_DEFAULT_LOSSES = {"multiclass": "cross_entropy", "multilabel": "bce", "regression": "mse"}  # for train.loss: auto
_EPSILON = 1e-12


class Objective:
    """The loss of a task, and the meter that measures its validation metrics.

    Args:
        output_spec: task and names of the model's outputs.
        loss: cross_entropy, bce or focal; for regression mse, l1 or huber.
        smoothing: label smoothing (Szegedy et al. 2016): this share of the target is spread evenly over the classes;
            for multilabel over 0 and 1.
        gamma: exponent of the focal loss.
        weights: (C,) float32 class weights; for multilabel (2, L), the weights of each label's zeros and ones.
        device: of the batches.
        sample_weights: (n,) mean 1, by index row. They multiply the losses; a batch is still divided by its size.
        probabilities: class probabilities of the training samples, by index row. They replace the labels as targets, and
            are smoothed like them.
    """

    def __init__(
        self,
        output_spec: OutputSpec,
        loss: str,
        *,
        smoothing: float = 0.0,
        gamma: float = 2.0,
        weights: Tensor | None = None,
        device: torch.device | None = None,
        sample_weights: NDArray[np.float64] | None = None,
        probabilities: LabelProbabilities | None = None,
    ) -> None:
        self.output_spec, self._loss, self._smoothing, self._gamma = output_spec, loss, smoothing, gamma
        self._weights = weights.to(device) if weights is not None else None
        self._mean = torch.tensor(output_spec.target_mean, dtype=torch.float32, device=device)
        self._std = torch.tensor(output_spec.target_std, dtype=torch.float32, device=device)
        self._device = device
        self._sample_weights = None if sample_weights is None else sample_weights.astype(np.float32)
        self._probabilities = probabilities

    @classmethod
    def from_config(
        cls, settings: TrainConfig, split: Split, device: torch.device, weight_losses: bool = False
    ) -> Objective:
        """Build the objective of a config. Class weights, and the targets' mean and std, come from the training samples.

        Args:
            settings: loss, smoothing, class weights.
            split: the training split, the same on all ranks.
            device: of the batches.
            weight_losses: multiply losses by the split's sample weights.

        Raises:
            DataError: a regression target has the same value for all training samples.
        """
        targets = split.targets
        rows = split.training_rows
        mean, std = _mean_and_std(targets, rows) if targets.task == "regression" else ((), ())
        loss = _DEFAULT_LOSSES[targets.task] if settings.loss == "auto" else settings.loss
        one_against_all = targets.task == "multiclass" and loss == "bce"
        return cls(
            OutputSpec(targets.task, targets.names, mean, std, one_against_all),
            loss,
            smoothing=settings.label_smoothing,
            gamma=settings.focal_gamma,
            weights=_balanced_weights(targets, rows) if settings.class_weights == "balanced" else None,
            device=device,
            sample_weights=split.weights if weight_losses else None,
            probabilities=split.probabilities,
        )

    @property
    def num_outputs(self) -> int:
        """Number of outputs of the model."""
        return len(self.output_spec.names)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes, labels or targets, one per output."""
        return self.output_spec.names

    def losses(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the loss of each sample, (B,) float32; 0 for samples that could not be read.

        The loss of a mixed image is the mean of the losses against both labels, weighted by their shares. That equals the
        loss against the mixed label, because every loss here except those of regression is linear in the label (Zhang et
        al. 2018). With sample weights, each of the two losses is multiplied by the weight of its label's sample.

        Args:
            logits: (B, outputs), any float type.
            batch: labels; for mixed images also partners and shares.
        """
        logits = logits.float()
        losses = self._weighted(self._losses_to(logits, batch.labels, batch.rows), batch.rows)
        if batch.partners is not None and batch.shares is not None:
            others = self._weighted(self._losses_to(logits, batch.partners, batch.partner_rows), batch.partner_rows)
            losses = batch.shares * losses + (1 - batch.shares) * others
        return losses * batch.valid

    def predictions(self, logits: Tensor) -> Tensor:
        """Return probabilities, or for regression values in the targets' units; see `OutputSpec.predictions`."""
        return self.output_spec.predictions(logits)

    def meter(self, samples: int) -> Meter:
        """Return a new meter of the task's validation metrics.

        Args:
            samples: number of samples of the validation split.
        """
        if self.output_spec.task == "multiclass":
            return MulticlassMeter(self.output_spec, self._device)
        if self.output_spec.task == "multilabel":
            return MultilabelMeter(samples, self.num_outputs, self._device)
        return RegressionMeter(self.output_spec, self._device)

    def meta(self) -> dict[str, Any]:
        """Return the JSON that a checkpoint stores about the outputs; see `OutputSpec`."""
        return self.output_spec.meta()

    def _weighted(self, losses: Tensor, rows: NDArray[np.int64] | None) -> Tensor:
        """Return losses times the sample weights of these rows."""
        if self._sample_weights is None or rows is None:
            return losses
        return losses * torch.from_numpy(self._sample_weights[rows]).to(losses.device)

    def _losses_to(self, logits: Tensor, labels: Tensor, rows: NDArray[np.int64] | None) -> Tensor:
        if self.output_spec.task == "multiclass":
            return self._class_losses(logits, labels, rows)
        if self.output_spec.task == "multilabel":
            return self._multilabel_losses(logits, labels)
        return self._regression_losses(logits, labels)

    def _class_losses(self, logits: Tensor, labels: Tensor, rows: NDArray[np.int64] | None) -> Tensor:
        if self._loss == "cross_entropy":
            target = labels if self._probabilities is None else self._class_targets(labels, rows)
            losses = F.cross_entropy(logits, target, reduction="none", label_smoothing=self._smoothing)
        else:
            target = self._class_targets(labels, rows) * (1 - self._smoothing) + self._smoothing / self.num_outputs
            if self._loss == "bce":  # one-vs-rest, mean over classes, as in timm (Wightman et al. 2021)
                losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(dim=1)
            else:  # focal loss (Lin et al. 2017), extended to several classes
                logs = logits.log_softmax(dim=1)
                losses = -(target * _power(-torch.expm1(logs), self._gamma) * logs).sum(dim=1)
        return losses if self._weights is None else losses * self._weights[labels]

    def _class_targets(self, labels: Tensor, rows: NDArray[np.int64] | None) -> Tensor:
        """Return the target distribution of each sample, (B, C) float32, before smoothing."""
        if self._probabilities is None:
            return F.one_hot(labels, self.num_outputs).float()
        assert rows is not None, "a batch of mixed images has the rows of their partners"
        return torch.from_numpy(self._probabilities.take(rows)).to(labels.device)

    def _multilabel_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        target = labels * (1 - self._smoothing) + self._smoothing / 2
        if self._loss == "bce":
            losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        else:
            ones = _power(torch.sigmoid(-logits), self._gamma) * F.softplus(-logits)
            zeros = _power(torch.sigmoid(logits), self._gamma) * F.softplus(logits)
            losses = target * ones + (1 - target) * zeros
        if self._weights is not None:
            losses = losses * torch.where(labels > 0, self._weights[1], self._weights[0])
        return losses.mean(dim=1)

    def _regression_losses(self, logits: Tensor, values: Tensor) -> Tensor:
        target = (values - self._mean) / self._std
        if self._loss == "mse":
            losses = F.mse_loss(logits, target, reduction="none")
        elif self._loss == "l1":
            losses = F.l1_loss(logits, target, reduction="none")
        else:
            losses = F.huber_loss(logits, target, reduction="none", delta=1.0)
        return losses.mean(dim=1)


def _power(values: Tensor, gamma: float) -> Tensor:
    """Return values^gamma for values in [0, 1], with a derivative of 0 at 0, where the true one may be infinite."""
    return values.clamp_min(_EPSILON).pow(gamma)


def _balanced_weights(targets: Targets, rows: NDArray[np.int64] | None) -> Tensor:
    """Return weights that give all classes (for multilabel, each label's ones and zeros) equal influence; mean 1."""
    samples = len(targets) if rows is None else len(rows)
    if targets.task == "multiclass":
        ones = sum(np.bincount(block, minlength=len(targets.names)) for block in targets.blocks(rows))
        counts = np.asarray(ones, dtype=np.float64)
    else:
        ones = sum(block.sum(axis=0, dtype=np.float64) for block in targets.blocks(rows))
        counts = np.stack([samples - ones, np.asarray(ones)])
    occurs = counts > 0  # a class without samples gets weight 0, and takes none from the others
    weights = samples / (occurs.sum(axis=0) * np.where(occurs, counts, 1)) * occurs
    return torch.tensor(weights, dtype=torch.float32)


def _mean_and_std(targets: Targets, rows: NDArray[np.int64] | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    values = np.concatenate(list(targets.blocks(rows))).astype(np.float64)
    mean, std = values.mean(axis=0), values.std(axis=0)
    for name, deviation in zip(targets.names, std, strict=True):
        if not deviation > 0:
            raise DataError(
                f"{targets.index.dataset.folder}: target {name!r} has the same value for all training samples of "
                f"split {targets.index.split}: there is nothing to learn; choose another column in data.targets"
            )
    return tuple(mean.tolist()), tuple(std.tolist())
