"""What the training of each task minimises: losses a sample, with smoothing, weights and mixed images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from choral.config import Config
from choral.core.errors import DataError
from choral.data.loading.device_loader import Batch
from choral.data.loading.input_pipeline import Split
from choral.data.loading.label_probabilities import LabelProbabilities
from choral.data.loading.targets import Targets
from choral.models.output_spec import Outputs
from choral.training.validation_metrics import ClassMeter, LabelMeter, Meter, NumberMeter

_LOSS_OF = {"multiclass": "cross_entropy", "multilabel": "bce", "regression": "mse"}  # with train.loss: auto
_NEARLY_ZERO = 1e-12


class Objective:
    """The loss of a task and how validation measures it.

    Args:
        meaning: of the network's outputs.
        loss: cross_entropy, bce or focal; mse, l1 or huber.
        smoothing: of labels (Szegedy et al. 2016): a share of the target spread evenly over the classes; with
            multilabel over yes and no.
        gamma: of the focal loss.
        weights: (C,) float32 weight of a sample by its class; with multilabel (2, L), of a label's zeros and ones.
        device: of the batches.
        sample_weights: (n,) of the training samples, mean 1, by row of their index; they multiply losses. A batch's losses
            are still divided by its size.
        probabilities: of the classes of the training samples, by row of their index; the loss is that to them, smoothed,
            instead of that to the labels.
    """

    def __init__(
        self,
        meaning: Outputs,
        loss: str,
        *,
        smoothing: float = 0.0,
        gamma: float = 2.0,
        weights: Tensor | None = None,
        device: torch.device | None = None,
        sample_weights: NDArray[np.float64] | None = None,
        probabilities: LabelProbabilities | None = None,
    ) -> None:
        self.meaning, self._loss, self._smoothing, self._gamma = meaning, loss, smoothing, gamma
        self._weights = weights.to(device) if weights is not None else None
        self._mean = torch.tensor(meaning.target_mean, dtype=torch.float32, device=device)
        self._std = torch.tensor(meaning.target_std, dtype=torch.float32, device=device)
        self._device = device
        self._sample_weights = None if sample_weights is None else sample_weights.astype(np.float32)
        self._probabilities = probabilities

    @classmethod
    def of(cls, config: Config, split: Split, device: torch.device) -> Objective:
        """Return the objective of a config; class weights, and targets' mean and deviation, are those of what is trained on.

        Args:
            split: the training split, the same for all ranks.

        Raises:
            DataError: a target that is the same for all training samples: there is nothing to learn.
        """
        targets, settings = split.targets, config.train
        rows = split.training_rows
        mean, std = _mean_and_std(targets, rows) if targets.task == "regression" else ((), ())
        loss = _LOSS_OF[targets.task] if settings.loss == "auto" else settings.loss
        one_against_all = targets.task == "multiclass" and loss == "bce"
        return cls(
            Outputs(targets.task, targets.names, mean, std, one_against_all),
            loss,
            smoothing=settings.label_smoothing,
            gamma=settings.focal_gamma,
            weights=_balanced_weights(targets, rows) if settings.class_weights == "balanced" else None,
            device=device,
            sample_weights=split.weights if config.data.resample.by == "loss" else None,
            probabilities=split.probabilities,
        )

    @property
    def outputs(self) -> int:
        """How many outputs the network has."""
        return len(self.meaning.names)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the classes, labels or targets, one an output."""
        return self.meaning.names

    def losses(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the loss of each sample, (B,) float32; samples that could not be read count nothing.

        Where images were mixed, it is the mean of the losses to both labels, weighted by their shares: the loss to the
        mixed label, since every loss here but those of regression is linear in it (Zhang et al. 2018). Each of the two is
        multiplied by the weight of the sample that the label is of, where samples have weights.

        Args:
            logits: (B, outputs), any float type.
            batch: labels, perhaps partners and shares.
        """
        logits = logits.float()
        losses = self._weighted(self._losses_to(logits, batch.labels, batch.rows), batch.rows)
        if batch.partners is not None and batch.shares is not None:
            others = self._weighted(self._losses_to(logits, batch.partners, batch.partner_rows), batch.partner_rows)
            losses = batch.shares * losses + (1 - batch.shares) * others
        return losses * batch.valid

    def predictions(self, logits: Tensor) -> Tensor:
        """Return probabilities, or numbers in the targets' own units; see `Outputs.predictions`."""
        return self.meaning.predictions(logits)

    def meter(self, samples: int) -> Meter:
        """Return what measures predictions over a split of so many samples."""
        if self.meaning.task == "multiclass":
            return ClassMeter(self.meaning, self._device)
        if self.meaning.task == "multilabel":
            return LabelMeter(samples, self.outputs, self._device)
        return NumberMeter(self.meaning, self._device)

    def meta(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, so that predictions can be made from it; see `Outputs`."""
        return self.meaning.meta()

    def _weighted(self, losses: Tensor, rows: NDArray[np.int64] | None) -> Tensor:
        """Return losses times the weights of the samples in these rows."""
        if self._sample_weights is None or rows is None:
            return losses
        return losses * torch.from_numpy(self._sample_weights[rows]).to(losses.device)

    def _losses_to(self, logits: Tensor, labels: Tensor, rows: NDArray[np.int64] | None) -> Tensor:
        if self.meaning.task == "multiclass":
            return self._class_losses(logits, labels, rows)
        if self.meaning.task == "multilabel":
            return self._label_losses(logits, labels)
        return self._number_losses(logits, labels)

    def _class_losses(self, logits: Tensor, labels: Tensor, rows: NDArray[np.int64] | None) -> Tensor:
        if self._loss == "cross_entropy":
            truth = labels if self._probabilities is None else self._class_truth(labels, rows)
            losses = F.cross_entropy(logits, truth, reduction="none", label_smoothing=self._smoothing)
        else:
            truth = self._class_truth(labels, rows) * (1 - self._smoothing) + self._smoothing / self.outputs
            if self._loss == "bce":  # one against all, the mean over classes as in timm (Wightman et al. 2021)
                losses = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(dim=1)
            else:  # Lin et al. 2017, for several classes
                logs = logits.log_softmax(dim=1)
                losses = -(truth * _power(-torch.expm1(logs), self._gamma) * logs).sum(dim=1)
        return losses if self._weights is None else losses * self._weights[labels]

    def _class_truth(self, labels: Tensor, rows: NDArray[np.int64] | None) -> Tensor:
        """Return what is to be said of each sample, (B, C) float32, before smoothing."""
        if self._probabilities is None:
            return F.one_hot(labels, self.outputs).float()
        assert rows is not None, "a batch of mixed images names the rows of their partners"
        return torch.from_numpy(self._probabilities.of(rows)).to(labels.device)

    def _label_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        truth = labels * (1 - self._smoothing) + self._smoothing / 2
        if self._loss == "bce":
            losses = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        else:
            yes = _power(torch.sigmoid(-logits), self._gamma) * F.softplus(-logits)
            no = _power(torch.sigmoid(logits), self._gamma) * F.softplus(logits)
            losses = truth * yes + (1 - truth) * no
        if self._weights is not None:
            losses = losses * torch.where(labels > 0, self._weights[1], self._weights[0])
        return losses.mean(dim=1)

    def _number_losses(self, logits: Tensor, numbers: Tensor) -> Tensor:
        truth = (numbers - self._mean) / self._std
        if self._loss == "mse":
            losses = F.mse_loss(logits, truth, reduction="none")
        elif self._loss == "l1":
            losses = F.l1_loss(logits, truth, reduction="none")
        else:
            losses = F.huber_loss(logits, truth, reduction="none", delta=1.0)
        return losses.mean(dim=1)


def _power(values: Tensor, gamma: float) -> Tensor:
    """Return values^gamma for values in [0, 1]; at 0, where the derivative may be infinite, it is taken for 0."""
    return values.clamp_min(_NEARLY_ZERO).pow(gamma)


def _balanced_weights(targets: Targets, rows: NDArray[np.int64] | None) -> Tensor:
    """Return weights that make classes (of each label its ones and zeros) count alike, mean 1 over the samples."""
    samples = len(targets) if rows is None else len(rows)
    if targets.task == "multiclass":
        ones = sum(np.bincount(block, minlength=len(targets.names)) for block in targets.blocks(rows))
        counts = np.asarray(ones, dtype=np.float64)
    else:
        ones = sum(block.sum(axis=0, dtype=np.float64) for block in targets.blocks(rows))
        counts = np.stack([samples - ones, np.asarray(ones)])
    there = counts > 0  # what never occurs needs no weight, and takes none from the others
    weights = samples / (there.sum(axis=0) * np.where(there, counts, 1)) * there
    return torch.tensor(weights, dtype=torch.float32)


def _mean_and_std(targets: Targets, rows: NDArray[np.int64] | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    values = np.concatenate(list(targets.blocks(rows))).astype(np.float64)
    mean, std = values.mean(axis=0), values.std(axis=0)
    for name, deviation in zip(targets.names, std, strict=True):
        if not deviation > 0:
            raise DataError(
                f"{targets.index.dataset.folder}: target {name!r} is the same for all training samples of split "
                f"{targets.index.split}: there is nothing to learn; choose another column in data.targets"
            )
    return tuple(mean.tolist()), tuple(std.tolist())
