"""Validation metrics from sums over ranks, divided once, at the end; each sample counts once at any world size."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from choral.data.loading.device_loader import Batch
from choral.metrics.per_sample import f1_of_counts, r2_of_sums
from choral.metrics.ranking import mean_average_precision
from choral.models.output_spec import Outputs


class Meter(Protocol):
    """Gathers what a rank predicts; the report is made from the totals of all ranks."""

    @property
    def totals(self) -> Tensor:
        """Float64, on the device, of the same shape on each rank; to be summed over ranks."""

    def add(self, logits: Tensor, batch: Batch) -> None:
        """Take note of (B, outputs) outputs of the network; samples that could not be read count nothing."""

    def report(self, totals: Tensor) -> dict[str, float]:
        """Return the metrics by name, and `n`, the samples that were counted."""


class ClassMeter:
    """Accuracy and log loss (nats) of one class a sample."""

    def __init__(self, meaning: Outputs, device: torch.device | None) -> None:
        self._meaning = meaning
        self.totals = torch.zeros(3, dtype=torch.float64, device=device)

    def add(self, logits: Tensor, batch: Batch) -> None:
        """Count hits, losses and samples."""
        losses = F.cross_entropy(self._meaning.class_scores(logits), batch.labels, reduction="none") * batch.valid
        hits = (logits.argmax(1) == batch.labels) & batch.valid
        self.totals += torch.stack([hits.sum().double(), losses.double().sum(), batch.valid.sum().double()])

    def report(self, totals: Tensor) -> dict[str, float]:
        """Return accuracy, log_loss and n."""
        hits, losses, count = totals.tolist()
        return {"accuracy": hits / count, "log_loss": losses / count, "n": count}


class LabelMeter:
    """Mean average precision (macro), F1 (micro, at 0.5) and log loss (nats a label) of several labels a sample.

    An average precision needs the order of all predictions, so the totals are a table of the split: each rank fills in
    the rows that it has seen, and the sum over ranks is the whole. It takes 16 bytes a sample and label.
    """

    def __init__(self, samples: int, labels: int, device: torch.device | None) -> None:
        self.totals = torch.zeros(samples, 2 * labels + 1, dtype=torch.float64, device=device)

    def add(self, logits: Tensor, batch: Batch) -> None:
        """Fill in the rows of the batch: logits, labels, and 1 for having been read."""
        rows = torch.from_numpy(batch.rows).to(self.totals.device)
        valid = batch.valid.double().unsqueeze(1)
        self.totals[rows] = torch.cat([logits.double(), batch.labels.double(), torch.ones_like(valid)], dim=1) * valid

    def report(self, totals: Tensor) -> dict[str, float]:
        """Return mean_ap, f1, log_loss and n."""
        table = totals[totals[:, -1] > 0]
        logits, labels = table[:, :-1].chunk(2, dim=1)
        found = logits > 0  # a probability above 0.5
        right = labels > 0
        return {
            "mean_ap": mean_average_precision(right.cpu().numpy(), logits.cpu().numpy()),
            "f1": f1_of_counts(*((a & b).sum().item() for a, b in ((found, right), (found, ~right), (~found, right)))),
            "log_loss": F.binary_cross_entropy_with_logits(logits, labels).item(),
            "n": float(len(table)),
        }


class NumberMeter:
    """Mean absolute error, root of the mean squared error, and R2; each is the mean over the targets, in their units."""

    def __init__(self, meaning: Outputs, device: torch.device | None) -> None:
        self._meaning = meaning
        self._mean = torch.tensor(meaning.target_mean, dtype=torch.float64, device=device)
        self.totals = torch.zeros(5, len(meaning.names), dtype=torch.float64, device=device)

    def add(self, logits: Tensor, batch: Batch) -> None:
        """Count, for each target: samples, errors, squared errors, and the sums that its variance needs."""
        truth = batch.labels.double()
        valid = batch.valid.double().unsqueeze(1).expand_as(truth)
        errors = self._meaning.predictions(logits).double() - truth
        centred = truth - self._mean  # near 0, so that squares do not swallow the variance
        self.totals += torch.stack(
            [(value * valid).sum(dim=0) for value in (valid, errors.abs(), errors**2, centred, centred**2)]
        )

    def report(self, totals: Tensor) -> dict[str, float]:
        """Return mae, rmse, r2 and n."""
        count, absolute, squared, sums, squares = totals.cpu().numpy()
        return {
            "mae": float((absolute / count).mean()),
            "rmse": float(((squared / count) ** 0.5).mean()),
            "r2": float(r2_of_sums(squared, squares - sums**2 / count).mean()),
            "n": float(count[0]),
        }
